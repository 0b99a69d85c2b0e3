"""Commands in this process, and what they print."""

from pathlib import Path

from suite import cli

HEAD = "import torch\nfrom suite.registry import register\nfrom suite.residual import Residual\n"
GOOD = HEAD + "@register('halved')\nclass Halved(Residual):\n    def merge(self, x, f, ctx): return x + 0.5 * f\n"


def call(capsys, *words):
    """(status, lines on standard output, lines on standard error) of a command in this process."""
    try:
        status = cli.main([str(word) for word in words])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()


def refused(capsys, *words):
    """The one line of a command that must fail with status 2 and leave nothing behind."""
    before = sorted(Path().rglob("*"))
    status, out, err = call(capsys, *words)
    assert (status, len(err)) == (2, 1), (status, err)
    assert not out and err[0].startswith("error: ") and "Traceback" not in err[0]
    assert sorted(Path().rglob("*")) == before, "something was written"
    return err[0]
