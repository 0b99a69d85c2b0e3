"""Scores of detectors that see one row after another, against counts by hand, and what a detector may say."""

import numpy as np
import pytest

from suite.evidence.online import LEAD, DetectorError, Seen, alarms, interval, score

N, CRASH = 300, 200


def log(crash=CRASH, first=1, every=1, name="a log"):
    """Step i of N; the loss tells the detectors below which row it is."""
    steps = first + every * np.arange(N)
    return Seen(name, steps, np.arange(N, dtype=float), None, None if crash is None else int(steps[crash]))


def at(*rows, says=True):
    """A detector that speaks at those rows."""
    return lambda: lambda step, loss, norm: says if int(loss) in rows else None


@pytest.mark.parametrize(("rows", "found", "early", "delay"), [
    ((), 0, 0, None), ((CRASH,), 1, 0, 0), ((CRASH + 9, CRASH + 20), 1, 0, 9), ((CRASH - LEAD,), 1, 0, -LEAD),
    ((CRASH - LEAD - 1,), 0, 1, None), ((3, CRASH + 1), 1, 1, 1), ((N - 1,), 1, 0, N - 1 - CRASH),
])  # fmt: skip
@pytest.mark.parametrize("every", [1, 10])
def test_an_alarm_counts_by_where_it_comes(rows, found, early, delay, every):
    made = score(at(*rows), [log(every=every)])
    assert (made.died, made.found, made.early, made.delays) == (1, found, early, [] if delay is None else [delay])
    row = made.row()
    assert row["before"] == (delay is not None and delay < 0) and row["lead"] == (-delay if row["before"] else None)


def test_any_alarm_of_a_run_that_lived_is_a_false_one_and_a_run_counts_once():
    logs = [log(None), log(None), log()]
    made = score(at(5, 6, 7), logs)
    assert (made.lived, made.false_alarms, made.died, made.early) == (2, 2, 1, 1)
    assert score(at(), logs).false_alarms == 0


def test_a_detector_may_say_where_it_began():
    steps = log().steps
    made = score(at(CRASH + 30, says=int(steps[CRASH + 2])), [log()])
    assert (made.found, made.delays, made.errors) == (1, [30], [2])
    behind = score(at(CRASH + 30, says=int(steps[10])), [log()])  # speaks in time, and of something else
    assert (behind.found, behind.early) == (0, 0)


def test_it_is_made_anew_for_each_log_and_sees_no_row_before_its_time():
    seen = []

    def make():
        rows = []
        seen.append(rows)
        return lambda step, loss, norm: rows.append((step, loss, norm)) or False

    given = log(None)
    short = Seen("short", given.steps[:50], given.loss[:50], 2 * given.loss[:50], None)
    score(make, [given, short])
    assert [len(rows) for rows in seen] == [N, 50] and seen[0][:50] != seen[1]
    assert seen[1][:2] == [(1, 0.0, 0.0), (2, 1.0, 2.0)] and np.isnan(seen[0][0][2])


@pytest.mark.parametrize("says", ["yes", 1.5, 10_000, [1]])
def test_what_is_no_answer_is_said_in_one_line(says):
    with pytest.raises(DetectorError, match=r"says .* at step 6 of a log; it is to say None or False, True, or a step so far"):
        list(alarms(at(5, says=says)(), log()))


@pytest.mark.parametrize("says", [np.True_, np.int64(6), 6, True])
def test_numpys_answers_count_as_pythons(says):
    assert list(alarms(at(5, says=says)(), log())) == [(5, 5)]
    assert not list(alarms(at(5, says=np.False_)(), log()))


def test_a_detector_that_fails_is_said_with_the_place():
    with pytest.raises(DetectorError, match=r"mine: ZeroDivisionError at step 6 of a log: .*division"):
        list(alarms(lambda step, loss, norm: 1 // (5 - int(loss)) and None, log(), "mine"))


def test_intervals_are_exact():
    """Against the binomial sums themselves: at each end of the interval the tail beyond k is 2.5 %."""
    from math import comb

    def tail(n, p, ks):
        return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in ks)

    low, high = interval(7, 40)
    assert tail(40, low, range(7, 41)) == pytest.approx(0.025, abs=2e-3) and tail(40, high, range(8)) == pytest.approx(0.025, abs=2e-3)
    assert interval(0, 200) == [0, pytest.approx(1 - 0.025 ** (1 / 200), abs=1e-4)] and interval(0, 0) is None
