"""The ridge probe of arXiv:2605.06169, App. H: where along depth can the timestep t be read from token statistics?

Shapes: B samples, T tokens, D width. Features per layer: the image-token mean (D), the centered rms (1), the caption
mean (D). Controls: statistics of the input image (mean, standard deviation, rms), and the image mean against shuffled
t.
"""

from __future__ import annotations

import numpy as np
import torch

from suite.model import flow
from suite.protocol import evenly
from suite.residual import token_mean
from suite.rng import generator
from suite.training.trainer import Trainer

ROUNDS = 4  # passes over the held-out and as many training images, each with fresh t and noise: about 2,400 rows
ALPHAS = 10.0 ** np.arange(-6, 4)  # ridge strengths tried by leave-one-out; the paper does not state its own


@torch.no_grad()
def _features(trainer: Trainer) -> tuple[np.ndarray, np.ndarray, list[dict[str, np.ndarray]]]:
    """t (B,), input statistics (B, 3), and per anchor layer the three features of the trunk that enters its first merge."""
    dit, data = trainer.state.dit, trainer.data
    rows = torch.cat([data.heldout, data.train[: len(data.heldout)]]).repeat(ROUNDS)
    batch = flow.make_batch(
        data.x0(rows), data.caption(rows), data.empty, 0.0, generator("probe")
    )
    z, image = batch.z_BCHW, dit.segments[0]
    inputs = torch.stack([z.mean((1, 2, 3)), z.std((1, 2, 3)), z.square().mean((1, 2, 3)).sqrt()], 1)
    captions = trainer.train_step.captions(batch.caption_B)
    t_B = batch.t_B.to(trainer.device)
    x = dit.enter(z.to(trainer.device), captions, t_B)
    wanted, layers = set(evenly(range(trainer.run.depth), trainer.run.protocol.audit_layers)), []
    for layer, block in enumerate(dit.blocks):
        if layer in wanted:
            x_BTD = dit.folded(x)
            x_BID, x_BSD = x_BTD[:, :image].double(), x_BTD[:, image:].double()
            mean_BD = x_BID.mean(1)
            rms_B1 = (x_BID - token_mean(x_BID, (image,))).square().mean((1, 2)).sqrt()[:, None]
            parts = {"image_mean": mean_BD, "centered_rms": rms_B1}
            if x_BSD.shape[1]:
                parts["caption_mean"] = x_BSD.mean(1)
            layers.append({"layer": layer} | {k: v.cpu().numpy() for k, v in parts.items()})
        x = block.forward(x, dit.rope, dit.segments, dit.step, t_B)
    return batch.t_B.double().numpy(), inputs.double().numpy(), layers


def _fit(x: np.ndarray, t: np.ndarray) -> tuple[float, float, np.ndarray]:
    """R2 and mean absolute error of a ridge regression on the second half, fitted on the first; and its predictions."""
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    half = len(t) // 2
    scale = StandardScaler().fit(x[:half])
    guess = RidgeCV(alphas=ALPHAS).fit(scale.transform(x[:half]), t[:half]).predict(scale.transform(x[half:]))
    error = t[half:] - guess
    return 1 - error.var() / t[half:].var() - error.mean() ** 2 / t[half:].var(), np.abs(error).mean(), guess


def probe(trainer: Trainer) -> list[dict]:
    """Rows of the probe table for the run's present weights; residual_r2 is what a feature explains beyond the input statistics."""
    t, inputs, layers = _features(trainer)
    order = generator("probe", "order")
    mixed = torch.randperm(len(t), generator=order).numpy()  # so that both halves hold every image and round
    t, inputs = t[mixed], inputs[mixed]
    shuffled = t[torch.randperm(len(t), generator=order).numpy()]
    r2, mae, guess = _fit(inputs, t)
    left = 1 - r2  # variance that the input statistics leave
    rows = [{"layer": layers[0]["layer"], "feature": "input_stats", "r2": r2, "mae": mae, "residual_r2": 0.0}]
    for features in layers:
        layer = features.pop("layer")
        for name, x in features.items():
            x = x[mixed]
            r2, mae, _ = _fit(x, t)
            both, _, _ = _fit(np.concatenate([inputs, x], 1), t)
            rows.append({"layer": layer, "feature": name, "r2": r2, "mae": mae, "residual_r2": 1 - (1 - both) / left})
        r2, mae, _ = _fit(features["image_mean"][mixed], shuffled)
        rows.append({"layer": layer, "feature": "shuffled", "r2": r2, "mae": mae, "residual_r2": None})
    return [{"step": trainer.state.step} | row for row in rows]
