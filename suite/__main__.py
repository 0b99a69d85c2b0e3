"""`python -m suite`, and the console command `screambench`."""

import io
import os
import signal
import sys
from typing import NoReturn

from suite import environment
from suite.cli import leave, main
from suite.environment import launched


class _Forgiving(io.TextIOWrapper):
    """Standard error, of which nobody may be listening: what cannot be written is lost, and the work goes on."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            pass


def _open_streams() -> None:
    """Streams that can be written to, whatever the caller has closed (`2>&-`), is full or cannot encode.

    A closed descriptor is filled first: the next file that is opened would take its number, and with it what
    libraries print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # also of the processes that it starts
    sys.stderr = _Forgiving(open(2, "wb", buffering=0, closefd=False), "utf-8", "backslashreplace", write_through=True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stdout.reconfigure(errors="backslashreplace")


def program() -> NoReturn:
    """Run the command line and end the process with its status."""
    _open_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored (`nohup`), and stays so
        signal.signal(signal.SIGINT, leave)
    environment.forget(*environment.OF_TORCH)  # before torch is imported, which reads them; also for the workers
    status = main()
    if status == 130 or launched():
        # Ctrl-C: do not let torch take its time to say goodbye. Several processes: a thread of gloo that lets go of a tensor while
        # Python shuts down aborts a process that has done its work (PyTorch issue 190489), also after destroy_process_group
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)


if __name__ == "__main__":
    program()
