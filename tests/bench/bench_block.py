"""One block alone, eager, forward and forward with backward: what a scheme's formula costs before any compiler."""

from cases import FULL, SCHEMES, case, trainer

CALLS = 20  # per round: one is short for the clock and the pipe


def cases(size):
    if size != FULL:
        return []
    return [case(phase, scheme, 1, variant=v) for phase in ("block_forward", "block_forward_backward") for scheme in SCHEMES
            for v in ("suite", "reference") if v == "suite" or scheme in ("plain", "mvsplit")]


def prepare(case):
    import torch

    if case["variant"] == "suite":
        dit = trainer(case).dit
        t_B = torch.zeros(case["batch"])
        block, rest = dit.blocks[0].forward, (dit.rope, dit.segments, dit.step, t_B)  # not block(...): that may be compiled
        weights = list(dit.blocks[0].parameters())
    else:
        from reference import Reference

        model = Reference(case["scheme"], 1)
        block, rest, weights = model.blocks[0], (model.rope, model.image), list(model.blocks[0].parameters())
    x_BTD = torch.randn(case["batch"], case["image_tokens"] + case["caption_tokens"], case["width"], requires_grad=True)
    up_BTD = torch.randn_like(x_BTD)
    if case["phase"] == "block_forward":
        return torch.no_grad()(lambda: block(x_BTD, *rest))
    return lambda: torch.autograd.grad(block(x_BTD, *rest), [x_BTD, *weights], up_BTD)


def test_block(measure, case):
    measure(case, rounds=20, warmup=2, calls=CALLS)
