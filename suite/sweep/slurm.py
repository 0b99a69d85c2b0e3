"""A sweep on a Slurm cluster: one array job through submitit, whose tasks each train a share of the runs.

Every task has a results folder of its own, since not every cluster's file system keeps the locks that a shared one
needs; the tables are gathered when the tasks have ended. As a program (`python -m suite.sweep.slurm`) this is such a
task.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from suite import environment
from suite.isolation import forks
from suite.isolation.catalogue import read
from suite.protocol import Run
from suite.records.gather import gather
from suite.records.store import Store
from suite.sweep.backlog import Standing
from suite.sweep.sweep import Sweep, SweepError

POLL = 10.0  # seconds between looks at the tasks' tables
ALIVE = ("PENDING", "RUNNING", "REQUEUED", "SUSPENDED", "COMPLETING", "CONFIGURING")


def parse_settings(texts: Sequence[str]) -> dict[str, int | str]:
    """Settings from `key=value,...` texts; a value may hold commas (`exclude=n1,n2`), and whole numbers become integers.

    Raises ValueError for what is no such list, and unless jobs and time (which submitit would take as 5 minutes) are
    positive numbers.
    """
    found: dict[str, int | str] = {}
    for item in [item for text in texts for item in re.split(r",(?=\w+=)", text)]:
        key, equals, value = item.partition("=")
        if not (key.isidentifier() and equals and value):
            raise ValueError(f"--slurm {item!r} is not key=value")
        if key in found:
            raise ValueError(f"--slurm: {key} is given twice")
        found[key] = int(value) if value.isascii() and value.isdigit() else value
    for key, what in (("jobs", "array tasks"), ("time", "minutes a task")):
        if not (isinstance(found.get(key), int) and found[key] > 0):
            raise ValueError(f"--executor slurm: say how many {what}, as in --slurm jobs=8,time=120")
    return found


def run_on_slurm(runs: list[Run], results: Path, settings: Sequence[str], plugins: Sequence[str], how: Mapping[str, object]) -> int:
    """Train what is not done yet, wait, gather; returns the exit status: 1 where a run broke or did not end, 130 after Ctrl-C.

    how: workers, features, replicas and retry, as `Sweep` has them. Raises ValueError for wrong settings, a machine
    without submitit or Slurm, and while tasks of an earlier call are alive.
    """
    options = parse_settings(settings)
    count = options.pop("jobs")
    shards, logs = results / ".work" / "shards", results / ".work" / "slurm"
    executor = _executor(logs, options)
    _refuse_twins(logs)
    _gather_shards(shards, results)  # of an earlier call that was stopped before its tasks ended
    before = Standing(runs, results, how["retry"])
    print("\n".join(before.describe()), file=sys.stderr)
    # All are dealt, so that each goes on in the folder of its checkpoints; in turn, so that no task gets all the deep ones.
    dealt, todo = sorted(runs, key=lambda run: -run.depth), {run.run_id for run in before.todo}
    shares = {shards / f"{i + 1}-of-{count}": [run for run in dealt[i::count] if run.run_id in todo] for i in range(count)}
    shares = {folder: share for folder, share in shares.items() if share}
    if shares:
        task = {"how": dict(how), "plugins": [str(Path(plugin).resolve()) for plugin in plugins]}
        jobs = _submit(executor, [task | {"results": str(f), "runs": [r.to_json() for r in share]} for f, share in shares.items()])
        try:
            _wait(jobs, shares)
        except KeyboardInterrupt:
            job = jobs[0].job_id.partition("_")[0]
            print(f"\nstopped waiting; job {job} goes on: look with `squeue -j {job}` and in {logs}, end it with `scancel {job}`; "
                  "when it has ended, the same command gathers its tables and trains what is left", file=sys.stderr)  # fmt: skip
            return 130
        _gather_shards(shards, results)
    return _report(runs, results, logs)


def _executor(logs: Path, options: dict):
    """submitit's Slurm executor with these settings, or ValueError with one line."""
    try:
        import submitit
    except ImportError:
        raise ValueError("--executor slurm needs submitit: pip install '.[slurm]' (in the clone)") from None
    try:
        executor = submitit.SlurmExecutor(folder=logs)
        executor.update_parameters(**{"job_name": "screambench"} | options)
    except RuntimeError as error:  # no srun here
        raise ValueError(f"--executor slurm: {error}; use --executor local, or --shard i/n on each machine") from None
    except ValueError as error:
        raise ValueError(f"--slurm: {str(error).splitlines()[0]}") from None
    return executor


def _submit(executor, tasks: list[dict]) -> list:
    """One array job; a task reads its share from standard input, so that nothing of the suite has to be pickled."""
    path = os.pathsep.join(filter(None, [str(environment.ROOT), os.environ.get("PYTHONPATH")]))
    command = ["env", f"PYTHONPATH={path}", sys.executable, "-m", "suite.sweep.slurm"]
    try:
        return executor.submit_array([partial(subprocess.run, command, input=json.dumps(task), text=True) for task in tasks])
    except (RuntimeError, subprocess.CalledProcessError) as error:
        raise SweepError(f"sbatch refused the job: {' '.join(str(error).split())[-300:]}") from None


def _refuse_twins(logs: Path) -> None:
    """ValueError while a task of an earlier call waits or runs: it would train the same runs."""
    import submitit

    for path in logs.glob("*_submitted.pkl"):
        job = submitit.SlurmJob(logs, path.name.removesuffix("_submitted.pkl"))
        if not job.paths.result_pickle.exists() and job.state.split()[0] in ALIVE:
            raise ValueError(f"job {job.job_id} of an earlier call is {job.state}: wait for it, or end it with scancel")


def _wait(jobs: list, shares: dict[Path, list[Run]]) -> None:
    """Until every task has ended, whatever became of it; says how many runs are in the tables."""
    total, shown = sum(map(len, shares.values())), -1
    print(f"job {jobs[0].job_id.partition('_')[0]}: {len(jobs)} tasks", file=sys.stderr)
    while True:
        over = all(job.done() for job in jobs)
        ended = sum(len(_rows(share, folder)) for folder, share in shares.items())
        if ended != shown:
            print(f"[{ended}/{total}]", file=sys.stderr, flush=True)
            shown = ended
        if over:
            return
        time.sleep(POLL)


def _rows(runs: Sequence[Run], results: Path) -> dict[str, dict[str, str]]:
    """The rows of runs.csv that a results folder has of these runs, by run id."""
    ids = {run.run_id for run in runs}
    stores = [Store(results / name) for name in {run.protocol.name for run in runs}]
    return {row["run_id"]: row for store in stores for row in store.runs() if row["run_id"] in ids}


def _gather_shards(shards: Path, results: Path) -> None:
    """Move the tables of all tasks into the user's; checkpoints stay, for runs to go on from."""
    tables = [path.parent for path in sorted(shards.glob("*/*/runs.csv"))]
    if tables:
        gather(list(dict.fromkeys(folder.parent for folder in tables)), results)
    for folder in tables:
        shutil.rmtree(folder)


def _report(runs: list[Run], results: Path, logs: Path) -> int:
    """Name what broke or never ended; the exit status."""
    rows, broken = _rows(runs, results), Standing(runs, results, retry=True).todo
    for run in broken:
        row = rows.get(run.run_id)
        what = f"its task ended before it did (time limit?); see {logs}, and call again to go on"
        if row and row["status"] != "done":
            what = f"{row['status']}: {row['reason']}"
        print(f"broken: {run.label()}: {what}", file=sys.stderr)
    return 1 if broken else 0


def main() -> int:
    """One task of the array: train the share on standard input with a worker per card or core that Slurm gave us."""
    forks.start()
    task = json.load(sys.stdin)
    runs, how = [Run.from_json(text) for text in task["runs"]], task["how"]
    if how["workers"]:
        how["workers"] = min(how["workers"], environment.usable_cores())
    Sweep(runs, Path(task["results"]), catalogue=read(task["plugins"]), **how).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
