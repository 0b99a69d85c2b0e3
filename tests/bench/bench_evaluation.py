"""What is not training: the audit pass, the held-out loss, and sampling (per image, with guidance), of one run and of one among many."""

from cases import FULL, QUICK, TINY, case, group, trainer


def images(case):
    """In one call of the sampler: half of the one shape of forward on a CPU, and on a GPU what a run is scored by."""
    return 32 if case["device"] == "cpu" else 256


def cases(size):
    depths = {FULL: (10, 100), QUICK: (10,), TINY: ()}[size]
    out = [case(phase, "mvsplit", depth) for depth in depths for phase in ("audit", "heldout", "sample")]
    many = [case(phase, "plain", 100, device="cuda", replicas=n) for n in (1, 120) for phase in ("heldout", "sample")]
    return out + many * (size == FULL)


def prepare(case):
    model = trainer(case) if case["replicas"] == 1 else None
    evaluation = model.evaluation if model else group(case)[1]
    if case["phase"] == "heldout":
        return lambda: evaluation.heldout_loss().tolist()
    if case["phase"] == "sample":
        return lambda: evaluation.sample(images(case))
    from suite.diagnosis.audit_pass import audit_step
    from suite.presets import PROTOCOLS
    from suite.protocol import evenly

    model.advance()  # an audit reads Adam's state
    layers = evenly(range(case["depth"]), PROTOCOLS["anatomy"].audit_layers)
    return lambda: audit_step(model, layers, model.state.step)


def test_evaluation(measure, case):
    measure(case, rounds=5, per=case["replicas"] * (images(case) if case["phase"] == "sample" else 1))
