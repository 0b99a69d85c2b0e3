"""What a person sees while a sweep runs: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

from suite.protocol import Run
from suite.sweep.groups import label


class Progress:
    """One bar a worker with step, loss and rate on a terminal; a line at the end of each run there and elsewhere."""

    def __init__(self, workers: int) -> None:
        self.terminal = sys.stderr.isatty()
        self.bars: dict[str, object] = {}
        self.free = list(range(workers))
        self.guard = threading.RLock()
        self.said: set[str] = set()
        self.start = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        with self.guard:
            for bar in self.bars.values():
                bar.close()
            self.bars.clear()

    def say(self, text: str) -> None:
        """One line, above the bars if there are any."""
        with self.guard:
            if self.terminal:
                from tqdm import tqdm

                tqdm.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)

    def say_once(self, text: str) -> None:
        """What every worker has to say, from the first of them."""
        with self.guard:
            if text not in self.said:
                self.said.add(text)
                self.say(text)

    def begin(self, group: Sequence[Run]) -> None:
        """A bar for runs that are trained together, under the id of the first."""
        with self.guard:
            if not self.terminal:
                return
            from tqdm import tqdm

            position = self.free.pop(0) if self.free else 0
            self.bars[group[0].run_id] = tqdm(
                total=group[0].protocol.length, desc=label(group), unit="step", position=position, leave=False, file=sys.stderr,
                dynamic_ncols=True,
            )  # fmt: skip

    def step(self, group: Sequence[Run], step: int, loss: float) -> None:
        with self.guard:
            bar = self.bars.get(group[0].run_id)
            if bar is not None:
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update(step - bar.n)

    def end(self, run: Run, row: dict, finished: int, total: int) -> None:
        """Close the run's bar and say what came of it."""
        with self.guard:
            bar = self.bars.pop(run.run_id, None)
            if bar is not None:
                self.free.append(-bar.pos)
                bar.close()
        self.say(f"[{finished}/{total}, {time.monotonic() - self.start:4.0f} s] {run.label()}: {words(row)}")


def words(row: dict) -> str:
    """What came of a run, from its row."""
    if row["status"] != "done":
        return f"{row['status']}: {row['reason']}"
    where = "" if row["crash_step"] is None else f" at step {row['crash_step']}"
    loss = "" if row["final_loss"] is None else f", loss {row['final_loss']:.3f}"  # none: nan at the first step
    return f"{row['outcome']}{where}{loss}"
