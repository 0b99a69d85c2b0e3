"""Compilation: the first step of a scheme with an empty cache, then in a new process and at another depth with what that left."""

import pytest
from cases import FULL, QUICK, SCHEMES, case, trainer

from suite import environment


def cases(size):
    schemes = SCHEMES if size == FULL else ("plain", "mvsplit") if size == QUICK else ()
    return [case(phase, scheme, depth) for scheme in schemes for phase, depth in (("first_step_cold", 10), ("first_step_warm", 25))]


def prepare(case):
    return trainer(case).advance  # imports and the model's building are a worker's start-up, not compilation


def test_compile(measure, case):
    if not environment.compiler():
        pytest.skip("no C++ compiler")
    measure(case, rounds=1, warmup=0)
