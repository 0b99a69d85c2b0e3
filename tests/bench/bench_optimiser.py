"""Clip and update of all weights against depth: one flat buffer under fused AdamW against per-tensor default AdamW."""

from cases import FULL, case, trainer

BOTH = ("suite", "reference")


def cases(size):
    return [case("optimiser", "mvsplit", depth, variant=v) for depth in (10, 100, 1000) for v in BOTH] if size == FULL else []


def prepare(case):
    import torch

    if case["variant"] == "suite":
        model = trainer(case)
        model.state.flat.grads.normal_()

        def update():
            model.state.flat.clip(model.run.protocol.clip)
            model.train_step.update(1)

        return update
    from reference import Reference

    model = Reference("mvsplit", case["depth"])
    for p in model.parameters():
        p.grad = torch.randn_like(p)

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        model.state.optimizer.step()

    return update


def test_optimiser(measure, case):
    measure(case, rounds=20, warmup=3)
