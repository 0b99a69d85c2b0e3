"""`Monitor` for loops that somebody else runs: transformers' Trainer and Lightning. Neither package is needed by the others."""

from __future__ import annotations

from torch import Tensor, nn

from suite.diagnosis.guard import Guard
from suite.diagnosis.monitor import COLUMNS, Monitor, check
from suite.diagnosis.watch_file import WatchFile


def hugging_face_monitor(**kwargs):
    """A `transformers.TrainerCallback`: Trainer(callbacks=[hugging_face_monitor(csv="watch.csv")]). kwargs: of `Monitor`, without model.

    The loss is what the model returned. The Trainer clips before a callback can look: the gradient norm is that
    behind its `max_grad_norm`, and its own log has the one before. `monitor` is the Monitor; behind an exception,
    which no callback of the Trainer sees, `monitor.close()` takes its hooks off. Raises AuditError as `Monitor` does,
    of a setting at once, of writers and csv when the training begins.
    """
    from transformers import TrainerCallback

    check(**kwargs)

    class MonitorCallback(TrainerCallback):
        monitor: Monitor | None = None

        def on_train_begin(self, args, state, control, model=None, **_):
            self.monitor = _begun(self.monitor, model, {"start": state.global_step} | kwargs)

        def on_pre_optimizer_step(self, args, state, control, **_):
            self.monitor.step()

        def on_train_end(self, args, state, control, **_):
            self.monitor.close()

    return MonitorCallback()


def lightning_monitor(**kwargs):
    """A Lightning `Callback`: Trainer(callbacks=[lightning_monitor(csv="watch.csv")]). kwargs: of `Monitor`; `model` may be the name of
    the submodule that training_step calls, where it does not call self(...); by default the largest one of a module
    without forward.

    A step is one of the optimiser that holds the most weights of that model: with several optimisers name the network
    of one. The loss is what was sent backward last before it; of several optimisers it is left out where more than
    one was. `monitor` is the Monitor. Raises AuditError as `Monitor` does, of a setting at once, of writers and csv
    when the training begins.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback

    name = kwargs.pop("model", None)
    check(**kwargs)

    class MonitorCallback(Callback):
        monitor: Monitor | None = None
        at: int | None = None  # steps done, of a checkpoint: the trainer's count is of the steps of all optimisers
        losses: list[Tensor] = []

        def on_train_start(self, trainer, pl_module):
            model = pl_module.get_submodule(name) if name is not None else _called(pl_module)
            self.counted, self.several = _trains(trainer.optimizers, model), len(trainer.optimizers) > 1
            self.losses, self.guard = [], Guard()
            start = trainer.global_step // max(1, len(trainer.optimizers)) if self.at is None else self.at
            self.monitor = _begun(self.monitor, model, {"start": start} | kwargs)

        def on_before_backward(self, trainer, pl_module, loss):
            self.losses = [*self.losses, loss.detach()][-2:]

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            losses, self.losses = self.losses, []
            if not self.several or getattr(optimizer, "_optimizer", optimizer) is self.counted:
                mixed = self.several and len(losses) > 1
                if mixed:
                    self.guard.once("losses", "of several optimisers one steps behind several backwards; no loss can be told for it")
                self.monitor.step(losses[-1] if losses and not mixed else None)

        def on_train_end(self, trainer, pl_module):
            self.monitor.close()

        def on_exception(self, trainer, pl_module, exception):
            if self.monitor is not None:
                self.monitor.close()

        def state_dict(self):
            return {} if self.monitor is None else {"at": self.monitor.at}

        def load_state_dict(self, state_dict):
            self.at = state_dict.get("at")

    return MonitorCallback()


def _begun(before: Monitor | None, model: nn.Module, settings: dict) -> Monitor:
    """A Monitor for a training that begins; where the same callback begins again, as after a batch too large, in the same csv."""
    if before is not None:
        before.close()
        if settings.get("csv") is not None:
            settings = settings | {"csv": WatchFile(settings["csv"], COLUMNS, settings["start"], again=True)}
    return Monitor(model, **settings)


def _trains(optimisers: list, model: nn.Module) -> object | None:
    """The one of these that holds the most weights of a model, the first of equals."""
    own = {p for p in model.parameters()}
    return max(optimisers, key=lambda of: sum(p.numel() for group in of.param_groups for p in group["params"] if p in own), default=None)


def _called(module: nn.Module) -> nn.Module:
    """The module that a training_step calls: itself where it has a forward of its own, else its largest child."""
    own = type(module).forward
    if own.__module__.partition(".")[0] not in ("torch", "lightning", "pytorch_lightning"):
        return module
    return max(module.children(), key=lambda child: sum(p.numel() for p in child.parameters()), default=module)
