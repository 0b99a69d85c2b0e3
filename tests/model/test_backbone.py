"""The transformer against a reference written with explicit loops in float64, and the properties the paper gives it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from suite import registry
from suite.model.backbone import Block, attention_matrix, init_std, rope_2d, rotate
from suite.presets import PROTOCOLS
from suite.protocol import Run
from suite.residual import EPS, rms_norm
from suite.training.state import build_model

TIMES = torch.tensor([0.3, 0.8])
SIZES = {
    "width": 16,
    "heads": 2,
    "ffn": 24,
    "depth": 2,
    "patch": 2,
    "channels": 2,
    "image_size": 4,
    "caption_tokens": 3,
}


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def shake(model, seed=0):
    """Gates at random places."""
    draw = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if ".residuals." in name:
            p.data.copy_(0.5 + torch.rand(p.shape, generator=draw))
    return model


# --- the reference: one sample, one token, one head, one channel at a time --------------------------------------------


def naive_rms(v):
    return v / math.sqrt(sum(x * x for x in v) / len(v) + 1e-6)


def naive_rope(head, row, column):
    """Half-split pairs (i, i + K/2); the first quarter of the head turns with the row, the second with the column."""
    out, half = head.copy(), len(head) // 2
    for i in range(half):
        if row is None:
            continue  # a caption token has no place
        place, j = (row, i) if i < half // 2 else (column, i - half // 2)
        angle = place * 10000.0 ** (-2 * j / half)
        out[i] = head[i] * math.cos(angle) - head[i + half] * math.sin(angle)
        out[i + half] = head[i + half] * math.cos(angle) + head[i] * math.sin(angle)
    return out


def naive_attention(w, x, places, heads):
    d = x.shape[1]
    k = d // heads
    q_rows, k_rows, v_rows = w["wqkv"][:d], w["wqkv"][d : 2 * d], w["wqkv"][2 * d :]
    mixed = np.zeros_like(x)
    for h in range(heads):
        rows = slice(h * k, (h + 1) * k)
        query = [naive_rms(naive_rope(q_rows[rows] @ token, *place)) for token, place in zip(x, places, strict=True)]
        key = [naive_rms(naive_rope(k_rows[rows] @ token, *place)) for token, place in zip(x, places, strict=True)]
        value = [v_rows[rows] @ token for token in x]
        for t in range(len(x)):
            logits = [query[t] @ key[s] / math.sqrt(k) for s in range(len(x))]
            weights = [math.exp(a) for a in logits]
            for s in range(len(x)):
                mixed[t, rows] += weights[s] / sum(weights) * value[s]
    return mixed @ w["wo"].T


def naive_ffn(w, x):
    hidden = len(w["w13"]) // 2
    out = np.zeros_like(x)
    for t, token in enumerate(x):
        gate, value = w["w13"][:hidden] @ token, w["w13"][hidden:] @ token
        out[t] = w["w2"] @ np.array([g / (1 + math.exp(-g)) * v for g, v in zip(gate, value, strict=True)])
    return out


def naive_mean(x, images):
    out = np.zeros_like(x)
    for part in (range(images), range(images, len(x))):
        for t in part:
            out[t] = sum(x[s] for s in part) / len(part)
    return out


def naive_merge(scheme, gates, x, f, images):
    if scheme == "plain":
        return x + f
    if scheme == "deepnorm":
        return gates["alpha"] * x + f
    if scheme == "rezero":
        return x + gates["gate_alpha"] * f
    if scheme == "layerscale":
        return x + gates["gate_lambda"] * f
    mean_x, mean_f = naive_mean(x, images), naive_mean(f, images)
    return x + gates["gate_beta"] * (f - mean_f) + gates["gate_alpha"] * (mean_f - mean_x)


def naive_dit(scheme, state, image, caption, heads, patch, depth):
    state = {k: v.double().numpy() for k, v in state.items()}
    channels, size, _ = image[0].shape
    grid = size // patch
    places = [(r, c) for r in range(grid) for c in range(grid)] + [(None, None)] * caption.shape[1]
    out = np.zeros(image.shape)
    for b in range(len(image)):
        x = []
        for r, c in places[: grid * grid]:
            token = [
                image[b, ch, r * patch + i, c * patch + j]
                for ch in range(channels)
                for i in range(patch)
                for j in range(patch)
            ]
            x.append(naive_rms(state["embed.weight"] @ np.array(token) + state["embed.bias"]))
        x = np.array(x + [naive_rms(token) for token in caption[b]])
        for index in range(depth):
            prefix = f"blocks.{index}."
            w = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            for site, merge in (("attn", 0), ("ffn", 0 if scheme == "rezero" else 1)):
                f = naive_attention(w, x, places, heads) if site == "attn" else naive_ffn(w, x)
                gates = {k.split(".")[-1]: v for k, v in w.items() if k.startswith(f"residuals.{merge}.")}
                x = np.array([naive_rms(z) for z in naive_merge(scheme, gates, x, f, grid * grid)])
        for (r, c), token in zip(places[: grid * grid], x, strict=False):
            e = iter(state["final.weight"] @ token + state["final.bias"])
            for ch in range(channels):
                for i in range(patch):
                    for j in range(patch):
                        out[b, ch, r * patch + i, c * patch + j] = next(e)
    return out


@pytest.mark.parametrize("scheme", ["plain", "layerscale", "rezero", "deepnorm", "mvsplit"])
def test_the_model_is_the_reference_in_float64(scheme, tiny_model):
    model = shake(tiny_model(scheme, image_size=6)).double()  # 3 x 3 image tokens
    with torch.no_grad():
        for block in model.blocks:  # queries and captions so small that eps counts in their norms
            block.wqkv[:8] *= 2e-3
        image, caption = normal(2, 2, 6, 6, dtype=torch.float64), normal(2, 3, 16, seed=1, dtype=torch.float64)
        caption[:, 1] *= 1e-3
        model.rope = rope_2d_float64(3, 12, 8)
        out = model(image, caption, TIMES)
    expected = naive_dit(scheme, model.state_dict(), image.numpy(), caption.numpy(), heads=2, patch=2, depth=2)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-10, atol=1e-11)
    model32 = shake(tiny_model(scheme, image_size=6))
    model32.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    np.testing.assert_allclose(model32(image.float(), caption.float(), TIMES).detach().numpy(), expected, atol=2e-5)


def rope_2d_float64(grid, tokens, head_dim):
    """The angles of `rope_2d`, checked to be them, without its rounding to float32."""
    table = rope_2d(grid, tokens, head_dim)
    angle = np.zeros((tokens, head_dim // 2))
    for t in range(grid * grid):
        for i in range(head_dim // 4):
            angle[t, i] = (t // grid) * 10000.0 ** (-4 * i / head_dim)
            angle[t, i + head_dim // 4] = (t % grid) * 10000.0 ** (-4 * i / head_dim)
    exact = torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)]))
    assert table.dtype == torch.float32 and torch.equal(table, exact.float())
    return exact


# --- its parts --------------------------------------------------------------------------------------------------------


def test_rope_turns_image_tokens_by_relative_place_and_leaves_captions_alone():
    rope = rope_2d(3, 12, 8)
    x, y = normal(1, 1, 2, 8), normal(1, 1, 2, 8, seed=1)
    rx, ry = rotate(x.expand(1, 12, 2, 8), rope), rotate(y.expand(1, 12, 2, 8), rope)
    assert torch.equal(rx[:, 9:], x.expand(1, 3, 2, 8))
    torch.testing.assert_close(rx.norm(dim=-1), x.norm(dim=-1).expand(1, 12, 2))
    dot = torch.einsum("tnk,snk->tsn", rx[0], ry[0])
    for t, s in ((0, 4), (1, 5), (3, 7), (4, 8)):  # one row down, one column right, from anywhere
        torch.testing.assert_close(dot[t, s], dot[0, 4])
    assert (dot[0, 1] - dot[0, 3]).abs().max() > 1e-3  # a row is not a column


def test_queries_are_rotated_before_they_are_normalised_and_values_are_neither(tiny_model):
    model = tiny_model()
    block, x = model.blocks[0], normal(2, 7, 16)
    q, k, v = block.qkv(x, model.rope)
    assert q.shape == k.shape == v.shape == (2, 2, 7, 8)
    for part in (q, k):
        torch.testing.assert_close(part.square().mean(-1), torch.ones(2, 2, 7), atol=1e-4, rtol=0)
    torch.testing.assert_close(v.transpose(1, 2).flatten(2), x @ block.weights("attn")["v"].T)
    # a rotation keeps the norm, so the order shows only where the table is none: a norm behind it undoes a stretch
    torch.testing.assert_close(block.qkv(x, 3 * model.rope)[0], q, atol=1e-3, rtol=0)


def test_rms_norm_eps_is_that_of_table_3():
    assert EPS == 1e-6
    x = torch.full((1, 1, 4), 1e-3, dtype=torch.float64)
    torch.testing.assert_close(rms_norm(x), x / math.sqrt(2e-6))


@pytest.mark.parametrize("tokens", [20, 68, 137])
def test_attention_written_out_equals_the_fused_operator(tokens):
    q, k, v = (3 * normal(2, 2, tokens, 8, seed=i) for i in range(3))
    matrix = attention_matrix(q, k)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 2, tokens))
    fused = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(matrix @ v, fused, atol=2e-6, rtol=1e-5)
    block = Block(16, 2, 24, 1, 0, registry.get("plain", "controlled").cls)
    torch.testing.assert_close(block.heads_out(q, k, v), fused.transpose(1, 2).reshape(2, tokens, 16), atol=2e-6, rtol=1e-5)


def test_patching_is_a_strided_convolution_and_pixels_undoes_it(tiny_model):
    model = tiny_model(width=8, image_size=8)
    image, caption = normal(3, 2, 8, 8), normal(3, 3, 8, seed=1)
    tokens = model.tokens(image, caption)
    convolved = (
        F.conv2d(image, model.embed.weight.view(8, 2, 2, 2), model.embed.bias, stride=2).flatten(2).transpose(1, 2)
    )
    torch.testing.assert_close(tokens[:, :16], rms_norm(convolved))
    torch.testing.assert_close(tokens[:, 16:], rms_norm(caption))
    model.embed.weight.data.copy_(torch.eye(8)), model.embed.bias.data.zero_()
    norm = F.avg_pool2d(image.square().mean(1, keepdim=True), 2).add(1e-6).sqrt()  # undo the norm of each token
    back = model.pixels(model.tokens(image, caption)[:, :16], image) * norm.repeat_interleave(2, 2).repeat_interleave(
        2, 3
    )
    torch.testing.assert_close(back, image)


def test_the_image_output_does_not_know_the_order_of_the_captions(tiny_model):
    for scheme in ("plain", "mvsplit"):
        model = shake(tiny_model(scheme)).double()
        image, caption = normal(2, 2, 4, 4, dtype=torch.float64), normal(2, 3, 16, seed=1, dtype=torch.float64)
        out = model(image, caption, TIMES)
        torch.testing.assert_close(model(image, caption[:, [2, 0, 1]], TIMES), out, rtol=1e-11, atol=1e-12)
        assert (model(image, caption[[1, 0]], TIMES) - out).abs().max() > 1e-3  # but it does read them
        assert (model(image.flip(-1), caption, TIMES).flip(-1) - out).abs().max() > 1e-3  # and it knows places


@pytest.mark.parametrize("scheme", ["plain", "layerscale", "mvsplit"])
def test_zero_writers_make_the_network_the_identity_on_normalised_tokens(scheme, tiny_model):
    model = tiny_model(scheme, depth=30, writers="zero").double()
    x = normal(2, 7, 16, dtype=torch.float64)
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    out = model._blocks(x, TIMES, 0, 30)
    torch.testing.assert_close(out, x, rtol=1e-6, atol=0)  # a chain of 60 norms shrinks by eps / 2 once, not 60 times


@pytest.mark.parametrize("checkpointed", [False, True])
def test_every_token_and_channel_of_the_output_reaches_back(checkpointed, tiny_model):
    model = tiny_model(checkpoint_blocks=checkpointed)
    image, caption = normal(2, 2, 4, 4).requires_grad_(), normal(2, 3, 16, seed=1).requires_grad_()
    model(image, caption, TIMES)[0].square().sum().backward()
    assert (image.grad[0] != 0).all() and (caption.grad[0] != 0).any(-1).all()
    assert image.grad[1].count_nonzero() == caption.grad[1].count_nonzero() == 0  # samples do not mix


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "billions"), [(400, 5.45), (1000, 13.64)])
def test_the_paper_preset_has_the_parameters_of_table_3(depth, billions):
    p = PROTOCOLS["paper"]
    run = Run(p, "mvsplit", "controlled", "", "zero", depth, p.lrs[0], 0, p.data, "", "", False)
    with torch.device("meta"):
        model = build_model(run, (128, 16, 16))
    assert all(t.is_meta for t in model.parameters()) and model.segments[0] == 256
    blocks = depth * (4 * 1024**2 + 3 * 1024 * 3072)
    gates = depth * 2 * 2 * 1024  # alpha and beta at both merges
    ends = (128 * 1024 + 1024) + (1024 * 128 + 128)
    total = sum(q.numel() for q in model.parameters())
    assert total == blocks + gates + ends
    assert round(total / 1e9, 2) == billions
    assert len(model.blocks) == depth
    biased = [n for n, _ in model.named_parameters() if "bias" in n]
    assert biased == ["embed.bias", "final.bias"]


# --- activation checkpointing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["plain", "mvsplit", "rezero"])
@pytest.mark.parametrize("depth", [1, 5, 9])
def test_checkpointing_recomputes_and_changes_no_bit(scheme, depth, tiny_model):
    results = []
    for checkpointed in (False, True):
        model, forwards = shake(tiny_model(scheme, depth=depth, checkpoint_blocks=checkpointed)), []
        for i, block in enumerate(model.blocks):
            block.register_forward_pre_hook(lambda *_, i=i, to=forwards: to.append(i))
        out = model(normal(2, 2, 4, 4), normal(2, 3, 16, seed=1), TIMES)
        first = len(forwards)
        out.square().mean().backward()
        results.append(
            (out.detach(), {n: p.grad for n, p in model.named_parameters()}, first, sorted(forwards[first:]))
        )
        forwards.clear()
        with torch.no_grad():
            model(normal(2, 2, 4, 4), normal(2, 3, 16, seed=1), TIMES)
        assert forwards == list(range(depth))
    (out, grads, first, again), (out_c, grads_c, first_c, again_c) = results
    assert first == first_c == depth and again == [] and again_c == list(range(depth))  # every block once more
    assert torch.equal(out, out_c)
    assert all(torch.equal(grads[n], grads_c[n]) for n in grads)


def test_checkpointed_segments_are_about_the_root_of_the_depth(tiny_model):
    for depth, segment in ((1, 1), (4, 2), (5, 3), (9, 3), (10, 4)):
        assert tiny_model(depth=depth, checkpoint_blocks=True).segment == segment


# --- initialisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["0.02", "fan_in"])
def test_weights_have_the_papers_standard_deviation(tiny_model, init):
    assert {p.init for p in PROTOCOLS.values()} == {"0.02"}  # Table 3, App. B
    assert init_std("fan_in", 1024) == init_std("0.02", 7) == 0.02  # one number at the paper's width
    model = tiny_model(width=128, ffn=192, patch=4, channels=4, init=init)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            expected = 0.02 if init == "0.02" else 0.64 * p.shape[1] ** -0.5
            assert p.std().item() == pytest.approx(expected, rel=5 / (2 * p.numel()) ** 0.5), (
                name
            )  # five standard errors
            assert abs(p.mean().item()) < 5 * expected / p.numel() ** 0.5, name
            kurtosis = (p / p.std()).pow(4).mean().item()
            assert kurtosis == pytest.approx(3, abs=5 * (24 / p.numel()) ** 0.5), name
        elif init == "0.02":
            assert p.count_nonzero() == 0, name
        else:
            bound = model.get_parameter(name.replace("bias", "weight")).shape[1] ** -0.5
            assert p.abs().max() <= bound and p.std().item() == pytest.approx(bound / 3**0.5, rel=0.3), name


def test_zero_writers_and_zero_final_are_exactly_that(tiny_model):
    model = tiny_model(writers="zero", final="zero")
    zeros = {n for n, p in model.named_parameters() if p.count_nonzero() == 0}
    assert zeros == {f"blocks.{i}.{w}" for i in (0, 1) for w in ("wo", "w2")} | {"final.weight", "final.bias"}
    assert model(normal(2, 2, 4, 4), normal(2, 3, 16), TIMES).count_nonzero() == 0


def test_each_weight_has_a_draw_of_its_own_keyed_by_seed_and_name(tiny_model):
    two, five = tiny_model(seed=1).state_dict(), tiny_model(seed=1, depth=5).state_dict()
    for name in two:
        assert torch.equal(two[name], five[name]), name
    zero = tiny_model(seed=1, writers="zero").state_dict()
    assert all(torch.equal(zero[n], two[n]) for n in two if not n.endswith(("wo", "w2")))
    other = tiny_model(seed=2).state_dict()
    assert not any(torch.equal(other[n], two[n]) for n in two)
    drawn = [p.flatten()[:16] / p.flatten()[0] for n, p in five.items() if p.numel() >= 16 and p.ndim == 2]
    assert all(not torch.allclose(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_drawing_weights_neither_reads_nor_moves_the_global_random_numbers(tiny_model):
    first = tiny_model().state_dict()
    model = tiny_model(seed=1)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    model.init_weights(0, init="fan_in", writers="std", final="std")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[n], t) for n, t in model.state_dict().items())
