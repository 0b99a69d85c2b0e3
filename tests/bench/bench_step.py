"""A whole training step against depth: the suite's and the reference's, and one of 1000 wide blocks for its memory."""

from cases import IMAGE, QUICK, SCHEMES, TINY, case, protocol, trainer

DEPTHS = (10, 100, 400, 1000)
BOTH = ("suite", "reference")


def cases(size):
    if size == TINY:
        pairs = [("cpu", "suite", "mvsplit")] + [(d, v, "plain") for d in ("cpu", "cuda") for v in BOTH]
        return [case("step", scheme, 2, variant=v, setting="tiny", device=d) for d, v, scheme in pairs]
    if size == QUICK:
        return [case("step", scheme, depth, variant=v) for depth in (10, 100) for scheme in ("plain", "mvsplit") for v in BOTH]
    # neighbours in time are what is compared: the machine may not be the same an hour later
    out = [case("step", scheme, depth, variant=v) for depth in DEPTHS for scheme in SCHEMES for v in BOTH
           if v == "suite" or scheme in ("plain", "mvsplit") or depth == 100]
    out.append(case("step", "mvsplit", 1000, setting="wide"))
    schemes = ("plain", "mvsplit")
    return out + [case("step", scheme, depth, variant=v, device="cuda") for depth in (100, 400, 1000) for scheme in schemes for v in BOTH]


def prepare(case):
    import torch

    if case["variant"] == "suite":
        model = trainer(case)

        def step():
            if not model.advance():
                raise RuntimeError("the loss is not finite")

        return step
    from reference import Reference

    p = protocol(case["setting"])
    grid, token, device = IMAGE // p.patch, p.patch**2, case["device"]
    model = Reference(case["scheme"], case["depth"], p.width, p.heads, p.ffn, grid, p.caption_tokens, token).to(device)
    patches, target = torch.randn(2, p.batch, grid**2, token, device=device)
    captions = torch.randn(p.batch, p.caption_tokens, p.width, device=device)
    return lambda: model.step(patches, captions, target)


def test_step(measure, case):
    slow = case["setting"] == "wide"
    plain = case | {"scheme": "plain"} if case["variant"] == "suite" and case["scheme"] != "plain" and not slow else None
    measure(case, rounds=2 if slow else max(5, min(40, 2500 // case["depth"])), warmup=1 if slow else 2, beside=plain)
