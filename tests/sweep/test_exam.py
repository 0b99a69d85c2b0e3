"""Every scheme passes the exam that `enter` gives to a stranger's."""

from dataclasses import replace

import pytest
from entries import ENTRIES, slow_but

from suite.isolation.catalogue import read
from suite.sweep.exam import examine
from suite.sweep.plan import Selection, make_plan

PASSED = ["samples of a batch do not see each other", "gradients are those of finite differences, in float64",
          "as one model with another run it trains as alone", "stopped and resumed it trains as in one go, to the byte",
          "compiled it trains as eager"]  # fmt: skip


@pytest.mark.parametrize(("name", "arm"), slow_but([("layerscale", "controlled")], ENTRIES))
def test_it_passes(name, arm, tmp_path):
    catalogue = read()
    selection = Selection("smoke", schemes=(name,), arms=(arm,), depths=(3,), seeds=(0, 1))
    runs = [replace(run, compiled=True) for run in make_plan(selection, catalogue=catalogue)]
    assert catalogue.call(catalogue.get(name, arm), examine, runs, tmp_path) == PASSED
    catalogue.rest()
