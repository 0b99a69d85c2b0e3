"""Watch a network of any kind while it trains: `from suite.audit import Monitor`.

Loss and gradient norm are read at every step. At every N-th step the residual writers are measured in the training's
own forward and backward: hooks that only look, for that forward alone. No pass is added and no state is touched, so
none has to be put back.

Shapes: B samples, T tokens; as in `suite.diagnosis.metrics`.
"""

from __future__ import annotations

import csv
import math
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from suite.diagnosis.guard import Guard, say
from suite.diagnosis.metrics import rho, tcs, writer_gradient
from suite.diagnosis.recording import AuditError, Recording
from suite.diagnosis.second_pass import SecondPass, tensors
from suite.diagnosis.watch import LossWatch
from suite.diagnosis.watched import Forward, Watched, wrappers
from suite.diagnosis.writers import guess_writers, is_writer, query_key_gradients

COLUMNS = ("step", "loss", "grad_norm", "norm_growth", "g_mean", "g_ctr", "tcs", "rho", "q_grad", "k_grad", "update_rms")
NOW, BEFORE = 5, 20  # steps whose median gradient norm is compared with that of the steps before them (docs/detect.md)
OVERFLOWS = 10  # steps in a row without a finite gradient that are no gradient scaler's search any more
MEASURED = ("g_mean", "g_ctr", "tcs", "rho")  # of each writer
FLUSH = 20  # steps after which the csv is on the disk at the latest
EQUAL = 0.99  # TCS of the writers' outputs at which tokens are one vector; our healthy networks stay below .6


class DyingWarning(UserWarning):
    """The run that a `Monitor` watches is dying: its loss has jumped and stays, is not finite, or its tokens have become equal."""


class Monitor:
    """Three lines in a training loop::

        monitor = Monitor(model, csv="watch.csv")
        ...
            loss.backward()
            monitor.step(loss)          # before clipping and the optimiser's step

    model: what the loop calls, wrapped or compiled as it is. writers: names of the nn.Linear modules that write to a
    residual stream, as in `audit`; guessed from their names, and printed, where none are given. every: steps between
    two measurements (0: none). csv: a file that `detect` reads, with the columns COLUMNS and medians over the
    writers; cells of what was not measured are empty. board: a `SummaryWriter`. told: called with (step, kind,
    sentence) for each alarm, in place of a `DyingWarning`. start: steps done before. batch_dim: 1 where inputs are
    (tokens, batch, width). After each step `row` holds what was seen, and after a measurement `by_writer` one
    dictionary a writer. Of several forwards the last in training mode into which a gradient came counts; under a
    gradient scaler gradients have its factor.

    Whatever goes wrong is said once, in a warning, and the training goes on: no exception leaves `step`, also none of
    `board` or `told` (a loop that wants to stop at an alarm looks at `alarms`). A writer that cannot be measured (not
    called, called twice, of another batch size, compiled, checkpointed) is left out alone. From a measured forward
    until `step` the writers' inputs and the gradients of their outputs are kept. Raises AuditError, when it is made,
    where a writer is none or the csv cannot be opened.

    second_pass: for what is compiled or checkpointed, where hooks do not see. At a measured step `step` runs the
    model once more, on the inputs, random numbers and autocast of the training's forward, with compiled parts eager,
    and sends back the gradient that the loss sent into its outputs; that costs a forward and half a backward.
    Afterwards .grad, buffers and the random states of torch, numpy and `random` are as they were. What else a forward
    of the model advances (a counter, a list, a generator of its own, a parameter or array that it writes to, hooks of
    yours) advances twice at such a step, so such a model trains otherwise than without the Monitor; and a model
    compiled in place (`model.compile()`) gets a break of its graph at its two ends.
    """

    def __init__(
        self, model: nn.Module, writers: Iterable[str] | None = None, *, every: int = 50, csv: str | Path | None = None, board=None,
        told: Callable[[int, str, str], None] | None = None, start: int = 0, batch_dim: int = 0, second_pass: bool = False,
    ) -> None:  # fmt: skip
        *self._around, self.inner = wrappers(model)
        self.model, self.second_pass = model, second_pass
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
        self.batch_dim, self.every, self.board, self.told, self.at = batch_dim, every, board, told, start
        self.alarms: list[tuple[int, str, str]] = []
        self.row: dict[str, float] = {}
        self.by_writer: list[dict[str, object]] = []
        self._loss_watch, self._equal, self._broken, self._weights = LossWatch(), False, False, {}
        self._overflows = 0
        self._norms: deque[float] = deque(maxlen=NOW + BEFORE)
        self._file = None
        if csv is not None:
            try:
                self._file = open(csv, "a", newline="")  # noqa: SIM115 (closed by close)
            except OSError as error:
                raise AuditError(f"csv {csv}: cannot be written ({error.strerror})") from None
            if not self._file.tell():
                self._file.write(",".join(COLUMNS) + "\n")
        self._guard, self._left = Guard(), set()
        self._watched = Watched(model, self._begin, self._guard, traced=second_pass)

    def _due(self) -> bool:
        """Whether the step under way is one that is measured."""
        return bool(self.every and self.writers) and (self.at + 1) % self.every == 0

    def _begin(self, args: tuple, kwargs: dict) -> Forward | None:
        """A forward begins: what is to be kept of it."""
        if not self._due():
            return None
        batch = next((t.shape[self.batch_dim] for t in tensors([args, kwargs]) if t.ndim > self.batch_dim), 0)

        def record() -> Recording:
            return Recording(self.inner, self.writers, batch, self.batch_dim, of_output=_of_output, live=not self.second_pass,
                             around=self._around)  # fmt: skip

        return SecondPass(self.inner, args, kwargs, record) if self.second_pass else record()

    def step(self, loss: Tensor | float | None = None, grad_norm: Tensor | float | None = None) -> None:
        """Call once a step, behind the backward pass and before gradients are clipped and used.

        loss: of this step; None takes the mean of the scalars that the model returned. grad_norm: the norm of all
        gradients; None computes it from them.
        """
        due, self.at = self._due(), self.at + 1
        self.row = {"step": self.at}
        parts = [("the loss", partial(self._see_loss, loss)), ("the gradient norm", partial(self._see_norm, grad_norm)),
                 ("the size of the update", self._watch_weights)]  # fmt: skip
        if due:
            parts += [("a measurement of queries and keys", self._see_attention), ("a measurement of the writers", self._measure)]
        parts += [("the end of a step", self._watched.forget), ("the csv", self._write), ("the board", self._show),
                  ("the watch", self._judge)]  # fmt: skip
        for what, part in parts:
            with self._guard(what):
                part()

    def close(self) -> None:
        """Take the hooks off the model and close the file."""
        with self._guard("the end"):
            self._watched.close()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _see_loss(self, loss: Tensor | float | None) -> None:
        if (loss := self._watched.loss() if loss is None else _number(loss)) is not None:
            self.row["loss"] = loss
        else:
            self._guard.once("no loss", "no loss is seen: hand it to step (of a compiled model the one that it returns is not seen)")

    def _see_norm(self, grad_norm: Tensor | float | None) -> None:
        if (norm := self._norm() if grad_norm is None else _number(grad_norm)) is None:
            return
        self.row["grad_norm"] = norm
        self._norms.append(norm)
        if len(self._norms) == NOW + BEFORE:
            late, early = _median(list(self._norms)[-NOW:]), _median(list(self._norms)[:BEFORE])
            if early > 0:  # gradients that were 0 grow by no factor
                self.row["norm_growth"] = late / early

    def _norm(self) -> float | None:
        grads = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in self.model.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm([g.float() if g.dtype is torch.float16 else g for g in grads])) if grads else None

    def _weights_of(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Name -> weight, of the writers that are still there."""
        modules = dict(self.inner.named_modules())
        return {name: modules[name]._parameters["weight"] for name in names if is_writer(modules.get(name))}

    def _see_attention(self) -> None:
        self.row |= query_key_gradients(self.inner)

    def _measure(self) -> None:
        """The writers, each alone; of one that cannot be measured the first time is said."""
        self.by_writer, forward = [], self._watched.last()
        if forward is None:
            raise AuditError("no forward of the model was seen: give Monitor the module that the loop calls; if it is compiled, "
                             "second_pass=True")  # fmt: skip
        self._watched.busy = True
        try:
            rows, left = forward.rows(_of_gradient)
        finally:
            self._watched.busy = False
        self.by_writer = [{"writer": row["writer"]} | dict(zip(MEASURED, torch.stack([row[name] for name in MEASURED]).tolist()))
                          for row in rows]  # fmt: skip
        for name in MEASURED if rows else ():
            self.row[name] = _median([row[name] for row in self.by_writer])
        for why, names in left.items():
            if new := [name for name in names if name not in self._left]:
                self._left.update(new)
                say(f"Monitor: not measured: {', '.join(new[:3])}{f' and {len(new) - 3} more' if len(new) > 3 else ''}: {why}", UserWarning)
        self._weights = {name: weight.detach().clone() for name, weight in self._weights_of(self.writers).items()}

    def _watch_weights(self) -> None:
        """The step behind a measurement: how far the optimiser moved the writers."""
        if self._weights:
            now = self._weights_of(self._weights)
            moved = [float((now[name].detach().float() - old.float()).square().mean().sqrt())
                     for name, old in self._weights.items() if name in now and now[name].shape == old.shape]  # fmt: skip
            self._weights = {}
            if moved:
                self.row["update_rms"] = _median(moved)

    def _write(self) -> None:
        if self._file is None:
            return
        try:
            csv.writer(self._file, lineterminator="\n").writerow([_text(self.row.get(name)) for name in COLUMNS])
            if self.at % FLUSH == 0 or "g_mean" in self.row:
                self._file.flush()
        except OSError:
            with suppress(OSError):
                self._file.close()
            self._file = None
            raise

    def _show(self) -> None:
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
        if self.told is None:
            say(f"step {self.at}: {kind}: {sentence}", DyingWarning)
        else:
            with self._guard("told"):
                self.told(self.at, kind, sentence)


def _of_output(out_BTD: Tensor) -> dict[str, Tensor]:
    out_BTD = out_BTD.float()
    return {"tcs": tcs(out_BTD), "rho": rho(out_BTD)}


def _of_gradient(d_BTD: Tensor, y_BTF: Tensor) -> dict[str, Tensor]:
    """In float32: gradients of 1e-20 are scaled before they are squared."""
    d_BTD, y_BTF = d_BTD.float(), y_BTF.float()
    size = d_BTD.abs().max()
    scale = torch.where((size > 0) & size.isfinite(), size, torch.ones_like(size))
    mean_DF, centered_DF = writer_gradient(d_BTD / scale, y_BTF)
    return {"g_mean": mean_DF.norm() * scale, "g_ctr": centered_DF.norm() * scale}


def _number(value: Tensor | float) -> float:
    return float(value.detach().float().mean()) if isinstance(value, Tensor) else float(value)


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).nanmedian())


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
