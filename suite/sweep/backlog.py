"""What a sweep has left to do: the runs of a plan that are not done, in groups, handed out one by one, each to one taker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from suite.protocol import Run
from suite.records.completeness import undone
from suite.records.store import Store
from suite.sweep.claim import Claim
from suite.sweep.groups import in_groups, label

BUSY_WAIT = 2.0  # seconds before looking again at a run that another sweep holds


class Standing:
    """The runs of a plan by what the tables of a results folder say of them now, and so what is left to do."""

    def __init__(self, runs: Sequence[Run], results: Path, retry: bool = False) -> None:
        """retry: runs that broke before are to do again."""
        self.runs = runs
        self.stores = {run.protocol.name: Store(results / run.protocol.name) for run in runs}
        self.done = {run_id for store in self.stores.values() for run_id in store.done_ids()}
        self.failed = {run_id for store in self.stores.values() for run_id in store.failed_ids()}
        skip = self.done if retry else self.done | self.failed
        self.todo = [run for run in runs if run.run_id not in skip]
        self.old_failures = 0 if retry else sum(run.run_id in self.failed for run in runs)

    def describe(self) -> list[str]:
        """For a person: what was done once and is not any more, and how much there is to do."""
        lost = {run_id: words for store in self.stores.values() for run_id, words in undone(store, self.done).items()}
        again = [f"{run.label()}: was done but {lost[run.run_id]}; it is trained again" for run in self.todo if run.run_id in lost]
        return [*again, f"{len(self.runs)} runs: {len(self.runs) - len(self.todo)} done before, {len(self.todo)} to do"]


class Backlog:
    """The queue of the runs that are to be trained."""

    def __init__(self, todo: Sequence[Run], results: Path, replicas: int | None, kind: Callable[[Run], object]) -> None:
        """replicas: size of a group, as `in_groups` has it.

        kind: what a worker must be started for; it stays at one as long as there are runs of it.
        """
        self.results, self.kind = results, kind
        self.total = len(todo)
        self.todo = sorted(in_groups(todo, replicas), key=lambda group: -group[0].depth)  # the longest first: the end is not one run
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
