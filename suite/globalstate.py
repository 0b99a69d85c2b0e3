"""What a whole process shares and a scheme or plugin may set: found out, and put back, so that no run sees what another left.

`kept` puts back the settings of torch, Python and numpy. `unpatched` puts back names and containers of the suite and of torch, and
says which they were, as does `kept` of what nothing can put back: a caller refuses who did that.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FunctionType, ModuleType

import numpy as np
import torch

FLAGS = (  # of torch._C, each with a getter and a setter
    "cpu_allow_fp16_reduced_precision_reduction", "cublas_allow_bf16_reduced_precision_reduction", "cublas_allow_fp16_accumulation",
    "cublas_allow_fp16_reduced_precision_reduction", "cudnn_benchmark", "cudnn_deterministic", "cudnn_enabled",
    "deterministic_fill_uninitialized_memory", "graph_executor_optimize", "linalg_preferred_backend", "blas_preferred_backend",
    "math_sdp_allow_fp16_bf16_reduction", "mkldnn_deterministic", "mkldnn_enabled", "nnpack_enabled", "qengine",
)  # fmt: skip
PRECISIONS = (("generic", "all"), *((device, what) for device in ("cuda", "mkldnn") for what in ("all", "matmul", "conv", "rnn")))
COMPILERS = ("torch._dynamo.config", "torch._inductor.config", "torch._functorch.config")
HOUSE = ("suite", "baselines")
SHARED = (  # besides the house: what its arithmetic calls by name
    "torch", "torch.nn", "torch.nn.functional", "torch.nn.init", "torch.linalg", "torch.optim", "torch.optim.adamw", "torch.backends.cuda",
    "math", "random", "numpy", "hashlib", "json", "builtins", "accelerate", "accelerate.accelerator", "accelerate.optimizer",
)  # fmt: skip
CLASSES = (torch.Tensor, torch.nn.Module, torch.nn.Parameter, torch.nn.Linear, torch.optim.AdamW, torch.optim.Optimizer)

Setting = tuple[Callable[[], object], Callable[[object], object]]


class GlobalStateError(ValueError):
    """What was done to the process cannot be put back; the message is half a line, without a subject."""


def import_all() -> None:
    """Import what has settings of its own, so that a body that would be the first to import it can be undone too."""
    for name in (*COMPILERS, "accelerate"):  # the compilers replace parts of torch as they are imported
        importlib.import_module(name)


def _settings() -> dict[str, Setting]:
    """(getter, setter) of all that can be put back, in the order in which it must be."""
    c = torch._C
    table: dict[str, Setting] = {
        "default device": (_default_device, torch.set_default_device),
        "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "threads": (torch.get_num_threads, torch.set_num_threads),
        "gradients": (torch.is_grad_enabled, c._set_grad_enabled),
        "deterministic": (
            lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
            lambda old: torch.use_deterministic_algorithms(old[0], warn_only=old[1]),
        ),
        "anomaly": (
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()), lambda old: torch.set_anomaly_enabled(*old)
        ),
        "autocast cache": (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
        "denormals": (lambda: bool((torch.tensor([1e-40], dtype=torch.float32, device="cpu") * 1).item()),
                      lambda old: torch.set_flush_denormal(not old)),
        "fp32 precision": (
            lambda: [c._get_fp32_precision_getter(*key) for key in PRECISIONS],
            lambda old: [c._set_fp32_precision_setter(*key, value) for key, value in zip(PRECISIONS, old)],
        ),
        "environment": (lambda: dict(os.environ), lambda old: _refill(os.environ, old)),
        "folder": (_folder, lambda old: old and os.chdir(old)),
        "umask": (_umask, os.umask),
        "recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
        "trace": (sys.gettrace, sys.settrace),
        "profile": (sys.getprofile, sys.setprofile),
        "collector": (gc.isenabled, lambda old: gc.enable() if old else gc.disable()),
        "numpy errors": (np.geterr, lambda old: np.seterr(**old)),
        "random": (random.getstate, random.setstate),
        "numpy random": (np.random.get_state, np.random.set_state),
        "torch random": (torch.get_rng_state, torch.set_rng_state),
    }  # fmt: skip
    for device in ("cpu", "cuda"):
        table[f"autocast {device}"] = (
            lambda device=device: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)),
            lambda old, device=device: (torch.set_autocast_enabled(device, old[0]), torch.set_autocast_dtype(device, old[1])),
        )
    for name in FLAGS:
        if hasattr(c, f"_get_{name}") and hasattr(c, f"_set_{name}"):
            table[name] = (getattr(c, f"_get_{name}"), getattr(c, f"_set_{name}"))
    for name in ("flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp"):
        table[name] = (getattr(torch.backends.cuda, f"{name}_enabled"), getattr(torch.backends.cuda, f"enable_{name}"))
    for name in ("path", "meta_path", "path_hooks"):
        items = getattr(sys, name)
        table[f"sys.{name}"] = (lambda name=name: list(getattr(sys, name)), lambda old, items=items, name=name: _set_list(name, items, old))
    table["warnings"] = (lambda: list(warnings.filters), _set_warnings)
    for owner, name in ((sys, "stdin"), (sys, "stdout"), (sys, "stderr"), (sys, "excepthook"), (warnings, "showwarning")):
        table[f"{owner.__name__}.{name}"] = (lambda o=owner, n=name: getattr(o, n), lambda old, o=owner, n=name: setattr(o, n, old))
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            table[f"signal {number}"] = (lambda n=number: signal.getsignal(n), lambda old, n=number: signal.signal(n, old or 0))
    hooks = torch.nn.modules.module
    for name, value in vars(hooks).items():
        if name.startswith("_global_") and isinstance(value, dict):
            table[name] = (lambda value=value: dict(value), lambda old, value=value: _refill(value, old))
    for name in COMPILERS:
        if config := sys.modules.get(name):
            table[name] = (config.get_config_copy, lambda old, config=config: _set_config(config, old))
    if accelerate := sys.modules.get("accelerate.state"):
        for cls in (accelerate.PartialState, accelerate.AcceleratorState, accelerate.GradientState):
            table[cls.__name__] = (lambda cls=cls: dict(cls._shared_state), lambda old, cls=cls: _refill(cls._shared_state, old))
    return table


@contextmanager
def kept() -> Iterator[None]:
    """Put back whatever the body sets. Raises GlobalStateError after a body that did what cannot be put back."""
    settings, fixed = _settings(), _fixed()
    before = {name: get() for name, (get, _) in settings.items()}
    try:
        yield
    finally:
        for name, (get, put) in settings.items():
            if not _same(get(), before[name]):
                put(before[name])
    for what, old in fixed.items():
        if _fixed()[what] != old:
            raise GlobalStateError(f"{what}, which cannot be put back")
    for name, (get, _) in settings.items():
        if not _same(get(), before[name]):
            raise GlobalStateError(f"changes {name}, which cannot be put back")


def _fixed() -> dict[str, object]:
    """What can only be looked at."""
    return {
        "sets torch's inter-op threads": torch.get_num_interop_threads(),
        "enters torch's inference mode": torch.is_inference_mode_enabled(),
        "enters a mode that changes torch's functions": len(torch.overrides._get_current_function_mode_stack()),
        "enters a mode that changes torch's operators": len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()),
    }


@contextmanager
def unpatched() -> Iterator[None]:
    """Raise GlobalStateError after a body that replaced a part of the suite, of a built-in scheme or of torch, or left a thread behind.

    What was replaced is put back.
    """
    modules, threads, kernels = dict(sys.modules), set(threading.enumerate()), set(torch.library._impls)
    owners = _owners()
    before = [(owner, name, value, _inside(value)) for owner in owners for name, value in _named(owner)]
    names = [(owner, {*vars(owner)}) for owner in owners if isinstance(owner, type)]
    try:
        yield
    finally:
        changed = [_called(owner, name) for owner, name, value, inside in before if _put_back(owner, name, value, inside)]
        for owner, old in names:
            for name in {*vars(owner)} - old - {"__annotations__", "__doc__"}:
                delattr(owner, name)
                changed.append(_called(owner, name))
        swapped = [name for name, module in modules.items() if sys.modules.get(name) is not module]
        sys.modules.update({name: modules[name] for name in swapped})
    if changed or swapped:
        raise GlobalStateError(f"replaces {[*changed, *swapped][0]}, which other schemes use")
    if new := [key for key in torch.library._impls - kernels if key.startswith("aten/")]:
        raise GlobalStateError(f"replaces torch's kernel {new[0]}, which cannot be put back")
    if new := [thread for thread in threading.enumerate() if thread not in threads]:
        raise GlobalStateError(f"starts a thread ({new[0].name}), which cannot be put back")


def _owners() -> list[ModuleType | type]:
    """Modules and classes whose names must stay what they are."""
    house = [module for name, module in sys.modules.items() if name.partition(".")[0] in HOUSE and isinstance(module, ModuleType)]
    shared = [sys.modules[name] for name in SHARED if name in sys.modules]
    classes = {
        value for module in (*house, *shared) for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and module.__name__ not in ("torch", "builtins", "numpy")
    }  # fmt: skip
    return [*house, *shared, *{*classes, *CLASSES}]


def _named(owner: ModuleType | type) -> list[tuple[str, object]]:
    """What an owner holds; Python itself writes into the names with underscores of a module."""
    return [(name, value) for name, value in vars(owner).items() if isinstance(owner, type) or name[:2] != "__"]


def _inside(value: object) -> object:
    """What may change inside an object that stays the same."""
    if isinstance(value, FunctionType):
        return value.__code__, value.__defaults__, value.__kwdefaults__ and dict(value.__kwdefaults__)
    return value.copy() if type(value) in (dict, list, set) else None


def _put_back(owner: ModuleType | type, name: str, value: object, inside: object) -> bool:
    """Whether a name or what it holds had changed."""
    if owner.__name__ == "suite.registry" and name in ("_entries", "_discovered"):
        return False  # which plugins are there to fill
    changed = vars(owner).get(name, owner) is not value
    if changed:
        setattr(owner, name, value)
    if not _same(_inside(value), inside):
        changed = True
        if isinstance(value, FunctionType):
            value.__code__, value.__defaults__, value.__kwdefaults__ = inside
        elif isinstance(value, list):
            value[:] = inside
        else:
            _refill(value, inside)
    return changed


def _called(owner: ModuleType | type, name: str) -> str:
    return f"{owner.__module__}.{owner.__name__}.{name}" if isinstance(owner, type) else f"{owner.__name__}.{name}"


def _same(a: object, b: object) -> bool:
    """Equality of settings; of containers by what they hold, where it is the same object or plainly equal."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    with suppress(Exception):  # an object whose comparison raises is another one
        return bool(a == b)
    return False


def _refill(mapping, old) -> None:
    mapping.clear()
    mapping.update(old)


def _default_device() -> torch.device | None:
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return context and context.device


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return None


def _umask() -> int:
    now = os.umask(0o77)
    os.umask(now)
    return now


def _set_list(name: str, items: list, old: list) -> None:
    items[:] = old
    setattr(sys, name, items)  # it may be another list by now


def _set_warnings(old: list) -> None:
    warnings.filters[:] = old
    warnings._filters_mutated()


def _set_config(config: ModuleType, old: dict[str, object]) -> None:
    now = config.get_config_copy()
    for name, value in old.items():
        if not _same(now.get(name), value):
            setattr(config, name, value)
