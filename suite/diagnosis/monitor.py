"""Watch a network of any kind while it trains: `from suite.audit import Monitor`.

Loss and gradient norm are read at every step. At every N-th step the residual writers are measured in the training's
own forward and backward: hooks that only look, for that forward alone. No pass is added and no state is touched, so
none has to be put back.

Shapes: B samples, T tokens; as in `suite.diagnosis.metrics`.
"""

from __future__ import annotations

import inspect
import operator
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from suite.diagnosis.alarms import Alarms
from suite.diagnosis.guard import Guard, say
from suite.diagnosis.metrics import rho, tcs, writer_gradient
from suite.diagnosis.recording import AuditError, Recording
from suite.diagnosis.report import report
from suite.diagnosis.second_pass import SecondPass, tensors
from suite.diagnosis.watch_file import WatchFile
from suite.diagnosis.watched import Forward, Watched, wrappers
from suite.diagnosis.writers import advice, guess_writers, is_writer, query_key_gradients, weight_of

COLUMNS = ("step", "loss", "grad_norm", "norm_growth", "g_mean", "g_ctr", "tcs", "rho", "q_grad", "k_grad", "update_rms")
NOW, BEFORE = 5, 20  # steps whose median gradient norm is compared with that of the steps before them (docs/detect.md)
MEASURED = ("g_mean", "g_ctr", "tcs", "rho")  # of each writer
LATE = ("the weights have been changed between the forward and step: call step behind backward and before the optimiser; "
        "left out: the gradient norm, queries and keys, a second pass")  # fmt: skip
GONE = "no gradient is left: call step behind backward and before gradients are set to zero"


class DyingWarning(UserWarning):
    """The run that a `Monitor` watches is dying: its loss has jumped and stays, is not finite, or its tokens have become equal."""


class Monitor:
    """Three lines in a training loop::

        monitor = Monitor(model, csv="watch.csv")
        ...
            loss.backward()
            monitor.step(loss)          # before clipping and the optimiser's step
        print(monitor.report())

    model: what the loop calls, wrapped or compiled as it is. writers: names of the modules that write to a residual
    stream, as in `audit`: nn.Linear, or like it (`suite.diagnosis.writers.is_writer`); guessed from their names, and
    printed, where none are given. every: steps between two measurements, the first step is always one; None: no
    measurement. csv: a file that `detect` reads, with the columns COLUMNS and medians over the writers; cells of what
    was not measured are empty; of several processes the first writes it. board: a `SummaryWriter`. told: called with
    (step, kind, sentence) for each alarm, in place of a `DyingWarning`, and with the kind "withdrawn" where one was
    wrong. start: steps done before. batch_dim: 1 where inputs are (tokens, batch, width). After each step `row` holds
    what was seen, `alarms` what was told so far, and after a measurement `by_writer` one dictionary a writer. Of
    several forwards the last in training mode into which a gradient came counts; under a gradient scaler gradients
    have its factor.

    Whatever goes wrong is said once, in a warning, and the training goes on: no exception leaves `step`, also none of
    `board` or `told` (a loop that wants to stop at an alarm looks at `alarms`). A writer that cannot be measured (not
    called, called twice, of another batch size, compiled, checkpointed) is left out alone. From a measured forward
    until `step` the writers' inputs and the gradients of their outputs are kept. The hooks leave the model with
    `close`, or with the Monitor. Raises AuditError (a ValueError of one line) when it is made: a setting that means
    nothing, a writer that is none, a csv that cannot be written, is not a Monitor's or holds another run.

    second_pass: for what is compiled or checkpointed, where hooks do not see. At a measured step `step` runs the
    model once more, on the inputs, random numbers, autocast and modes of the training's forward, with compiled parts
    eager, and sends back the gradient that the loss sent into its outputs; that costs a forward and half a backward.
    Afterwards .grad, buffers and the random states of torch, numpy and `random` are as they were. What else a forward
    of the model advances (a counter, a list, a generator of its own, a parameter or array that it writes to, hooks of
    yours) advances twice at such a step, so such a model trains otherwise than without the Monitor, and is not
    measured where its outputs become others by that; and a model compiled in place (`model.compile()`) gets a break
    of its graph at its two ends.
    """

    def __init__(
        self, model: nn.Module, writers: Iterable[str] | None = None, *, every: int | None = 50, csv: str | Path | WatchFile | None = None,
        board=None, told: Callable[[int, str, str], None] | None = None, start: int = 0, batch_dim: int = 0, second_pass: bool = False,
    ) -> None:  # fmt: skip
        if not isinstance(model, nn.Module):
            raise AuditError(f"model: a torch.nn.Module is needed, not a {type(model).__name__}")
        check(writers=writers, every=every, board=board, told=told, start=start, batch_dim=batch_dim)
        *around, inner = wrappers(model)
        modules = dict(inner.named_modules())
        if writers is None:
            self.writers = guess_writers(inner)
            print(f"Monitor: watching {', '.join(self.writers)}" if self.writers else f"Monitor: watching no writers: {advice(inner)}")
        else:
            self.writers = _named(around, modules, list(writers))
        for name in self.writers:
            if not is_writer(modules.get(name)):
                raise AuditError(f"{name!r} is not an nn.Linear or like one, with a weight of its own, in this model")
        if not batch_dim and any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in modules.values()):
            raise AuditError("a MultiheadAttention here has batch_first=False; give batch_dim=1 for inputs of (tokens, batch, width)")
        self.model, self.inner, self.second_pass = model, inner, second_pass
        self.batch_dim, self.every, self.board, self.told = batch_dim, None if every is None else int(every), board, told
        self.at = self.first = int(start)
        self.alarms: list[tuple[int, str, str]] = []
        self.row: dict[str, float] = {}
        self.by_writer: list[dict[str, object]] = []
        self._judge, self._weights, self._around, self._last_row, self._late = Alarms(), {}, around, {}, False
        self._norms: deque[float] = deque(maxlen=NOW + BEFORE)
        self._guard, self._left = Guard(), {}
        self._file = csv if isinstance(csv, WatchFile) or csv is None else WatchFile(csv, COLUMNS, start)
        begin = weakref.WeakMethod(self._begin)  # the model's hooks must not keep the Monitor alive

        def begins(args: tuple, kwargs: dict) -> Forward | None:
            return call(args, kwargs) if (call := begin()) else None

        self._watched = Watched(model, begins, self._guard, traced=second_pass)
        self._end = weakref.finalize(self, _end, self._watched, self._file, self._guard)

    def _due(self) -> bool:
        """Whether the step under way is one that is measured."""
        return bool(self.every and self.writers) and ((self.at + 1) % self.every == 0 or self.at == self.first)

    def _begin(self, args: tuple, kwargs: dict) -> Forward | None:
        """A forward begins: what is to be kept of it."""
        if not self._due():
            return None
        batch = next((t.shape[self.batch_dim] for t in tensors([args, kwargs]) if t.ndim > self.batch_dim), 0)
        record = partial(Recording, self.inner, self.writers, batch, self.batch_dim, of_output=_of_output, live=not self.second_pass,
                         around=self._around)  # fmt: skip
        return SecondPass(self.inner, args, kwargs, record) if self.second_pass else record()

    def step(self, loss: Tensor | float | None = None, grad_norm: Tensor | float | None = None) -> None:
        """Call once a step, behind the backward pass and before gradients are clipped and used.

        loss: of this step; None takes the mean of the scalars that the model returned. grad_norm: the norm of all
        gradients; None computes it from them.
        """
        due, self.at = self._due(), self.at + 1
        self.row = {"step": self.at}
        parts = [("the look at the weights", self._see_late), ("the loss", partial(self._see_loss, loss)),
                 ("the gradient norm", partial(self._see_norm, grad_norm)), ("the size of the update", self._watch_weights)]  # fmt: skip
        if due:
            parts += [("a measurement of queries and keys", self._see_attention), ("a measurement of the writers", self._measure)]
        parts += [("the end of a step", self._watched.forget), ("the csv", self._write), ("the board", self._show),
                  ("the watch", self._tell)]  # fmt: skip
        for what, part in parts:
            with self._guard(what):
                part()

    def report(self) -> str:
        """What was seen so far, in words, and what to try next; a sentence a line."""
        return report(self.at, self.first, self._last_row, self._judge, self._left)

    def close(self) -> None:
        """Take the hooks off the model and close the file."""
        self._end()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _see_late(self) -> None:
        self._late = self._watched.moved()
        if self._late:
            self._guard.once("late", LATE)

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
        """Of all gradients; None where there are none, or not those of the backward any more."""
        if self._late:
            return None
        grads = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in self.model.parameters() if p.grad is not None]
        if not grads:
            if self._watched.came:
                self._guard.once("gone", GONE)
            return None
        return float(nn.utils.get_total_norm([g.float() if g.dtype is torch.float16 else g for g in grads]))

    def _weights_of(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Name -> weight, of the writers that are still there and are trained."""
        modules = dict(self.inner.named_modules())
        weights = {name: weight_of(modules[name]) for name in names if is_writer(modules.get(name))}
        return {name: weight for name, weight in weights.items() if weight.requires_grad}

    def _see_attention(self) -> None:
        if not self._late:
            self.row |= query_key_gradients(self.inner)

    def _measure(self) -> None:
        """The writers, each alone; of one that cannot be measured the first time is said."""
        self.by_writer, forward = [], self._watched.last()
        if forward is None:
            raise AuditError("no forward of the model was seen: give Monitor the module that the loop calls; if it is compiled, "
                             "second_pass=True")  # fmt: skip
        if self.second_pass and self._late:
            return
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
                self._left |= dict.fromkeys(new, why)
                say(f"Monitor: not measured: {', '.join(new[:3])}{f' and {len(new) - 3} more' if len(new) > 3 else ''}: {why}", UserWarning)
        if rows:
            self._last_row = self.row | {"writers": len(rows)}
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
        if self._file is not None:
            self._file.write(self.row, now="g_mean" in self.row)

    def _show(self) -> None:
        if self.board is not None:
            for name, value in self.row.items():
                if name != "step":
                    self.board.add_scalar(f"monitor/{name}", value, self.at)

    def _tell(self) -> None:
        for alarm in self._judge.see(self.at, self.row):
            if alarm.withdrawn_at is None:
                self._say(alarm.kind, alarm.sentence, DyingWarning)
            else:
                self._say("withdrawn", f"{alarm.kind}, told at step {alarm.step}: {alarm.withdrawn}", UserWarning)

    def _say(self, kind: str, sentence: str, warning: type[Warning]) -> None:
        self.alarms.append((self.at, kind, sentence))
        if self.told is None:
            say(f"step {self.at}: {kind}: {sentence}", warning)
        else:
            with self._guard("told"):
                self.told(self.at, kind, sentence)


def check(**settings: object) -> None:
    """Raises AuditError where a setting of `Monitor` is unknown or means nothing; so that a callback can ask before the training begins."""
    if unknown := settings.keys() - inspect.signature(Monitor).parameters.keys():
        raise AuditError(f"Monitor has no {', '.join(sorted(unknown))}; it has {', '.join(inspect.signature(Monitor).parameters)}")
    writers, every, start = (settings.get(name, default) for name, default in (("writers", None), ("every", None), ("start", 0)))
    if isinstance(writers, str | bytes) or writers is not None and not isinstance(writers, Iterable):
        raise AuditError(f"writers: a list of names is needed, not {writers!r}; write [{writers!r}]")
    if every is not None and not _counts(every, 1):
        raise AuditError(f"every: a whole number of steps from 1 on is needed, not {every!r}; None measures nothing")
    if not _counts(start, 0):
        raise AuditError(f"start: the number of steps done before, 0 or more, is needed, not {start!r}")
    if settings.get("batch_dim", 0) not in (0, 1):
        raise AuditError(f"batch_dim: 0 or 1 is needed, the axis of the samples, not {settings['batch_dim']!r}")
    if settings.get("told") is not None and not callable(settings["told"]):
        raise AuditError(f"told: a function of (step, kind, sentence) is needed, not {settings['told']!r}")
    if settings.get("board") is not None and not hasattr(settings["board"], "add_scalar"):
        raise AuditError(f"board: something with add_scalar is needed, as a SummaryWriter has, not a {type(settings['board']).__name__}")


def _counts(value: object, least: int) -> bool:
    try:
        return not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        return False


def _named(around: list[nn.Module], modules: Mapping[str, nn.Module], names: list[str]) -> list[str]:
    """Names in the network, of which each may also be given as one of its wrappers has it."""
    if not names:
        raise AuditError("writers: no name is given; leave it out to have them guessed, and give every=None to measure none")
    for name in names:
        if not isinstance(name, str):
            raise AuditError(f"writers: a list of names is needed; {name!r} is none")
    known = {module: name for name, module in modules.items()}
    wrapped = {name: known[module] for wrapper in around for name, module in wrapper.named_modules() if module in known}
    return [name if name in modules else wrapped.get(name, name) for name in names]


def _end(watched: Watched, file: WatchFile | None, guard: Guard) -> None:
    with guard("the end"):
        watched.close()
    if file is not None:
        file.close()


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
