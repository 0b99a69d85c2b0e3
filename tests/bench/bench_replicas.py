"""A training step of many runs as one model: time of one run's share of it, against how many there are."""

from cases import FULL, case, group

CPU = {100: (2, 4, 8, 16)}
CUDA = {100: (8, 30, 120, 240), 400: (8, 30)}  # beside a group's default


def cases(size):
    of = {"cpu": CPU, "cuda": CUDA} if size == FULL else {}
    wanted = [(device, depth, n) for device, depths in of.items() for depth, counts in depths.items() for n in counts]
    out = [case("step", "plain", depth, device=device, replicas=n) for device, depth, n in wanted]
    many = [case("step", "mvsplit", 100, device=device, replicas=n) for device, n in (("cpu", 4), ("cuda", 120))]
    return out + many * (size == FULL)  # of a run alone bench_step has the row


def prepare(case):
    return group(case)[0]


def test_step_of_a_group(measure, case):
    measure(case, rounds=max(5, 4000 // case["depth"] // case["replicas"]), warmup=3, per=case["replicas"])
