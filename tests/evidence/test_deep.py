"""The cells of README's table of the paper's own depths, in words."""

from suite.evidence.deep import said


def row(outcome, loss="0.7", crash="", late=""):
    return {"outcome": outcome, "heldout_loss": loss, "crash_step": crash, "late_step": late}


def test_a_cell_names_its_fates_with_steps_and_losses():
    assert said([]) == "-"
    assert said([row("survived"), row("survived", "0.9")]) == "2 of 2 live, 0.800 (0.700 to 0.900)"
    rows = [row("collapsed", "2.0", "120"), row("nonfinite", "", "80"), row("stuck", "1.5"), row("survived", "0.72")]
    assert said(rows) == "2 of 4 dead (steps 80, 120); 1 of 4 unusable; 1 of 4 live, 0.720"


def test_a_run_with_an_event_behind_the_horizon_lives_but_lends_its_loss_to_no_mean():
    rows = [row("survived", "1.34", late="602"), row("survived", "0.73")]
    assert said(rows) == "2 of 2 live, one falling at step 602, behind the horizon, 0.730"
    assert said(rows[:1]) == "1 of 1 live, one falling at step 602, behind the horizon"
