"""The single-stream Post-Norm diffusion transformer of arXiv:2605.06169, section 2 and Table 3.

No AdaLN, and of the timestep only what a scheme makes of it; image and caption tokens in one sequence; 2-D RoPE on
image tokens, then QK-Norm, then attention; SwiGLU; non-affine RMSNorm; no biases in blocks; two merges a block.

Shapes: B batch, C channels, H, W pixels, I image tokens, T all tokens, D width, N heads, K head dimension, F FFN width,
E = C * patch * patch values of an image token, G width of given captions, or of gates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from suite.residual import WEIGHTS, Context, Residual, Site, rms_norm
from suite.rng import generator, seeded

if TYPE_CHECKING:
    from suite.model.compiled_blocks import CompiledBlocks

SiteFactory = Callable[[Site], Residual]
PARTS = {"wqkv": ("q", "k", "v"), "wo": ("o",), "w13": ("w1", "w3"), "w2": ("w2",)}  # equal shares of a parameter's rows


def linear(fan_in: int, fan_out: int) -> nn.Parameter:
    """An undrawn (fan_out, fan_in) weight; `DiT.init_weights` fills it."""
    return nn.Parameter(torch.empty(fan_out, fan_in))


FAN_IN = 0.64  # std times sqrt(fan_in): the paper's 0.02 at its width of 1024


def init_std(init: str, fan_in: int) -> float:
    """Standard deviation of a weight of `fan_in` inputs: the number that init is, or 0.64/sqrt(fan_in) where it is "fan_in"."""
    return FAN_IN * fan_in**-0.5 if init == "fan_in" else float(init)


def rope_2d(grid: int, tokens: int, head_dim: int, theta: float = 1e4) -> Tensor:
    """(2, tokens, head_dim/2) cosines and sines: half the angles for the row, half for the column, identity on captions.

    inv_freq = theta^(-arange(0, head_dim/2, 2)/(head_dim/2)), half-split pairs, as in the official code, which turns
    the other way: equivalent, with the sign of half of each head's query and key rows changed.
    """
    inv_freq = theta ** -(torch.arange(0, head_dim // 2, 2, dtype=torch.float64) / (head_dim // 2))
    position = torch.arange(grid, dtype=torch.float64)
    row = torch.outer(position.repeat_interleave(grid), inv_freq)
    column = torch.outer(position.repeat(grid), inv_freq)
    angle = torch.zeros(tokens, head_dim // 2, dtype=torch.float64)
    angle[: grid * grid] = torch.cat([row, column], dim=1)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x_BTNK: Tensor, rope: Tensor) -> Tensor:
    """Rotate the half-split pairs of the last axis by `rope_2d`'s angles."""
    cos_TNK, sin_TNK = rope[0, :, None], rope[1, :, None]
    a, b = x_BTNK.chunk(2, dim=-1)
    return torch.cat([a * cos_TNK - b * sin_TNK, b * cos_TNK + a * sin_TNK], dim=-1)


def attention_matrix(q_BNTK: Tensor, k_BNTK: Tensor) -> Tensor:
    """Row-stochastic attention (B, N, T, T) with scale 1/sqrt(K)."""
    return torch.softmax(q_BNTK @ k_BNTK.transpose(-1, -2) * q_BNTK.shape[-1] ** -0.5, dim=-1)


MIXING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # what multiplies the values, of A (..., T, T) and I; but for A: App. J's
    "A": lambda a, i: a,
    "A-I": lambda a, i: a - i,
    "I-A": lambda a, i: i - a,
    "I/2+A/2": lambda a, i: 0.5 * (i + a),  # (1 - g) I + g A; the paper names no g
}
GATED = ("", "head", "feature")  # attention's output: as it is, or times the sigmoid of a linear map of the branch's input, by so much


class Block(nn.Module):
    """Self-attention and SwiGLU, each joined to the trunk by a residual scheme."""

    def __init__(
        self, width: int, heads: int, ffn: int, depth: int, index: int, scheme: SiteFactory, mixing: str = "A", gated: str = ""
    ) -> None:
        """mixing: of MIXING. gated: of GATED, after Qiu et al., arXiv:2505.06708."""
        super().__init__()
        self.heads, self.mixing = heads, mixing
        self.wqkv = linear(width, 3 * width)
        self.wo = linear(width, width)
        self.w13 = linear(width, 2 * ffn)
        self.w2 = linear(ffn, width)
        self.wg = linear(width, heads if gated == "head" else width) if gated else None
        first = scheme(Site(width, depth, index, "attn", width, heads))
        second = first if first.shared else scheme(Site(width, depth, index, "ffn", ffn, heads))
        self.residuals = nn.ModuleList([first] if first.shared else [first, second])
        self.recomputed = False  # whether the backward runs this block again rather than keep its activations
        self.compiled_merges: Callable[..., Tensor] | None = None

    def weights(self, site: str) -> dict[str, Tensor]:
        """Views of the branch weights by the names schemes know them by."""
        views = {name: view for of, names in PARTS.items() for name, view in zip(names, getattr(self, of).data.chunk(len(names)))}
        return {name: views[name] for name in WEIGHTS[site]}

    def attention(self, x_BTD: Tensor, rope: Tensor, ctx: Context) -> Tensor:
        """Branch f of the first merge: RoPE, then QK-Norm, then softmax attention with scale 1/sqrt(K)."""
        h_BTD = self.through_gates(self.heads_out(*self.qkv(x_BTD, rope)), x_BTD)
        return F.linear(self.residuals[0].inner(h_BTD, ctx), self.wo)

    def qkv(self, x_BTD: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised queries and keys and plain values, each (B, N, T, K)."""
        q_BTNK, k_BTNK, v_BTNK = F.linear(x_BTD, self.wqkv).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q_BTNK, k_BTNK = rms_norm(rotate(q_BTNK, rope)), rms_norm(rotate(k_BTNK, rope))
        return q_BTNK.transpose(1, 2), k_BTNK.transpose(1, 2), v_BTNK.transpose(1, 2)

    def mixed(self, q_BNTK: Tensor, k_BNTK: Tensor) -> Tensor:
        """(B, N, T, T): what multiplies the values."""
        a_BNTT = attention_matrix(q_BNTK, k_BNTK)
        if self.mixing == "A":
            return a_BNTT
        return MIXING[self.mixing](a_BNTT, torch.eye(a_BNTT.shape[-1], dtype=a_BNTT.dtype, device=a_BNTT.device))

    def through_gates(self, h_BTD: Tensor, x_BTD: Tensor) -> Tensor:
        """The heads' outputs times their gates, where the block has some."""
        if self.wg is None:
            return h_BTD
        g_BTG = torch.sigmoid(F.linear(x_BTD, self.wg))
        return h_BTD * g_BTG.repeat_interleave(h_BTD.shape[-1] // g_BTG.shape[-1], dim=-1)

    def heads_out(self, q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor) -> Tensor:
        """(B, T, D): what the writer W_O reads, but for `through_gates` and `Residual.inner`.

        Written out on a CPU, where it compiles to less work than the fused operator.
        """
        if v_BNTK.device.type == "cpu" or self.mixing != "A":
            return (self.mixed(q_BNTK, k_BNTK) @ v_BNTK).transpose(1, 2).flatten(2)
        return F.scaled_dot_product_attention(q_BNTK, k_BNTK, v_BNTK).transpose(1, 2).flatten(2)

    def ffn_hidden(self, x_BTD: Tensor) -> Tensor:
        """(B, T, F): what the writer W_2 reads, but for `Residual.inner`: SiLU(g) * v with [g, v] = W_13 x (Eq. 1)."""
        gate_BTF, value_BTF = F.linear(x_BTD, self.w13).chunk(2, dim=-1)
        return F.silu(gate_BTF) * value_BTF

    def ffn(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        """Branch f of the second merge."""
        return F.linear(self.residuals[-1].inner(self.ffn_hidden(x_BTD), ctx), self.w2)

    def forward(self, x: Tensor, rope: Tensor, segments: tuple[int, ...], step: Tensor, t_B: Tensor) -> Tensor:
        merges = self.compiled_merges or self.merges
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(merges, x, rope, segments, step, t_B, use_reentrant=False, preserve_rng_state=False)
        return merges(x, rope, segments, step, t_B)

    def merges(self, x: Tensor, rope: Tensor, segments: tuple[int, ...], step: Tensor, t_B: Tensor) -> Tensor:
        """The trunk after both merges."""
        attn, ffn = (Context(segments, site, step, t_B) for site in ("attn", "ffn"))
        x = self.residuals[0](x, lambda x_BTD: self.attention(x_BTD, rope, attn), attn)
        return self.residuals[-1](x, lambda x_BTD: self.ffn(x_BTD, ffn), ffn)


class DiT(nn.Module):
    """image (B, C, H, H) noisy pixels, caption (B, S, D) tokens, or (B, S, G) of another width, and time t (B,) -> velocity (B, C, H, H).

    Blocks do not read t; a scheme may.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        ffn: int,
        depth: int,
        patch: int,
        channels: int,
        image_size: int,
        caption_tokens: int,
        scheme: SiteFactory,
        caption_width: int | None = None,
        checkpoint_blocks: bool = False,
        mixing: str = "A",
        gated: str = "",
    ) -> None:
        super().__init__()
        # sqrt(depth) segments of sqrt(depth) blocks hold the fewest activations: Chen et al. 2016, arXiv:1604.06174
        self.segment = math.isqrt(depth - 1) + 1 if checkpoint_blocks else 0
        self.patch, grid = patch, image_size // patch
        self.segments = (grid * grid, caption_tokens)
        token = channels * patch * patch
        self.embed = nn.Linear(token, width)
        # as the official code, which leaves captions of the model's width as they are
        self.context = nn.Linear(caption_width, width) if caption_width not in (None, width) else nn.Identity()
        self.blocks = nn.ModuleList(Block(width, heads, ffn, depth, i, scheme, mixing, gated) for i in range(depth))
        self.final = nn.Linear(width, token)
        self.register_buffer("rope", rope_2d(grid, sum(self.segments), width // heads), persistent=False)
        self.register_buffer("step", torch.zeros(()), persistent=False)
        self.compiled_blocks: CompiledBlocks | None = None
        self.fell_back = False  # whether torch.compile stands in for the suite's own compiled blocks
        self.sharded = False  # whether blocks hold parts of their weights, and only a call of the module gathers them

    def compile(self) -> None:
        """Run the blocks as compiled code from now on: on a CPU as `CompiledBlocks`, elsewhere and where sharded each by torch.compile,
        as on a CPU with a torch that `suite.model.aot` was not tested with.

        To be called when the parameters lie where they will stay. Raises aot.CompileError for a scheme that cannot be.
        """
        if self.sharded:  # its own forward calls FSDP's hooks, which no graph may hold
            for block in self.blocks:
                block.compiled_merges = torch.compile(block.merges, fullgraph=True, dynamic=False)
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            return
        if self.rope.device.type == "cpu":
            from suite.model import aot
            from suite.model.compiled_blocks import CompiledBlocks

            self.fell_back = aot.fall_back()
            if not self.fell_back:
                self.compiled_blocks = CompiledBlocks(self.blocks, self.rope, self.step, self.segments, self.segment)
                return
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # never fall back to eager without a word
        for block in self.blocks:
            block.compile(fullgraph=True, dynamic=False)

    @torch.no_grad()
    def init_weights(
        self, seed: int, *, init: str, writers: str, final: str, drawn: Callable[[Block], object] = lambda block: None
    ) -> None:
        """Draw every weight from a generator keyed by (seed, parameter name), so schemes share what they share.

        init: standard deviation of every weight as a number (N(0, 0.02^2), Table 3), or "fan_in": 0.64/sqrt(fan_in).
        writers, final: "zero" or "std" for W_O and W_2, and for the output projection. Biases: zero where init is a
        number, as in the usual code for such an init (the paper says "standard init" only): PyTorch's own U(-1,
        1)/sqrt(fan_in) would be 25 times the embedding's weights and make all tokens nearly equal at the start. With
        "fan_in" they are PyTorch's. Schemes then rescale their block's weights. drawn: told of each block when its
        weights are ready, before the next is begun.
        """
        ends = [(name, weight) for name, weight in self.named_parameters() if not name.startswith("blocks.")]
        self._draw(ends, seed, init, writers, final)
        for i, block in enumerate(self.blocks):
            named = [(f"blocks.{i}.{name}", w) for name, w in block.named_parameters() if not name.startswith("residuals.")]
            self._draw(named, seed, init, writers, final)
            for site, residual in (("attn", block.residuals[0]), ("ffn", block.residuals[-1])):
                with seeded(seed, i, site, "init_weights"):
                    residual.init_weights(site, block.weights(site))
            drawn(block)

    def _draw(self, named: Iterable[tuple[str, nn.Parameter]], seed: int, init: str, writers: str, final: str) -> None:
        for name, weight in named:
            kind = final if name.startswith("final") else writers if name.endswith((".wo", ".w2")) else "std"
            if kind == "zero" or weight.ndim == 1 and init != "fan_in":
                weight.zero_()
                continue
            draw = generator(seed, "weights", name)
            if weight.ndim == 1:  # a bias: without one, RMSNorm would hide the size of a patch of few values
                fan_in = self.get_parameter(name.replace("bias", "weight")).shape[1]
                weight.copy_((2 * torch.rand(weight.shape, generator=draw) - 1) * fan_in**-0.5)
            else:
                weight.copy_(torch.randn(weight.shape, generator=draw) * init_std(init, weight.shape[1]))

    def tokens(self, image_BCHW: Tensor, caption_BSD: Tensor) -> Tensor:
        """The first block's input (B, T, D)."""
        b, c, h, w = image_BCHW.shape
        p = self.patch
        patches = image_BCHW.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)
        return torch.cat([rms_norm(self.embed(patches)), rms_norm(self.context(caption_BSD))], dim=1)

    def pixels(self, token_BIE: Tensor, like_BCHW: Tensor) -> Tensor:
        """Image tokens back to pixels, the inverse of the patching in `tokens`."""
        b, c, h, w = like_BCHW.shape
        p = self.patch
        return token_BIE.reshape(b, h // p, w // p, c, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)

    def _blocks(self, x: Tensor, t_B: Tensor, start: int, stop: int) -> Tensor:
        if self.compiled_blocks is not None:
            return self.compiled_blocks(x, t_B, start, stop)
        for block in self.blocks[start:stop]:
            x = block(x, self.rope, self.segments, self.step, t_B)
        return x

    def enter(self, image_BCHW: Tensor, caption_BSD: Tensor, t_B: Tensor) -> Tensor:
        """What the first block reads: the tokens, in as many streams as the scheme opens."""
        ctx = Context(self.segments, "attn", self.step, t_B)
        return self.blocks[0].residuals[0].open(self.tokens(image_BCHW, caption_BSD), ctx)

    def folded(self, x: Tensor) -> Tensor:
        """The trunk of any depth as measurements look at it, (B, T, D): itself, or what `fold` makes of one of another shape."""
        if x.ndim == 3 and x.shape[1:] == (sum(self.segments), self.embed.out_features):
            return x
        return self.blocks[-1].residuals[-1].fold(x)

    def leave(self, x: Tensor, like_BCHW: Tensor) -> Tensor:
        """The velocity from what the last block writes."""
        x_BTD = self.blocks[-1].residuals[-1].fold(x)
        return self.pixels(self.final(x_BTD[:, : self.segments[0]]), like_BCHW)

    def forward(self, image_BCHW: Tensor, caption_BSD: Tensor, t_B: Tensor) -> Tensor:
        x = self.enter(image_BCHW, caption_BSD, t_B)
        if self.segment and self.compiled_blocks is None and torch.is_grad_enabled():
            for start in range(0, len(self.blocks), self.segment):
                x = checkpoint(self._blocks, x, t_B, start, start + self.segment, use_reentrant=False, preserve_rng_state=False)
        else:
            x = self._blocks(x, t_B, 0, len(self.blocks))
        out = self.leave(x, image_BCHW)
        return out.clone() if self.sharded else out  # FSDP warns of a view
