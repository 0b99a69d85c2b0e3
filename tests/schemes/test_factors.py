"""Factors of rate and epsilon on named weights and gates, by whatever placement and way of applying the update."""

import math
from dataclasses import replace

import pytest
import torch
import toys
from stand_ins import capture as stand_in
from toys import TOYS

from suite.data.load import cached
from suite.model.backbone import DiT
from suite.residual import WEIGHTS, Factors, Residual
from suite.sweep.plan import Selection, SelectionError, make_plan
from suite.training import cuda_graph
from suite.training.factors import FactorError, of_block, of_model
from suite.training.optim import GROUPS, FlatParameters
from suite.training.trainer import Trainer

SIZES = {"width": 16, "heads": 2, "ffn": 24, "depth": 3, "patch": 2, "channels": 2, "image_size": 4, "caption_tokens": 3}
ADAM = {"betas": (0.9, 0.999), "eps": 1e-3, "weight_decay": 0.1}  # an epsilon that is felt
ROWS = {"q": ("wqkv", 0, 16), "k": ("wqkv", 16, 32), "v": ("wqkv", 32, 48), "o": ("wo", 0, 16),
        "w1": ("w13", 0, 24), "w3": ("w13", 24, 48), "w2": ("w2", 0, 16)}  # fmt: skip


@pytest.fixture(autouse=True)
def registered(scratch_registry):
    toys.enter()


def drawn(name):
    dit = DiT(**SIZES, scheme=TOYS[name])
    dit.init_weights(0, init="fan_in", writers="std", final="std")
    return dit


def expected(name, parameter, p):
    """(rate, eps) of every row of a parameter, written out by hand."""
    rows = p.shape[0] if p.ndim else 1
    rate, eps = torch.ones(rows), torch.ones(rows)
    own = {
        "completep": {w: (1.5**-0.5, 1.5**-0.5) for w in ROWS},
        "values": {"v": (0.25, 1), "o": (0.25, 3), "w3": (1, 2), "gate_scale": (2, 1)},
        "lambdas": {"gate_resid": (0.01, 1)},
    }.get(name, {})
    last = parameter.split(".")[-1]
    for weight, (of, first, stop) in (ROWS | {"gate_scale": ("gate_scale", 0, 16), "gate_resid": ("gate_resid", 0, 1)}).items():
        if of == last and weight in own:
            rate[first:stop], eps[first:stop] = own[weight]
    return rate, eps


def reference(name, dit, steps, gate_lr):
    """AdamW as published, in float64, row by row."""
    out = {}
    for parameter, p in dit.named_parameters():
        w, m, v = p.detach().double().clone(), 0, 0
        rate, eps = (x.double().reshape((-1, *(1,) * (p.ndim - 1)) if p.ndim else ()) for x in expected(name, parameter, p))
        gate = ".residuals." in parameter
        lr = 0.01 * rate * (gate_lr if gate else 1)
        for step in range(1, steps + 1):
            g = gradient(parameter, p, step).double()
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            w = w * (1 - lr * (0.1 if p.ndim >= 2 and not gate else 0))
            w = w - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-3 * eps)
        out[parameter] = w
    return out


def gradient(parameter, p, step):
    return 1e-2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(hash_of(parameter) + step))


def hash_of(text):
    return sum(ord(c) * 31**i for i, c in enumerate(text)) % 10**6


@pytest.mark.parametrize("gate_lr", [1.0, 0.1, 0.0])
@pytest.mark.parametrize("name", ["prenorm", "completep", "values", "lambdas", "streams"])
def test_every_row_moves_by_its_own_factors(name, gate_lr):
    dit = drawn(name)
    want = reference(name, dit, 4, gate_lr)
    start = {n: p.detach().clone() for n, p in dit.named_parameters()}
    flat = FlatParameters(dit, factors=of_model(dit))
    optimizer = flat.adamw(**ADAM, gate_lr=gate_lr)
    for step in range(1, 5):
        for parameter, p in dit.named_parameters():
            p.grad.copy_(gradient(parameter, p, step))
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["rate"]
        optimizer.step()
    for parameter, p in dit.named_parameters():
        torch.testing.assert_close(p.detach().double(), want[parameter], rtol=1e-5, atol=1e-6, msg=parameter)
        fixed = gate_lr == 0 and ".residuals." in parameter
        assert torch.equal(p, start[parameter]) is fixed, parameter


def test_the_leaves_are_few_and_plainly_named():
    """Without factors the groups of always; alike in all blocks two or three more; apart inside one parameter some of each block."""
    def leaves(name):
        dit = drawn(name)
        return list(FlatParameters(dit, factors=of_model(dit)).leaves)

    assert leaves("prenorm") == ["decay", "nodecay"] and leaves("streams") == list(GROUPS)
    assert leaves("completep") == ["decay", "decay rate=0.816496580927726 eps=0.816496580927726", "nodecay"]
    assert leaves("lambdas") == ["decay", "nodecay", "gates", "gates rate=0.01 eps=1.0"]
    many = leaves("values")
    assert len(many) == len(set(many)) == 1 + 1 + 3 * 2 + 3 * 2 + 1 + 1  # ends and w2; o; q with k, v, w1, w3 of each block; biases; gates


def test_second_moment_and_epsilon_lie_where_the_parameters_lie():
    dit = drawn("values")
    flat = FlatParameters(dit, factors=of_model(dit))
    optimizer = flat.adamw(**ADAM, gate_lr=1.0)
    for p in dit.parameters():
        p.grad.copy_(torch.arange(p.numel()).reshape(p.shape))
    optimizer.step()
    for parameter, p in dit.named_parameters():
        torch.testing.assert_close(flat.second_moment(optimizer)[flat.slices[parameter]], 1e-3 * p.grad.flatten().square())
        _, eps = expected("values", parameter, p)
        assert torch.equal(flat.eps_factors(parameter), eps.double().repeat_interleave(p.numel() // p.shape[0])), parameter


# ---- in a run

def run_of(name, **fields):
    (run,) = toys.runs(name, depth=3, lr=2.0**-7)
    fields = {"width": 16, "ffn": 24, "batch": 4, "fid_samples": 0, "final": "std", "warmup": 4} | fields
    return replace(run, protocol=replace(run.protocol, **fields))


def test_gates_that_do_not_move_are_fixed_and_the_rest_learns(tmp_path):
    ends = {}
    for gate_lr in (None, 1.0, 0.0):
        run = run_of("streams") if gate_lr is None else replace(run_of("streams"), gate_lr=gate_lr)
        trainer = Trainer(run, cached("digits"), tmp_path)
        start = {n: p.detach().clone() for n, p in trainer.state.dit.named_parameters()}
        for _ in range(5):
            trainer.advance()
        ends[gate_lr] = trainer.state.flat.values.clone()
        for n, p in trainer.state.dit.named_parameters():
            assert torch.equal(p, start[n]) is (gate_lr == 0 and ".residuals." in n), n
    assert torch.equal(ends[None], ends[1.0])  # the old behaviour, to the bit


@pytest.mark.parametrize("name", ["values", "completep", "lambdas"])
def test_the_captured_update_has_them_too(name, tmp_path):
    plain, mine = (Trainer(replace(run_of(name), gate_lr=0.5), cached("digits"), tmp_path) for _ in range(2))
    mine.train_step.graphs = cuda_graph.StepGraphs(mine.train_step.gradients, [mine.state.optimizer], mine.device, stand_in)
    for step in range(1, 7):
        plain.advance()
        mine.train_step.forward_backward(step)
        mine.train_step.update(step)
    # a factor is applied to a rate in float64 by one and in float32 by the other
    torch.testing.assert_close(mine.state.flat.values, plain.state.flat.values, rtol=1e-5, atol=1e-6)
    rates = {float(group["lr"]) / float(mine.train_step.rate(6)) for group in mine.state.optimizer.param_groups}
    assert len({round(rate, 3) for rate in rates}) == len({group["rate"] for group in mine.state.optimizer.param_groups}) > 1


# ---- what is refused

class Asks(Residual):
    """Has the factors it is told, at both sites."""

    def __init__(self, answer, shared=False):
        torch.nn.Module.__init__(self)
        self.answer, self.shared = answer, shared
        self.gate = torch.nn.Parameter(torch.ones(1))

    def factors(self, site):
        return self.answer.get(site, {}) if set(self.answer) <= set(WEIGHTS) else self.answer


@pytest.mark.parametrize(("answer", "words"), [
    ({"w9": Factors(2)}, ["Asks.factors('attn')", "'w9'", "q, k, v, o, gate"]),
    ({"w2": Factors(2)}, ["'w2'", "q, k, v, o, gate"]),  # of the other site
    ({"q": Factors(0.0)}, ["q has", "above 0"]), ({"q": Factors(-1.0)}, ["above 0"]), ({"q": Factors(1, math.inf)}, ["above 0"]),
    ({"q": Factors(math.nan)}, ["above 0"]), ({"q": 2.0}, ["q has 2.0, not Factors"]), ({"q": ("a", 1)}, ["not Factors"]),
])  # fmt: skip
def test_what_is_no_factor_is_one_line(answer, words):
    with pytest.raises(FactorError) as refused:
        of_block({"attn": Asks(answer), "ffn": Asks({})})
    assert all(word in str(refused.value) for word in words) and "\n" not in str(refused.value)


def test_a_shared_parameter_has_one_factor():
    one = Asks({"attn": {"gate": Factors(2)}, "ffn": {"gate": Factors(3)}}, shared=True)
    with pytest.raises(FactorError, match="gate is one parameter and has two factors"):
        of_block({"attn": one, "ffn": one})
    same = Asks({"attn": {"gate": Factors(2)}, "ffn": {"gate": Factors(2), "w2": Factors(eps=4)}}, shared=True)
    assert of_block({"attn": same, "ffn": same}) == {"residuals.0.gate": (Factors(2),), "w2": (Factors(eps=4),)}
    assert of_block({"attn": Asks({"q": Factors()}), "ffn": Asks({})}) == {}  # a factor of 1 is none


FAULTS = {
    "factors": ("def factors(self, site):\n        return {'w9': (2.0, 1.0)}", "names 'w9'"),
    "zero": ("def factors(self, site):\n        return {'gate_a': (0.0, 1.0)}", "finite number above 0"),
    "inner": ("def inner(self, h, ctx):\n        return h[..., :4]", "inner gives (2, 6, 4) in place of (2, 6, 8)"),
    "twice": ("def forward(self, x, branch, ctx):\n        return x + branch(branch(x))", "calls its branch 2 times"),
    "never": ("def forward(self, x, branch, ctx):\n        return 1.0 * x", "calls its branch 0 times"),
    "wide": ("def open(self, x, ctx):\n        return x.unsqueeze(2)\n    def fold(self, x):\n        return x[:, :, 0]",
             "branch is given (2, 6, 1, 8) in place of (2, 6, 8)"),
    "gates": ("def gates(self):\n        return {'a,b': self.gate_a}", "gates() gives 'a,b'"),
    "no tensor": ("def gates(self):\n        return {'a': 1.0}", "gates() gives 'a'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_plan_refuses_in_one_line(fault, tmp_path):
    body, words = FAULTS[fault]
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch\nfrom torch import nn\nfrom suite.registry import register\nfrom suite.residual import Residual\n"
        "@register('mine')\nclass Mine(Residual):\n    def __init__(self, site):\n        super().__init__(site)\n"
        "        self.gate_a = nn.Parameter(torch.ones(1))\n"
        "    def merge(self, x, f, ctx):\n        return x + self.gate_a * f\n    " + body
    )
    with pytest.raises(SelectionError) as refused:
        make_plan(Selection("smoke", schemes=("mine",), depths=(2,), plugins=(str(path),)))
    assert words in str(refused.value) and "\n" not in str(refused.value) and "scheme mine" in str(refused.value)
