"""Rectified flow: the path and its target, the batch stream, the sampler against closed forms, the held-out loss."""

import hashlib
from pathlib import Path

import pytest
import torch

from suite.data.captions import caption_table
from suite.data.in_memory import Data
from suite.model.flow import Batches, make_batch, sample
from suite.rng import generator
from suite.sweep.plan import Selection, make_plan
from suite.training.trainer import Trainer


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- path and target --------------------------------------------------------------------------------------------------


def test_path_and_target_identities():
    x0, labels = normal(50, 2, 4, 4), torch.arange(50) % 5
    batch = make_batch(x0, labels, 5, 0.3, generator("a"))
    g = generator("a")  # noise, then t, then what is dropped
    x1, t, dropped = (
        torch.randn(50, 2, 4, 4, generator=g),
        torch.rand(50, generator=g),
        torch.rand(50, generator=g) < 0.3,
    )
    assert torch.equal(batch.t_B, t)
    for i in range(50):
        assert torch.equal(batch.target_BCHW[i], x0[i] - x1[i])  # from noise to data
        torch.testing.assert_close(batch.z_BCHW[i], (1 - t[i]) * x0[i] + t[i] * x1[i])
        assert batch.caption_B[i] == (5 if dropped[i] else labels[i])
    t = t[:, None, None, None]
    torch.testing.assert_close(batch.z_BCHW + t * batch.target_BCHW, x0, rtol=1e-5, atol=1e-5)  # t = 0 is the data
    torch.testing.assert_close(batch.z_BCHW - (1 - t) * batch.target_BCHW, x1, rtol=1e-5, atol=1e-5)  # t = 1 the noise


def test_noise_is_standard_and_t_is_uniform():
    x0, labels = torch.zeros(4000, 1, 2, 2), torch.zeros(4000, dtype=torch.long)
    batch = make_batch(x0, labels, 1, 0.1, generator("b"))
    x1, t = -batch.target_BCHW, batch.t_B.sort().values
    assert abs(x1.mean()) < 5 / 16000**0.5 and x1.var().item() == pytest.approx(1, abs=5 * (2 / 16000) ** 0.5)
    assert (
        t[0] >= 0 and t[-1] < 1 and (t - (torch.arange(4000) + 0.5) / 4000).abs().max() < 2 / 4000**0.5
    )  # Kolmogorov-Smirnov
    correlation = torch.corrcoef(torch.stack([batch.t_B, x1[:, 0, 0, 0]]))[0, 1]
    assert abs(correlation) < 5 / 4000**0.5


def test_generators_with_different_keys_are_different_streams_and_the_same_key_is_the_same():
    keys = [("order", 0), ("order", 1), ("noise", 0), (0, "noise", 1), (1, "noise", 0), (0, "noise", 11), ("captions",)]
    draws = [tuple(torch.randn(3, generator=generator(*k)).tolist()) for k in keys]
    assert len(set(draws)) == len(keys)
    assert torch.equal(torch.randn(3, generator=generator(0, "noise", 1)), torch.tensor(draws[3]))
    seed = int.from_bytes(hashlib.sha256(b"0/noise/1").digest()[:8], "little") // 2  # the same on every machine
    assert generator(0, "noise", 1).initial_seed() == seed


def test_caption_table_has_an_empty_caption_and_the_same_rows_in_every_process():
    table = caption_table(10, 4, 32)
    assert table.shape == (11, 4, 32) and torch.equal(table, caption_table(10, 4, 32))
    assert len({tuple(row.flatten().tolist()) for row in table}) == 11
    assert abs(table.mean()) < 0.15 and table.std().item() == pytest.approx(1, abs=0.1)


# --- the batch stream -------------------------------------------------------------------------------------------------


def stream(n=20, batch=6, drop=0.0, seed=0):
    """Every image has its own label, so that `caption_B` says which rows a batch holds."""
    images, rows = normal(n, 1, 2, 2), torch.arange(n)
    return Batches(images.__getitem__, lambda rows: rows, n, rows, batch=batch, drop=drop, seed=seed)


def test_batches_are_a_pure_function_of_seed_and_step():
    forward = stream()
    reference = {step: forward(step) for step in range(1, 12)}
    for order in ([11, 1, 6, 6, 2, 10], [3], [10, 4]):  # across passes, back again, from a fresh stream
        other = stream()
        torch.manual_seed(sum(order))  # whatever the global stream is
        for step in order:
            assert all(torch.equal(a, b) for a, b in zip(other(step), reference[step], strict=True))
    state = torch.get_rng_state()
    stream()(1)
    assert torch.equal(torch.get_rng_state(), state)
    changed = stream(seed=1)
    for step in (1, 2):
        for part in ("z_BCHW", "target_BCHW", "t_B", "caption_B"):
            assert not torch.equal(getattr(changed(step), part), getattr(reference[step], part)), part
    assert not torch.equal(reference[1].t_B, reference[2].t_B)


@pytest.mark.parametrize(("n", "batch"), [(20, 6), (20, 5), (7, 20), (5, 5)])
def test_every_pass_holds_each_image_once_in_a_new_order(n, batch):
    s = stream(n, batch)
    passes = 6
    rows = torch.cat([s(step).caption_B for step in range(1, passes * n // batch + 2)])[: passes * n].view(passes, n)
    for one in rows:
        assert sorted(one.tolist()) == list(range(n))
    assert len({tuple(one.tolist()) for one in rows}) == passes


def test_images_stay_with_their_labels():
    s = stream()
    for step in (1, 4, 9):
        z, target, t, row = s(step)
        torch.testing.assert_close(z + t[:, None, None, None] * target, s.x0(row), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("drop", [0.0, 0.1, 1.0])
def test_captions_are_dropped_at_the_rate_that_was_asked(drop):
    s = stream(n=50, batch=50, drop=drop)
    empty = torch.stack([s(step).caption_B == 50 for step in range(1, 101)])
    n = empty.numel()
    assert abs(empty.float().mean() - drop) <= 5 * (drop * (1 - drop) / n) ** 0.5
    if drop == 0.1:  # independent of the image and of the time
        t = torch.stack([s(step).t_B for step in range(1, 101)])
        assert abs(t[empty].mean() - 0.5) < 5 * (1 / 12 / empty.sum()) ** 0.5
        kept = stream(n=50, batch=50)
        assert all(torch.equal(kept(3)[i], s(3)[i]) for i in range(3))  # dropping changes the captions alone


# --- the sampler ------------------------------------------------------------------------------------------------------

A, SHAPE = -0.7, (1, 2, 3)
CAPTIONS, EMPTY = normal(5, 2, 4, seed=3), normal(2, 4, seed=4)


def linear(z, captions, t):
    """dz/ds = A z + b with b read off the caption, one number each."""
    return A * z + captions.sum((1, 2))[:, None, None, None]


def draw(velocity=linear, captions=CAPTIONS, *, nfe=7, guidance=1.0, chunk=5, key="s", shape=SHAPE):
    return sample(velocity, captions, EMPTY, shape, nfe=nfe, guidance=guidance, noise=generator(key), chunk=chunk)


@pytest.mark.parametrize("nfe", [1, 2, 25])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0, -0.5])
def test_euler_on_a_linear_field_is_its_closed_form(nfe, guidance):
    z0 = torch.randn(5, *SHAPE, generator=generator("s")).double()
    b_caption, b_empty = CAPTIONS.double().sum((1, 2)), EMPTY.double().sum()
    b = (b_empty + guidance * (b_caption - b_empty))[:, None, None, None]
    growth = (1 + A / nfe) ** nfe
    torch.testing.assert_close(
        draw(nfe=nfe, guidance=guidance).double(), growth * z0 + b * (growth - 1) / A, rtol=1e-5, atol=1e-5
    )


def test_euler_converges_to_the_flow_of_the_field():
    z0 = torch.randn(5, *SHAPE, generator=generator("s"))
    b = CAPTIONS.sum((1, 2))[:, None, None, None]
    exact = torch.exp(torch.tensor(A)) * z0 + b * (torch.exp(torch.tensor(A)) - 1) / A
    coarse, fine = ((draw(nfe=n) - exact).abs().max() for n in (20, 200))
    assert 8 < coarse / fine < 12  # first order


@pytest.mark.parametrize("nfe", [1, 7])
def test_the_rectified_velocity_carries_the_noise_to_the_data_in_any_number_of_steps(nfe):
    data = normal(5, *SHAPE, seed=8)
    noise = torch.randn(5, *SHAPE, generator=generator("s"))
    out = draw(lambda z, c, t: torch.cat([data - noise] * 2), nfe=nfe, guidance=3.0)  # v = x0 - x1
    torch.testing.assert_close(out, data, rtol=1e-5, atol=1e-5)


def test_guidance_one_is_the_conditional_field_alone_and_zero_the_empty_one():
    loud = EMPTY + 100

    def quiet(z, captions, t):  # what the empty half says must not matter at w = 1
        return linear(z, captions, t)

    ours = sample(quiet, CAPTIONS, EMPTY, SHAPE, nfe=5, guidance=1.0, noise=generator("s"), chunk=5)
    theirs = sample(quiet, CAPTIONS, loud, SHAPE, nfe=5, guidance=1.0, noise=generator("s"), chunk=5)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    other = sample(quiet, -CAPTIONS, EMPTY, SHAPE, nfe=5, guidance=0.0, noise=generator("s"), chunk=5)
    zero = sample(quiet, CAPTIONS, EMPTY, SHAPE, nfe=5, guidance=0.0, noise=generator("s"), chunk=5)
    torch.testing.assert_close(other, zero)
    assert (ours - zero).abs().max() > 0.1


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8])
def test_samples_do_not_depend_on_the_chunk_and_every_forward_has_one_shape(chunk):
    calls, times = [], []

    def spy(z, captions, t):
        calls.append((z.shape[0], captions.shape[0]))
        times.append(t.tolist())
        torch.testing.assert_close(captions[chunk:], EMPTY.expand(chunk, 2, 4))  # the unguided half
        assert torch.equal(z[:chunk], z[chunk:])
        return linear(z, captions, t)

    out = draw(spy, guidance=2.0, chunk=chunk, nfe=4)
    assert (
        torch.equal(out, draw(guidance=2.0, chunk=5, nfe=4)) and out.dtype == torch.float32 and out.shape == (5, *SHAPE)
    )
    assert calls == [(2 * chunk, 2 * chunk)] * (4 * -(-5 // chunk))
    assert times == [[t] * 2 * chunk for t in (1.0, 0.75, 0.5, 0.25)] * -(-5 // chunk)  # from noise to data


def test_samples_of_a_model_do_not_depend_on_the_chunk(tiny_model):
    model, captions = tiny_model("mvsplit"), normal(5, 3, 16)
    images = [
        sample(model, captions, captions[0], (2, 4, 4), nfe=3, guidance=2.0, noise=generator("m"), chunk=c)
        for c in (2, 5)
    ]
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-5)
    assert not images[0].requires_grad


def test_the_sampler_leaves_the_global_random_numbers_alone():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = draw()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert torch.equal(draw(), first)
    assert not torch.equal(draw(key="t"), first)


# --- training and held-out loss ---------------------------------------------------------------------------------------

CLASSES = 5


@pytest.fixture(scope="module")
def data():
    """A hundred made-up images, 70 of them held out: more than one forward's rows."""
    images = normal(100, 1, 4, 4)
    labels = torch.randint(CLASSES, (100,), generator=torch.Generator().manual_seed(2))
    one = torch.ones(1, 1, 1)
    return Data("made-up", images, labels, torch.arange(30), torch.arange(30, 100), 0 * one, one, CLASSES, "0" * 16)


def trainer(data, scheme="mvsplit", seed=0):
    (run,) = make_plan(Selection(protocol="smoke", schemes=(scheme,), depths=(1,), seeds=(seed,)))
    return Trainer(run, data, Path("unused"))


def test_heldout_loss_is_the_plain_mean_over_fixed_noise_and_times(data):
    t = trainer(data)
    t.state.dit.init_weights(1, init="fan_in", writers="std", final="std")  # with zero writers no caption would matter
    table = caption_table(CLASSES, 4, 32)
    g = generator("heldout")
    x1, time = torch.randn(70, 1, 4, 4, generator=g), torch.rand(70, generator=g)
    errors = []
    with torch.no_grad():
        for i in range(70):  # one image at a time, never a dropped caption
            x0 = data.images_NCHW[30 + i]
            z = (1 - time[i]) * x0 + time[i] * x1[i]
            v = t.state.dit(z[None].to(t.device), table[data.labels_N[30 + i]][None].to(t.device), time[i : i + 1].to(t.device))[0].cpu()
            errors.append((v - (x0 - x1[i])).square().mean().item())
    assert t.evaluation.heldout_loss() == pytest.approx(sum(errors) / 70, rel=1e-5)


def test_heldout_loss_is_the_same_for_every_run_and_disturbs_none(data):
    runs = [trainer(data, *which) for which in (("mvsplit", 0), ("plain", 0), ("plain", 3))]
    zero_final = [r.evaluation.heldout_loss() for r in runs]  # all predict 0: the noise and the times must be the same
    assert zero_final[0] == zero_final[1] == zero_final[2] == pytest.approx(2, rel=0.2)
    measured, silent = trainer(data), trainer(data)
    for _ in range(3):
        state = torch.get_rng_state()
        measured.evaluation.heldout_loss()
        measured.evaluation.sample(3)
        assert torch.equal(torch.get_rng_state(), state)
        assert measured.advance() and silent.advance()
    assert measured.state.curve == silent.state.curve
    assert torch.equal(measured.state.flat.values, silent.state.flat.values)
    assert measured.evaluation.heldout_loss() != zero_final[0]


def test_training_never_sees_a_heldout_image(data):
    t, p = trainer(data), trainer(data).run.protocol
    train = data.images_NCHW[data.train]
    for step in (1, 2, 5):
        z, target, time, caption = (part.cpu() for part in t.train_step.batch(step))
        x0 = z + time[:, None, None, None] * target
        nearest, row = (x0[:, None] - train[None]).abs().amax((2, 3, 4)).min(1)
        assert len(x0) == p.batch and nearest.max() < 1e-5
        assert ((caption == CLASSES) | (caption == data.labels_N[data.train][row])).all() and (caption < CLASSES).any()


def test_the_first_loss_is_the_mean_square_of_the_target(data):
    t = trainer(data, "plain")  # the output projection starts at zero: Eq. 2 of a zero velocity
    assert t.advance()
    ((_, loss, _),) = t.state.curve
    assert loss == pytest.approx(t.train_step.batch(1).target_BCHW.square().mean().item(), rel=1e-6)
