"""`python -m suite`, and the console command `screambench`."""

import os
import signal
import sys
from typing import NoReturn

from suite import environment
from suite.cli import leave, main


def program() -> NoReturn:
    """Run the command line and end the process with its status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored (`nohup`), and stays so
        signal.signal(signal.SIGINT, leave)
    environment.forget(*environment.OF_TORCH)  # before torch is imported, which reads them; also for the workers
    status = main()
    launched = sys.modules.get("suite.sweep.distributed")
    if status == 130 or launched and launched.processes() > 1:
        # Ctrl-C: do not let torch take its time to say goodbye. Several processes: a thread of gloo that lets go of a tensor while
        # Python shuts down aborts a process that has done its work (PyTorch issue 190489), also after destroy_process_group
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)


if __name__ == "__main__":
    program()
