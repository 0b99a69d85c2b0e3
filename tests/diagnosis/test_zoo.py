"""The zoo of healthy networks: each is watched as it says, and the committed table is of today's rule, without a false alarm."""

from types import SimpleNamespace

import pytest
import torch
from zoo import DYING, RULE, STEPS, TABLE, Seen, dead, of, rule_digest, watchable
from zoo_networks import ZOO

from suite.diagnosis.alarms import EQUAL
from suite.environment import ROOT
from suite.records.csvfile import read_rows

COMMITTED = ROOT / "results" / "detect" / TABLE.path


@pytest.mark.parametrize("name", ZOO)
def test_every_network_trains_and_its_writers_are_found(name):
    make, rate = ZOO[name]
    torch.manual_seed(0)
    net, draw, loss_of = make()
    seen, batch = Seen(net), draw()
    loss = loss_of(net(*batch), *batch)
    loss.backward()
    seen.step(loss)
    left = set(seen.monitor._left)
    assert rate > 0 and len(seen.monitor.by_writer) >= 2 and len(left) < len(seen.monitor.writers) and "tcs" in seen.monitor.row
    row = seen.row()
    assert row["steps"] == row["measured"] == 1 and row["alarms"] == 0 and not net._forward_hooks


def test_a_run_of_the_suite_is_the_same_with_its_writers_as_modules(tiny_model):
    outs = []
    for change in (lambda model: model, watchable):
        model = change(tiny_model("plain"))
        outs.append(model(torch.ones(2, 2, 4, 4), torch.ones(2, 3, 16), torch.linspace(0, 1, 2)))
    assert torch.equal(*outs)


def test_a_share_has_its_exact_interval():
    assert of(0, 90) == "0 of 90 [0, .04]" and of(1, 10) == "1 of 10 [.003, .445]"


@pytest.mark.skipif(not COMMITTED.exists(), reason="no zoo is committed")
def test_the_committed_zoo_has_no_false_alarm_and_no_late_one():
    rows = read_rows(COMMITTED, TABLE)
    assert {row["rule_digest"] for row in rows} == {rule_digest()}, f"{RULE} have changed: call results/detect/zoo.py again"
    for row in rows:
        if row["truth"] == "alive":
            assert row["alarms"] == row["withdrawn"] and int(row["steps"]) == STEPS and float(row["last_loss"]) < float(row["first_loss"])
            assert (float(row["tcs_most"]) > EQUAL) == (row["equal"] != "0")
        elif row["by_cosine"]:
            assert int(row["tokens_equal"]) <= int(row["by_cosine"])


@pytest.mark.slow
def test_a_run_that_dies_is_told_no_later_than_by_its_cosines():
    row = SimpleNamespace(**dead(*DYING[1], seed=0))
    assert row.by_cosine is not None and row.tokens_equal == row.by_cosine and row.alarms > row.withdrawn
