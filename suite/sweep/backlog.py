"""What a sweep has left to do: the runs of a plan that are not done, in groups, handed out one by one, each to one taker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from suite.protocol import Run
from suite.records.completeness import undone
from suite.records.tables import Store
from suite.sweep.claim import Claim
from suite.sweep.groups import in_groups, label

BUSY_WAIT = 2.0  # seconds before looking again at a run that another sweep holds


class Backlog:
    """The runs of a plan by what the tables say of them when the sweep begins, and the queue of those to train."""

    def __init__(
        self, runs: list[Run], results: Path, stores: dict[str, Store], retry: bool, replicas: int | None, kind: Callable[[Run], object],
    ) -> None:  # fmt: skip
        """stores: by protocol name. retry: runs that broke before are to do again. replicas: size of a group, as `in_groups` has it.

        kind: what a worker must be started for; it stays at one as long as there are runs of it.
        """
        self.kind = kind
        self.results = results
        done: set[str] = set().union(*(store.done_ids() for store in stores.values()))
        lost = {run_id: words for store in stores.values() for run_id, words in undone(store, done).items()}
        self.failed_before: set[str] = set().union(*(s.failed_ids() for s in stores.values()))
        skip = done if retry else done | self.failed_before
        todo = [run for run in runs if run.run_id not in skip]
        groups = in_groups(todo, replicas)
        self.todo = sorted(groups, key=lambda group: -group[0].depth)  # the longest first, so that the end is not one run
        self.skipped, self.total = len(runs) - len(todo), len(todo)
        self.lost = [(run, lost[run.run_id]) for run in todo if run.run_id in lost]  # done once
        self.old_failures = 0 if retry else sum(r.run_id in self.failed_before for r in runs)
        self.done_before = [run.run_id for run in runs if run.run_id in done]
        self._guard, self._waiting = threading.Lock(), set()

    def take(self, stop: threading.Event, say: Callable[[str], None], kind: object = None) -> tuple[list[Run], list[Claim]] | None:
        """A group of which nobody else holds a run, with a hold on each; waits while others hold every one left. None at the end.

        Of the taker's kind, if one is left; else the longest.
        """
        while not stop.is_set():
            with self._guard:
                if not self.todo:
                    return None
                for group in sorted(self.todo, key=lambda group: self.kind(group[0]) != kind):
                    claims = [Claim(self.results, run.run_id) for run in group]
                    taken = [claim for claim in claims if claim.take()]
                    if len(taken) == len(claims):
                        self.todo.remove(group)
                        return group, claims
                    for claim in taken:
                        claim.drop()
                    if group[0].run_id not in self._waiting:
                        self._waiting.add(group[0].run_id)
                        say(f"{label(group)}: another sweep holds it; taking others, then waiting")
            stop.wait(BUSY_WAIT)
        return None
