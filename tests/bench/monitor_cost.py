"""What `Monitor` costs: the time of its step against that of the training step around it, in one process.

    PYTHONPATH=. OMP_NUM_THREADS=1 python tests/bench/monitor_cost.py

Medians over STEPS steps of processor time, so that other work on the machine matters little; docs/detect.md has the share, every 50th step.
A measured step costs in the training's own forward too: it is taken whole, against the median of the steps that are not measured.
"""

from statistics import median
from time import process_time

import torch
from torch import nn

from suite.audit import Monitor

WIDTH, HEADS, LAYERS, BATCH, TOKENS, STEPS, EVERY = 128, 4, 12, 16, 64, 80, 10


def main() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    optimiser, monitor = torch.optim.AdamW(model.parameters(), 1e-4), Monitor(model, every=EVERY)
    training, watching, measured = [], [], []
    for _ in range(STEPS):
        begin = process_time()
        x = torch.randn(BATCH, TOKENS, WIDTH)
        loss = (model(x) - x.roll(1, 1)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        behind = process_time()
        monitor.step(loss)
        watched = process_time()
        optimiser.step()
        end = process_time()
        if "g_mean" in monitor.row:
            measured.append(end - begin)
        else:
            training.append(behind - begin + end - watched)
            watching.append(watched - behind)
    step, watch, whole = map(median, (training, watching, measured))
    measure = whole - step - watch
    share = 100 * (watch + measure / 50) / step
    print(f"step {1e3 * step:.1f} ms, watching {1e3 * watch:.2f} ms, a measurement {1e3 * measure:.1f} ms more: "
          f"{share:.1f} % at every 50th step ({len(training)} steps, {len(measured)} measurements)")  # fmt: skip


if __name__ == "__main__":
    main()
