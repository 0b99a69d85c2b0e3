"""Watch a network of any kind while it trains: `from suite.audit import Monitor`.

Loss and gradient norm are read at every step. At every N-th step the writers are measured by a side pass: the network is run once more on
the inputs of that step, eagerly, with the random state, autocast and buffers that it had, and the gradient that the loss had sent into
its outputs goes back to the writers. Nothing of it reaches the training: no hook inside the network, no .grad, no random number, no
buffer. It costs a forward and half a backward at every N-th step.

Shapes: B samples, T tokens; as in `suite.diagnosis.metrics`.
"""

from __future__ import annotations

import csv
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from suite.diagnosis.any_model import AuditError, by_sample, captured, token_first, undisturbed
from suite.diagnosis.metrics import rho, tcs, writer_gradient
from suite.diagnosis.outputs import Call, Watched, unwrapped
from suite.diagnosis.watch import LossWatch
from suite.diagnosis.writers import guess_writers, is_writer, query_key_gradients

COLUMNS = ("step", "loss", "grad_norm", "norm_growth", "g_mean", "g_ctr", "tcs", "rho", "q_grad", "k_grad", "update_rms")
NOW, BEFORE = 5, 20  # steps whose median gradient norm is compared with that of the steps before them, as in the README's early warnings
PATIENCE = 3  # measurements in a row that may fail before the writers are given up
OVERFLOWS = 10  # steps in a row without a finite gradient that are no gradient scaler's search any more
FLUSH = 20  # steps after which the csv is on the disk at the latest
EQUAL = 0.99  # TCS of the writers' outputs at which tokens are one vector; healthy networks of ours stay below .6 (design, section 2)


class DyingWarning(UserWarning):
    """The run that a `Monitor` watches is dying: its loss has jumped and stays, is not finite, or its tokens have become equal."""


class Monitor:
    """Three lines in a training loop::

        monitor = Monitor(model, csv="watch.csv")
        ...
            loss.backward()
            monitor.step(loss)          # before clipping and the optimiser's step

    model: what the loop calls, wrapped or compiled as it is. writers: names of the nn.Linear modules that write to a residual stream, as
    in `audit`; guessed from their names, and printed, where none are given. every: steps between two measurements (0: none). csv: a file
    that `detect` reads, with the columns COLUMNS and medians over the writers; cells of what was not measured are empty. board: a
    `SummaryWriter`. told: called with (step, kind, sentence) for each alarm, in place of a `DyingWarning`. start: steps done before.
    batch_dim: 1 where inputs are (tokens, batch, width).
    After each step `row` holds what was seen, and after a measurement `by_writer` one dictionary a writer. Of several forwards the
    last with a gradient counts; under a gradient scaler gradients have its factor. A hook of yours inside the network runs once more.
    A step that cannot be measured is passed over; three in a row, and the writers are given up with a warning. Raises AuditError where a
    writer is none, or the csv cannot be opened.
    """

    def __init__(
        self, model: nn.Module, writers: Iterable[str] | None = None, *, every: int = 50, csv: str | Path | None = None, board=None,
        told: Callable[[int, str, str], None] | None = None, start: int = 0, batch_dim: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.inner = model, unwrapped(model)
        if writers is None:
            writers = guess_writers(self.inner)
            print(f"Monitor: watching {', '.join(writers) or 'no writers: none has a name that is known; name them'}")
        self.writers = list(writers)
        modules = dict(self.inner.named_modules())
        for name in self.writers:
            if not is_writer(modules.get(name)):
                raise AuditError(f"{name!r} is not an nn.Linear with a weight of its own in this model")
        if not batch_dim and any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in modules.values()):
            raise AuditError("a MultiheadAttention here has batch_first=False; give batch_dim=1 for inputs of (tokens, batch, width)")
        self.batch_dim, self._failed = batch_dim, 0
        self.every, self.board, self.told, self.at = every, board, told, start
        self.alarms: list[tuple[int, str, str]] = []
        self.row: dict[str, float] = {}
        self.by_writer: list[dict[str, object]] = []
        self._loss_watch, self._equal, self._broken, self._weights = LossWatch(), False, False, {}
        self._overflows = 0
        self._norms: deque[float] = deque(maxlen=NOW + BEFORE)
        self._token_first = token_first(self.inner)
        self._file = None
        if csv is not None:
            try:
                self._file = open(csv, "a", newline="")  # noqa: SIM115 (closed by close)
            except OSError as error:
                raise AuditError(f"csv {csv}: cannot be written ({error.strerror})") from None
            if not self._file.tell():
                self._file.write(",".join(COLUMNS) + "\n")
        self._watched = Watched(model, self._due)

    def _due(self) -> bool:
        """Whether the step under way is one that is measured."""
        return bool(self.every and self.writers) and (self.at + 1) % self.every == 0

    def step(self, loss: Tensor | float | None = None, grad_norm: Tensor | float | None = None) -> None:
        """Call once a step, behind the backward pass and before gradients are clipped and used.

        loss: of this step; None takes the mean of the scalars that the model returned. grad_norm: the norm of all gradients; None
        computes it from them.
        """
        due, self.at = self._due(), self.at + 1
        self.row = {"step": self.at}
        if (loss := self._watched.loss() if loss is None else _number(loss)) is not None:
            self.row["loss"] = loss
        if (norm := self._norm() if grad_norm is None else _number(grad_norm)) is not None:
            self.row["grad_norm"] = norm
            self._norms.append(norm)
            if len(self._norms) == NOW + BEFORE:
                late, early = list(self._norms)[-NOW:], list(self._norms)[:BEFORE]
                self.row["norm_growth"] = _median(late) / _median(early)
        self._watch_weights()
        if due:
            try:
                self._measure()
                self._failed = 0
            except Exception as error:  # whatever is the matter with the side pass, the training goes on
                self._failed += 1
                self._weights = {}
                if self._failed == PATIENCE:
                    self.writers = []
                    first = str(error).splitlines()[0] if str(error) else type(error).__name__
                    warnings.warn(f"Monitor: the writers cannot be measured and are watched no longer: {first}", stacklevel=2)
        self._watched.forget()
        self._write()
        self._judge()

    def close(self) -> None:
        """Take the two hooks off the model and close the file; nothing else was ever attached."""
        self._watched.close()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _norm(self) -> float | None:
        grads = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in self.model.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm([g.float() if g.dtype is torch.float16 else g for g in grads])) if grads else None

    def _weights_of(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Name -> weight, of the writers that are still there."""
        modules = dict(self.inner.named_modules())
        return {name: modules[name]._parameters["weight"] for name in names if is_writer(modules.get(name))}

    def _measure(self) -> None:
        weights = self._weights_of(self.writers)
        self.row |= query_key_gradients(self.inner)
        self._watched.busy = True
        try:
            self.by_writer = self._side_pass(self._watched.last(), {id(weight): name for name, weight in weights.items()})
        finally:
            self._watched.busy = False
        for name in ("g_mean", "g_ctr", "tcs", "rho"):
            self.row[name] = _median([row[name] for row in self.by_writer])
        self._weights = {name: weight.detach().clone() for name, weight in weights.items()}

    def _side_pass(self, call: Call, weights: dict[int, str]) -> list[dict[str, object]]:
        with undisturbed(self.inner), call.surroundings():
            with captured(weights) as seen:
                outputs = call.again(self.inner)
            roots, grads = call.matched(outputs)
            names = [name for name in self.writers if name in seen and seen[name][1].requires_grad]  # others were dropped or are frozen
            if not names:
                raise AuditError("no writer was called, or none carries a gradient")
            deltas = torch.autograd.grad(roots, [seen[name][1] for name in names], grads, allow_unused=True)
        batch = next((t.shape[self.batch_dim] for t in call.inputs if t.ndim > self.batch_dim), 0)
        rows = []
        for name, delta in zip(names, deltas, strict=True):
            if delta is not None:  # none: nothing of this loss comes from that writer
                parts = [by_sample(t.detach(), batch, name, name in self._token_first, self.batch_dim) for t in (delta, *seen[name])]
                rows.append({"writer": name} | _metrics(*parts))
        return rows

    def _watch_weights(self) -> None:
        """The step behind a measurement: how far the optimiser moved the writers."""
        if self._weights:
            now = self._weights_of(self._weights)
            moved = [float((now[name].detach().float() - old.float()).square().mean().sqrt())
                     for name, old in self._weights.items() if name in now and now[name].shape == old.shape]  # fmt: skip
            self.row["update_rms"], self._weights = _median(moved), {}

    def _write(self) -> None:
        if self._file is not None:
            try:
                csv.writer(self._file, lineterminator="\n").writerow([_text(self.row.get(name)) for name in COLUMNS])
                if self.at % FLUSH == 0 or "g_mean" in self.row:
                    self._file.flush()
            except OSError as error:
                self._file = None
                warnings.warn(f"Monitor: the csv cannot be written and ends here ({error.strerror})", stacklevel=3)
        if self.board is not None:
            for name, value in self.row.items():
                if name != "step":
                    self.board.add_scalar(f"monitor/{name}", value, self.at)

    def _judge(self) -> None:
        loss, norm = (self.row.get(name, 0.0) for name in ("loss", "grad_norm"))  # what was not seen breaks nothing
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        broken = not math.isfinite(loss) or self._overflows >= OVERFLOWS
        if broken and not self._broken:
            self._tell("nonfinite", f"loss {loss:g}, gradient norm {norm:g}")
        self._broken = broken
        if "loss" in self.row and (said := self._loss_watch.see(loss)):
            self._tell("loss jumped", said)
        equal = self.row.get("tcs", 0.0) > EQUAL
        if equal and not self._equal:
            self._tell("tokens equal", f"the writers' outputs are the same for all tokens (TCS {self.row['tcs']:.3f})")
        self._equal = equal if "tcs" in self.row else self._equal

    def _tell(self, kind: str, sentence: str) -> None:
        self.alarms.append((self.at, kind, sentence))
        if self.told is not None:
            self.told(self.at, kind, sentence)
        else:
            warnings.warn(f"step {self.at}: {kind}: {sentence}", DyingWarning, stacklevel=4)


def _metrics(d_BTD: Tensor, y_BTF: Tensor, out_BTD: Tensor) -> dict[str, float]:
    """A writer's row, in float32: gradients of 1e-20 are scaled before they are squared."""
    d_BTD, y_BTF, out_BTD = (t.float() for t in (d_BTD, y_BTF, out_BTD))
    size = d_BTD.abs().max()
    scale = torch.where((size > 0) & size.isfinite(), size, torch.ones_like(size))
    mean_DF, centered_DF = writer_gradient(d_BTD / scale, y_BTF)
    found = torch.stack([mean_DF.norm() * scale, centered_DF.norm() * scale, tcs(out_BTD), rho(out_BTD)]).tolist()
    return dict(zip(("g_mean", "g_ctr", "tcs", "rho"), found, strict=True))


def _number(value: Tensor | float) -> float:
    return float(value.detach().float().mean()) if isinstance(value, Tensor) else float(value)


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).nanmedian())


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
