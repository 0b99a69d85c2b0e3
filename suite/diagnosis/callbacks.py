"""`Monitor` for loops that somebody else runs: transformers' Trainer and Lightning. Neither package is needed by the others."""

from __future__ import annotations

from torch import Tensor, nn

from suite.diagnosis.monitor import Monitor


def hugging_face_monitor(**kwargs):
    """A `transformers.TrainerCallback`: Trainer(callbacks=[hugging_face_monitor(csv="watch.csv")]). kwargs: of `Monitor`, without model.

    The loss is what the model returned. The Trainer clips before a callback can look: the gradient norm is that
    behind its `max_grad_norm`, and its own log has the one before.
    """
    from transformers import TrainerCallback

    class MonitorCallback(TrainerCallback):
        monitor: Monitor | None = None

        def on_train_begin(self, args, state, control, model=None, **_):
            self.monitor = Monitor(model, **{"start": state.global_step} | kwargs)

        def on_pre_optimizer_step(self, args, state, control, **_):
            self.monitor.step()

        def on_train_end(self, args, state, control, **_):
            self.monitor.close()

    return MonitorCallback()


def lightning_monitor(**kwargs):
    """A Lightning `Callback`: Trainer(callbacks=[lightning_monitor(csv="watch.csv")]). kwargs: of `Monitor`; `model` may be the name of
    the submodule that training_step calls, where it does not call self(...); by default the largest one of a module
    without forward.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback

    class MonitorCallback(Callback):
        monitor: Monitor | None = None
        loss: Tensor | None = None

        def on_train_start(self, trainer, pl_module):
            more = dict(kwargs)
            name = more.pop("model", None)
            model = pl_module.get_submodule(name) if name is not None else _called(pl_module)
            self.monitor = Monitor(model, **{"start": trainer.global_step} | more)

        def on_before_backward(self, trainer, pl_module, loss):
            self.loss = loss.detach()

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.monitor.step(self.loss)

        def on_train_end(self, trainer, pl_module):
            self.monitor.close()

    return MonitorCallback()


def _called(module: nn.Module) -> nn.Module:
    """The module that a training_step calls: itself where it has a forward of its own, else its largest child."""
    own = type(module).forward
    if own.__module__.partition(".")[0] not in ("torch", "lightning", "pytorch_lightning"):
        return module
    return max(module.children(), key=lambda child: sum(p.numel() for p in child.parameters()), default=module)
