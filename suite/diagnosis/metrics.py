"""The metrics of arXiv:2605.06169 (Table 2 and equations) as pure functions.

Shapes: B samples, T tokens, D width, F input width of a writer, N heads. x is the trunk, y a writer's input, d the
gradient of the loss with respect to the writer's output. J is the token mean, P = I - J. Norms are Frobenius norms over
the whole batch unless said otherwise. The official diagnostic script differs: it returns ||A P|| for mu_eff (never
re-centred), takes A and kappa_hat from the first sample only, and reports L2 for the Q and K gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-12  # the paper's eps in denominators, value not given; small enough to show a trunk whose mean is all


def writer_gradient(d_BTD: Tensor, y_BTF: Tensor) -> tuple[Tensor, Tensor]:
    """Mean-mode and centered part of a writer's gradient, each (D, F); their sum is the gradient exactly (Eq. 5, 17).

    dW_mu = sum_b T dbar_b ybar_b^T, dW_c = sum_b sum_t dtil_bt ytil_bt^T; token means are per sample.
    """
    dbar_BD, ybar_BF = d_BTD.mean(1), y_BTF.mean(1)
    mean_DF = d_BTD.shape[1] * torch.einsum("bd,bf->df", dbar_BD, ybar_BF)
    centered_DF = torch.einsum("btd,btf->df", d_BTD - dbar_BD[:, None], y_BTF - ybar_BF[:, None])
    return mean_DF, centered_DF


def _cosines(x_BTD: Tensor) -> Tensor:
    """(B, T, T) cosines between the tokens of a sample; 0 where a token is 0, not where it is merely small."""
    unit_BTD = F.normalize(x_BTD, dim=-1, eps=torch.finfo(x_BTD.dtype).tiny)
    return unit_BTD @ unit_BTD.transpose(1, 2)


def _off_diagonal_mean(m_BTT: Tensor) -> Tensor:
    """(B,) mean over s != t; nan where T = 1."""
    t = m_BTT.shape[-1]
    total_B = m_BTT.sum((1, 2)) - m_BTT.diagonal(dim1=1, dim2=2).sum(1)
    return total_B / (t * (t - 1)) if t > 1 else torch.full_like(total_B, torch.nan)


def amplification(d_BTD: Tensor, y_BTF: Tensor) -> Tensor:
    """A = ||grad||^2 / sum_t ||d_t||^2 ||y_t||^2 per sample, mean over samples (Eq. 6, 25, 26); 1 = no coherence, T = full."""
    gram_d_BTT, gram_y_BTT = d_BTD @ d_BTD.transpose(1, 2), y_BTF @ y_BTF.transpose(1, 2)
    own_B = (gram_d_BTT.diagonal(dim1=1, dim2=2) * gram_y_BTT.diagonal(dim1=1, dim2=2)).sum(1)
    return ((gram_d_BTT * gram_y_BTT).sum((1, 2)) / own_B).mean()


def kappa_hat(d_BTD: Tensor, y_BTF: Tensor) -> Tensor:
    """E over s != t of |cos(y_s, y_t)| |cos(d_s, d_t)|, mean over samples (Eq. 32)."""
    return _off_diagonal_mean(_cosines(y_BTF).abs() * _cosines(d_BTD).abs()).mean()


def token_parts(x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """mu(X) and c(X), both (B, T, D), token means per sample (Eq. 3)."""
    mean_BTD = x_BTD.mean(1, keepdim=True).expand_as(x_BTD)
    return mean_BTD, x_BTD - mean_BTD


def rho(x_BTD: Tensor) -> Tensor:
    """||mu(X)|| / (||c(X)|| + eps), Table 2."""
    mean_BTD, centered_BTD = token_parts(x_BTD)
    return mean_BTD.norm() / (centered_BTD.norm() + TINY)


def r_tr(x_BTD: Tensor, f_BTD: Tensor) -> Tensor:
    """||U(X)|| / (||X|| + eps), Table 2: how far the branch opens against the trunk."""
    return f_BTD.norm() / (x_BTD.norm() + TINY)


def var_gain(x_BTD: Tensor, f_BTD: Tensor) -> Tensor:
    """||c(U(X))|| / (||c(X)|| + eps), Table 2."""
    return token_parts(f_BTD)[1].norm() / (token_parts(x_BTD)[1].norm() + TINY)


def tcs(x_BTD: Tensor) -> Tensor:
    """Token cosine similarity, E over i != j of cos(X_i, X_j) over all pairs, mean over samples (Table 2)."""
    return _off_diagonal_mean(_cosines(x_BTD)).mean()


def mu_eff(a_BNTT: Tensor) -> Tensor:
    """||P A P||_2, mean over samples and heads (Eq. 4); exact, from the eigenvalues of the Gram matrix. nan if A is not finite."""
    a_BNTT = a_BNTT.double()
    if not a_BNTT.isfinite().all():
        return a_BNTT.new_tensor(torch.nan)
    right_BNTT = a_BNTT - a_BNTT.mean(-1, keepdim=True)  # A P
    both_BNTT = right_BNTT - right_BNTT.mean(-2, keepdim=True)  # P A P
    return torch.linalg.eigvalsh(both_BNTT.mT @ both_BNTT)[..., -1].clamp(min=0).sqrt().mean()


def row_div(a_BNTT: Tensor) -> Tensor:
    """||A - J A|| / ||A|| per head, mean over samples and heads (Table 2): how much attention differs between queries."""
    spread_BNTT = a_BNTT - a_BNTT.mean(-2, keepdim=True)
    return (spread_BNTT.flatten(-2).norm(dim=-1) / a_BNTT.flatten(-2).norm(dim=-1)).mean()


def retention_leakage(a_BNTT: Tensor, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """||c(A c(X))|| and ||mu(A c(X))||, over ||c(X)|| + eps, per head, mean over heads (Table 2)."""
    centered_BTD = token_parts(x_BTD)[1]
    out_BNTD = a_BNTT @ centered_BTD[:, None]
    mean_BNTD = out_BNTD.mean(-2, keepdim=True).expand_as(out_BNTD)

    def size_N(part_BNTD: Tensor) -> Tensor:
        return part_BNTD.square().sum((0, 2, 3)).sqrt()

    below = centered_BTD.norm() + TINY
    return (size_N(out_BNTD - mean_BNTD) / below).mean(), (size_N(mean_BNTD) / below).mean()


def rms(x: Tensor) -> Tensor:
    """Root mean square of all entries."""
    return x.square().mean().sqrt()


def writer_metrics(d_BTD: Tensor, y_BTF: Tensor) -> dict[str, float]:
    """g_mean, g_ctr, amplification and kappa_hat of one writer, computed in float64 (gradients of 1e-13 are squared)."""
    d_BTD, y_BTF = d_BTD.double(), y_BTF.double()
    mean_DF, centered_DF = writer_gradient(d_BTD, y_BTF)
    return {
        "g_mean": mean_DF.norm().item(),
        "g_ctr": centered_DF.norm().item(),
        "amplification": amplification(d_BTD, y_BTF).item(),
        "kappa_hat": kappa_hat(d_BTD, y_BTF).item(),
    }
