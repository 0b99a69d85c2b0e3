"""`python -m suite`."""

import os
import signal
import sys

from suite.cli import leave, main

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored (`nohup`), and stays so
    signal.signal(signal.SIGINT, leave)
status = main()
if status == 130:  # Ctrl-C: do not let torch take its time to say goodbye
    sys.stderr.flush()
    os._exit(status)
raise SystemExit(status)
