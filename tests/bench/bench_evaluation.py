"""What is not training: the audit pass, the held-out loss, and sampling (per image, with guidance)."""

from cases import FULL, QUICK, TINY, case, trainer

IMAGES = 32  # in one call of the sampler


def cases(size):
    depths = {FULL: (10, 100), QUICK: (10,), TINY: ()}[size]
    return [case(phase, "mvsplit", depth) for depth in depths for phase in ("audit", "heldout", "sample")]


def prepare(case):
    model = trainer(case)
    if case["phase"] == "heldout":
        return model.evaluation.heldout_loss
    if case["phase"] == "sample":
        return lambda: model.evaluation.sample(IMAGES)
    from suite.diagnosis.sidepass import anchor_layers, audit_step
    from suite.protocol import PROTOCOLS

    model.advance()  # an audit reads Adam's state
    layers = anchor_layers(case["depth"], PROTOCOLS["anatomy"].audit_layers)
    return lambda: audit_step(model, layers, model.state.step)


def test_evaluation(measure, case):
    measure(case, rounds=5, per=IMAGES if case["phase"] == "sample" else 1)
