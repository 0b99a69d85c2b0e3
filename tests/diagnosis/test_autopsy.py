"""Interventions on stand-ins of which it is known what they use, and on small networks of the suite."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from suite.data.in_memory import standardise
from suite.diagnosis.autopsy import autopsy, interventions
from suite.environment import provenance
from suite.records.schema import TABLES

PATCH, TOKENS, CLASSES = 2, 4, 3
NAMES = ("none", "others", "positions", "attention", "time", "caption", "own", "all")


@pytest.fixture(scope="module")
def bright():
    """600 images of 4 x 4 pixels, 99 of them held out; a class is a brightness of all pixels, and every image has the same gradient."""
    labels = np.arange(600) % CLASSES
    pixels = 0.1 * np.random.default_rng(0).random((600, 1, 4, 4)) + 0.3 * labels[:, None, None, None]
    pixels += 0.1 * np.arange(4)[:, None]
    return standardise("bright", pixels.astype(np.float32), labels, CLASSES)


def wide(t_B):
    return t_B[:, None, None, None]


def constant(z, caption, t, attention):
    return torch.full_like(z, 0.3)


def own_patch(z, caption, t, attention):
    """The same map of each pixel: for a variance of 1 the best that is linear without the denominator."""
    return (1 - 2 * wide(t)) * z


def other_tokens(z, caption, t, attention):
    """Each token is told the brightness by the others alone."""
    tokens_BEI = F.pixel_unshuffle(z, PATCH).flatten(2)
    mean_BEI = (tokens_BEI.mean((1, 2), keepdim=True) * TOKENS - tokens_BEI.mean(1, keepdim=True)) / (TOKENS - 1)
    return F.pixel_shuffle(mean_BEI.expand_as(tokens_BEI).unflatten(2, (2, 2)), PATCH)


def by_attention_alone(z, caption, t, attention):
    return own_patch(z, caption, t, attention) * float(attention)


def stand_ins(data):
    """Velocity, the interventions that must raise its loss, and those that change its answers for as good ones."""
    train, classes = data.x0(data.train), data.caption(data.train)
    by_class = torch.stack([train[classes == k].mean() for k in range(CLASSES)])
    return {
        "constant": (constant, set(), set()),
        "own patch": (own_patch, {"own", "time", "all"}, set()),
        "other tokens": (other_tokens, {"others", "all"}, {"time"}),
        "position": (lambda z, *_: train.mean(0).expand_as(z), {"positions"}, set()),
        "caption": (lambda z, caption, *_: wide(by_class[caption[:, 0, 0].long()]).expand_as(z), {"caption", "all"}, set()),
        "attention": (by_attention_alone, {"attention", "own", "time", "all"}, set()),
    }  # fmt: skip


def examined(velocity, data):
    table = torch.arange(CLASSES, dtype=torch.float)[:, None, None]  # a caption is its class
    return {row["intervention"]: row for row in interventions(velocity, data, lambda rows: table[data.caption(rows)], PATCH)}


@pytest.mark.parametrize("name", ["constant", "own patch", "other tokens", "position", "caption", "attention"])
def test_the_loss_rises_where_what_was_used_is_taken_and_nowhere_else(bright, name):
    velocity, raised, changed = stand_ins(bright)[name]
    rows = examined(velocity, bright)
    assert tuple(rows) == NAMES and {row["samples"] for row in rows.values()} == {len(bright.heldout)} == {99}
    for intervention, row in rows.items():
        if intervention in raised:
            assert row["change"] > 0.05 and row["rise"] > 4 * row["rise_se"] > 0, (intervention, row)
        elif intervention in changed:
            assert row["change"] > 0.05 and abs(row["rise"]) < 4 * row["rise_se"], (intervention, row)
        else:
            assert abs(row["rise"]) < 1e-6 and row["change"] < 1e-6, (intervention, row)


def test_what_is_exchanged_is_what_the_table_says(bright):
    """What the network is shown, beside images that are mixed here from pictures, noise and t."""
    shown = []

    def velocity(z, caption, t, attention):
        shown.append((z.clone(), caption[:, 0, 0].long(), t))
        return torch.zeros_like(z)

    examined(velocity, bright)
    none, others, positions, attention, time, caption, own, every = (
        shown[0], shown[1:5], shown[5], shown[6], shown[7:11], shown[11], shown[12:16], shown[16])  # fmt: skip
    z, classes, t = none
    x0 = bright.x0(bright.heldout)
    x1 = (z - (1 - wide(t)) * x0) / wide(t)
    clear = t > 0.05  # elsewhere the noise cannot be told from the sum
    partner = torch.cdist(every[0].flatten(1), z.flatten(1)).argmin(1)
    assert torch.equal(partner.sort().values, torch.arange(99)) and (classes[partner] != classes).all()
    assert torch.equal(every[1], classes[partner]) and torch.equal(every[2], t[partner])
    at_t = (1 - wide(t)) * x0[partner] + wide(t) * x1[partner]
    later = (1 - wide(t[partner])) * x0 + wide(t[partner]) * x1
    tokens = [(slice(r, r + 2), slice(c, c + 2)) for r in (0, 2) for c in (0, 2)]
    for i, (rows, columns) in enumerate(tokens):
        target = torch.zeros(4, 4, dtype=torch.bool)
        target[rows, columns] = True
        mixed = ((others[i], z, at_t, clear[partner]), (own[i], at_t, z, clear[partner]), (time[i], z, later, clear))
        for seen, alone, rest, good in mixed:
            assert torch.allclose(seen[0][good], torch.where(target, alone, rest)[good], atol=1e-4)
            assert torch.equal(seen[1], classes)
        assert torch.equal(time[i][2], t[partner]) and torch.equal(own[i][2], t) and torch.equal(others[i][2], t)
    assert torch.equal(attention[0], z) and torch.equal(caption[0], z) and torch.equal(caption[1], classes[partner])
    before, after = (torch.stack([of[0][:, 0, r, c].flatten(1) for r, c in tokens], 1) for of in (none, positions))
    same = (after[:, :, None] == before[:, None]).all(-1)
    assert (same.sum(1) == 1).all() and not same.diagonal(dim1=1, dim2=2).any()  # each token once, and none in its place


def test_a_real_network_is_examined_and_left_as_it_was(start):
    trainer, bare = start("mvsplit", lr=1e-2), start("mvsplit", lr=1e-2)
    for one in (trainer, bare):
        for _ in range(6):
            one.advance()
    rows = autopsy(trainer)
    assert {row["intervention"]: row for row in rows}["none"]["loss"] == pytest.approx(float(trainer.evaluation.heldout_loss()), rel=1e-6)
    assert set(rows[0]) | set(provenance()) == {column.name for column in TABLES["autopsy"].columns}
    assert (rows[0]["last_step"], rows[0]["outcome"], rows[0]["image_tokens"]) == (6, "too_short", 4)
    for one in (trainer, bare):
        one.advance()
    assert trainer.state.curve == bare.state.curve and torch.equal(trainer.state.flat.values, bare.state.flat.values)


def test_without_attention_is_as_if_its_writers_were_zero(start):
    trainer = start("mvsplit", lr=1e-2)
    for _ in range(6):
        trainer.advance()
    without = {row["intervention"]: row for row in autopsy(trainer)}["attention"]
    with torch.no_grad():
        for block in trainer.state.dit.blocks:
            block.wo.zero_()
    zeroed = {row["intervention"]: row for row in autopsy(trainer)}
    assert without["change"] > 1e-3 and zeroed["attention"]["change"] == 0
    assert zeroed["none"]["loss"] == pytest.approx(without["loss"], rel=1e-6)
