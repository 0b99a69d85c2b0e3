"""Processes that are forked from one in which torch and the suite are imported and no scheme's file is.

So a process may import one scheme's file, do what it likes, and no other's numbers can change; and it starts at once.
The first one (`multiprocessing`'s fork server) imports while its parent goes on, which itself needs no torch. It runs
no operation, starts no thread and opens no GPU. Who is forked from it ends when its pipe does, which is when its
parent dies at the latest.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver, get_context, resource_tracker, set_start_method
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import Queue
from types import ModuleType

from suite import environment

PRELOAD = ["suite.sweep.preload"]
MARK = "SCREAMBENCH_FORKS"
_context, _guard = get_context("forkserver"), threading.RLock()
_context.set_forkserver_preload(PRELOAD)
_begun = False


class ForkDied(ValueError):
    """A process that ended before it had answered; the message is half a line, without a subject."""


def start() -> None:
    """Begin the process that the others are forked from, once, and return at once."""
    global _begun
    with _guard:
        if _begun:
            return
        _begun = True
        resource_tracker.ensure_running()  # first: it would let Ctrl-C through again
        with _quiet(), _environment(_variables()):
            forkserver.ensure_running()


def fork(main: Callable, *args: object, log: Path | None = None, **variables: str) -> tuple[BaseProcess, Connection]:
    """Run `main(connection, *args)` in a process of its own; returns it and the other end of its pipe.

    It has this process's environment and folder of now and further `variables`, one thread, and Ctrl-C does not reach
    it. What it prints goes to `log`, or to standard error.
    """
    start()
    ours, theirs = _context.Pipe()
    process = _context.Process(target=_begin, args=(main, theirs, args, log, _variables() | variables), daemon=True)
    with _guard, _nameless():
        process.start()
    theirs.close()
    return process, ours


def _begin(main: Callable, connection: Connection, args: tuple, log: Path | None, variables: dict[str, str]) -> None:
    if os.environ.get(MARK) != "1":  # `multiprocessing` starts a fork server that was killed again, with what the shell exports
        raise RuntimeError("the process that this one was forked from had been killed; call again")
    os.setsid()
    set_start_method("fork", force=True)  # as in any program: a lock of a library's is then no business of the resource tracker
    os.environ.clear()
    os.environ.update(variables)
    if log is not None:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)
    os.dup2(2, 1)
    main(connection, *args)


def _variables() -> dict[str, str]:
    """The environment of a process that trains: this one's, without what would change its numbers."""
    kept = {name: value for name, value in os.environ.items() if environment.harmless(name)}
    kept |= {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")}
    kept |= {MARK: "1", "TORCHINDUCTOR_CACHE_DIR": str(environment.compile_cache()), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    kept["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a look at the cards that opens CUDA would forbid it to all who are forked
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(environment.ROOT), os.environ.get("PYTHONPATH")]))
    return kept


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """The fork server has the environment of the moment in which it starts, and reads some of it only then."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Who is started meanwhile never hears of Ctrl-C, which a terminal sends to all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _nameless() -> Iterator[None]:
    """`multiprocessing` runs the program of its user again in each process, unless it finds no name of it."""
    program, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


class Fork:
    """A process that calls what it is asked to, for short work beside the training; the first to call decides what it has imported."""

    def __init__(self) -> None:
        self.process, self.connection = fork(_serve)

    def ask(self, function: Callable, *args: object) -> None:
        """Let it begin to work; a call by name, so that nothing of it is imported here."""
        try:
            self.connection.send((function, args))
        except OSError:
            pass  # said by `answer`

    def answer(self, patience: float | None = None) -> object:
        """What the function returned; raises what it raised, or ForkDied, also where that takes longer than `patience` seconds."""
        try:
            if not self.connection.poll(patience):
                self.process.kill()
                raise ForkDied(f"does not come to an end (waited for {patience:g} s)")
            good, found = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            raise ForkDied(f"ends its process ({ending(self.process.exitcode)})") from None
        if good:
            return found
        raise found

    def call(self, function: Callable, *args: object, patience: float | None = None) -> object:
        self.ask(function, *args)
        return self.answer(patience)

    def close(self) -> None:
        self.connection.close()


def heard(connection: Connection) -> Queue:
    """What comes through the pipe of a process. It ends when the pipe does, also in the middle of its work."""
    queue: Queue = Queue()

    def listen() -> None:
        try:
            while True:
                queue.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return queue


def tell(connection: Connection, words: object) -> None:
    """Say something to whoever started this process, which ends where nobody is there."""
    try:
        connection.send(words)
    except OSError:
        os._exit(0)


def _serve(connection: Connection) -> None:
    asked = heard(connection)
    while True:
        function, args = asked.get()
        try:
            answer = True, function(*args)
        except BaseException as error:
            answer = False, _portable(error)
        tell(connection, answer)


def _portable(error: BaseException) -> BaseException:
    """An error as its like can be raised in another process: a user's own as it is, a bug with its trace."""
    try:
        known = isinstance(error, ValueError | OSError) and type(error).__module__.partition(".")[0] in ("builtins", "suite")
        if known and type(ForkingPickler.loads(ForkingPickler.dumps(error))) is type(error):
            return error
    except Exception:
        return ValueError(str(error))
    return RuntimeError("".join(traceback.format_exception(error)))


def ending(code: int | None) -> str:
    """How a process ended, in words; negative codes are signals."""
    if code is None or code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"signal {-code}"


def once(function: Callable, *args: object) -> object:
    """The result of a function in a process of its own, which imports what this one need not."""
    one = Fork()
    try:
        return one.call(function, *args)
    finally:
        one.close()


@cache
def cards() -> int:
    """CUDA devices that runs may be trained on, looked for elsewhere: a process that has opened CUDA must not fork."""
    return 0 if environment.cpu_wanted() else once(environment.cards)
