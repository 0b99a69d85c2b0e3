"""A process of its own for one case, so that its peak memory and its compile cache are its own: `python child.py MODULE CASE`.

MODULE.prepare(case) returns what is to be timed. Then one line in, one line out: "call N" does it N times and answers
"done"; "report" answers with a JSON object. The process ends when its input closes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from suite import environment

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ChildError(RuntimeError):
    """The child died; the message is the last line it wrote."""


class Child:
    """The parent's end: starts the process, waits until it is prepared, and ends it on leaving the context."""

    def __init__(self, module: str, case: dict, cache: Path) -> None:
        env = os.environ | {name: "1" for name in THREADS} | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        env["PYTHONPATH"] = str(environment.ROOT)
        if case["device"] == "cpu":
            env["ACCELERATE_USE_CPU"] = "true"
        self.errors = tempfile.TemporaryFile("w+", errors="replace")
        self.process = subprocess.Popen(
            [sys.executable, __file__, module, json.dumps(case)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, text=True, bufsize=1, env=env,
        )  # fmt: skip

    def __enter__(self) -> Child:
        self.answer()
        return self

    def answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            words = self.errors.read().strip().splitlines()
            raise ChildError(f"exit status {code}: {words[-1] if words else 'no message'}")
        return line

    def call(self, times: int) -> None:
        self.process.stdin.write(f"call {times}\n")
        self.answer()

    def report(self) -> dict:
        """Columns `peak_mib` and `hardware`."""
        self.process.stdin.write("report\n")
        return json.loads(self.answer())

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            file.close()


def serve(module: str, case: dict) -> None:
    """The child's end."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not enter the protocol
    import importlib

    import torch

    call = importlib.import_module(module).prepare(case)
    cuda = case["device"] == "cuda"
    print("ready", file=answers)
    for line in sys.stdin:
        if line.startswith("call"):
            for _ in range(int(line.split()[1])):
                call()
            if cuda:
                torch.cuda.synchronize()
            print("done", file=answers)
        else:
            peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else environment.peak_memory_mib()
            hardware = torch.cuda.get_device_name() if cuda else environment.cpu_model()
            print(json.dumps({"peak_mib": peak, "hardware": hardware}), file=answers)


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
