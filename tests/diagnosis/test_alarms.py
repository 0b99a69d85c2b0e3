"""What the monitor calls a death, and takes back: rows made by hand, and the report in words."""

import re

import pytest
import torch
from torch import nn

from suite.audit import DyingWarning, Monitor
from suite.diagnosis.alarms import EQUAL, Alarms


def run(losses, tokens, every=50):
    """Alarms of a run: losses by step, and `tokens(step)` -> (tcs, centered share) at every 50th step and the first."""
    alarms, told = Alarms(), []
    for at, loss in enumerate(losses, 1):
        row = {"step": at, "loss": loss, "grad_norm": 1.0}
        if at % every == 0 or at == 1:
            tcs, share = tokens(at)
            row |= {"tcs": tcs, "g_ctr": share, "g_mean": (1 - share**2) ** 0.5}
        told += [(at, alarm.kind, alarm.withdrawn) for alarm in alarms.see(at, row)]
    return told, alarms


def noise(n, sd=0.02, seed=0):
    return (sd * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).tolist()


def learning(n, start=3.0, end=0.8, sd=0.02):
    return [end + (start - end) / (1 + at / 20) + e for at, e in enumerate(noise(n, sd))]


def dies(n, at, constant=2.0, sd=0.02):
    return [loss if i < at else constant + e for i, (loss, e) in enumerate(zip(learning(n), noise(n, sd, 1), strict=True), 1)]


def equal_from(step, share=1e-5, apart=(0.3, 0.6)):
    return lambda at: (1.0, share) if at >= step else apart


@pytest.mark.parametrize("at", [45, 50, 95, 120, 399])
@pytest.mark.parametrize("constant", [1.6, 2.0, 8.0])
def test_a_collapse_is_told_at_the_first_measurement_that_shows_it(at, constant):
    told, _ = run(dies(500, at, constant), equal_from(at))
    first = -(-at // 50) * 50
    assert (first, "tokens equal", "") in told and not any(why for _, _, why in told)


def test_a_collapse_whose_gradient_is_not_gone_yet_is_told_by_its_loss():
    told, _ = run(dies(500, 90), equal_from(90, share=0.1))
    assert (100, "tokens equal", "") in told


def test_a_collapse_is_told_without_a_loss():
    alarms = Alarms()
    alarms.see(1, {"tcs": 0.2, "g_ctr": 1.0, "g_mean": 1.0})
    (alarm,) = alarms.see(50, {"tcs": 1.0, "g_ctr": 1e-9, "g_mean": 1.0})
    assert alarm.kind == "tokens equal"


@pytest.mark.parametrize("share", [0.03, 0.2, 0.7])
@pytest.mark.parametrize("since", [1, 50, 300])
def test_a_common_vector_in_a_network_that_learns_is_no_death(share, since):
    """Also where it has stopped improving; tokens equal from the start or later."""
    assert run(learning(600), equal_from(since, share))[0] == []
    assert run([0.8 + e for e in noise(600)], equal_from(since, share))[0] == []


def test_gradients_that_are_alike_by_construction_are_no_death():
    """Under a mean over tokens every token of the last writer gets the same gradient, from the first step on."""
    assert run(learning(400), equal_from(200, share=0.0, apart=(0.5, 0.0)))[0] == []


def test_tokens_that_are_equal_from_the_start_and_never_learn():
    told, _ = run([2.0 + e for e in noise(400)], lambda at: (1.0, 1e-6))
    assert [(kind, why) for _, kind, why in told] == [("tokens equal", "")] and told[0][0] <= 100


def test_an_alarm_that_was_wrong_is_withdrawn_once():
    back = dies(600, 100)[:200] + [0.7 + e for e in noise(400)]
    told, alarms = run(back, equal_from(100))
    kinds = [(kind, bool(why)) for _, kind, why in told]
    assert kinds.count(("tokens equal", False)) == 1 and kinds.count(("tokens equal", True)) == 1
    assert kinds.count(("loss jumped", False)) == 1 and kinds.count(("loss jumped", True)) == 1
    assert all(alarm.withdrawn_at > 200 for alarm in alarms.told) and len(alarms.told) == 2
    told, _ = run(dies(600, 100), lambda at: (1.0, 1e-5) if 100 <= at < 300 else (0.3, 0.6))
    assert (300, "tokens equal", "the tokens differ again") in told


def test_a_dead_network_is_not_taken_back():
    for seed in range(3):
        losses = learning(99) + [2.0 + e for e in noise(800, 0.05, seed)]
        assert not any(why for _, _, why in run(losses, equal_from(100))[0])


# ---- in words

def watched(losses, equal=None, **kwargs):
    """A monitor whose network writes equal tokens from a step on."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w2, self.at = nn.Linear(8, 8), 0

        def forward(self, x):
            self.at += 1
            dead = equal is not None and self.at >= equal
            return self.w2(x.mean(1, keepdim=True).expand_as(x) if dead else x)

    torch.manual_seed(0)
    net, told = Net(), []
    monitor = Monitor(net, told=lambda *alarm: told.append(alarm), **kwargs)
    for loss in losses:
        net.zero_grad()
        net(torch.randn(4, 5, 8)).tanh().square().mean().backward()
        monitor.step(loss)
    assert told == monitor.alarms
    return monitor


def numbers(text):
    return set(re.findall(r"\d+(?:\.\d+)?", re.sub(r"float32|[Aa]r[Xx]iv:\S+", "", text)))


def test_the_report_of_a_collapse():
    monitor = watched(dies(120, 40), equal=40, every=10)
    said = monitor.report()
    assert "Tokens, by what 1 writers write: one vector at step 120" in said and "Alarm at step 40: tokens equal" in said
    assert "Resume from a checkpoint of step 30 or before" in said and "Lower the learning rate" in said
    assert "branches smaller" in said and "Do not count on clipping" in said and "No alarm" not in said
    advice = said.partition("Try next:")[2]
    assert numbers(advice) <= {"30"}, "no number that is not the run's"


def test_the_report_of_a_run_that_lives_promises_nothing():
    said = watched(learning(60), every=10).report()
    assert "different at step 60" in said and "No alarm: nothing is to be done" in said and "no promise" in said and "Try" not in said


def test_the_report_of_a_jump_without_writers_and_of_what_is_not_finite():
    said = watched(dies(120, 80), every=None).report()
    assert "No writer was measured" in said and "its tokens were not seen" in said and "Name the writers" in said
    assert re.search(r"Resume from a checkpoint before step (7\d|80)\b", said)
    said = watched([*learning(50), float("nan"), *learning(3)], every=10).report()
    assert "Alarm at step 51: nonfinite" in said and "Look for an overflow" in said


def test_the_report_says_what_was_withdrawn():
    said = watched(dies(150, 80)[:100] + [0.7 + e for e in noise(60)], every=10).report()
    assert re.search(r"step \d+: loss jumped: .* Withdrawn at step \d+: the loss has come back", said) and "No alarm stands" in said


def test_before_the_first_step():
    assert "Seen: no step yet." in watched([]).report()


def test_alarms_are_told_as_warnings_and_what_was_wrong_as_another():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w2 = nn.Linear(8, 8)

        def forward(self, x, dead):
            return self.w2(x.mean(1, keepdim=True).expand_as(x) if dead else x)

    net = Net()
    monitor = Monitor(net, every=1)
    with pytest.warns(UserWarning) as told:
        for dead in (False, True, False):
            net(torch.randn(4, 5, 8), dead).tanh().square().mean().backward()
            monitor.step(1.0)
    assert [w.category for w in told] == [DyingWarning, UserWarning] and "withdrawn: tokens equal, told at step 2" in str(told[1].message)
    assert [kind for _, kind, _ in monitor.alarms] == ["tokens equal", "withdrawn"] and monitor.row["tcs"] < EQUAL
