"""What the arithmetic of all runs rests on, compared before and after a scheme's own code has run: a scheme that changes it is refused.

A process trains the runs of one scheme's file alone, so no other's numbers are at stake, and nothing is put back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType

import torch

FLAGS = (  # of torch._C, each with a getter
    "cpu_allow_fp16_reduced_precision_reduction", "cublas_allow_bf16_reduced_precision_reduction", "cublas_allow_fp16_accumulation",
    "cublas_allow_fp16_reduced_precision_reduction", "cudnn_benchmark", "cudnn_deterministic", "cudnn_enabled",
    "linalg_preferred_backend", "blas_preferred_backend", "math_sdp_allow_fp16_bf16_reduction", "mkldnn_deterministic", "mkldnn_enabled",
    "nnpack_enabled", "qengine",
)  # fmt: skip
PRECISIONS = (("generic", "all"), *((device, what) for device in ("cuda", "mkldnn") for what in ("all", "matmul", "conv", "rnn")))
COMPILERS = ("torch._inductor.config", "torch._functorch.config")
SHARED = (  # besides the suite: what its arithmetic calls by name
    "torch", "torch.nn", "torch.nn.functional", "torch.nn.init", "torch.linalg", "torch.optim", "torch.optim.adamw", "torch.autograd",
    "math", "random", "numpy", "builtins", "accelerate.accelerator", "accelerate.optimizer",
)  # fmt: skip
CLASSES = (torch.Tensor, torch.nn.Module, torch.nn.Parameter, torch.nn.Linear, torch.optim.AdamW, torch.optim.Optimizer)
# what Python itself puts into a class, at its first copy or pickle (copyreg) or when it is first asked for
LAZY = ("__slotnames__", "__annotations__", "__annotations_cache__", "__doc__")
_WRAPPERS = {torch._compile._disable_dynamo(lambda: None).__code__}  # in which torch hides a part of its own from its compiler


class Altered(ValueError):
    """The arithmetic is another than before; the message is half a line, without a subject."""


@contextmanager
def unchanged() -> Iterator[None]:
    """Raise Altered after a body that changes a setting of torch, or a part of torch or of the suite."""
    settings, names, kernels = _settings(), _names(), set(torch.library._impls)
    yield
    now = _settings()
    if changed := [what for what, old in settings.items() if now[what] != old]:
        raise Altered(f"changes {changed[0]}")
    for (owner, name), (old, inside) in names.items():
        if (now := _bare(vars(owner).get(name))) is not old or _inside(owner, now) != inside:
            raise Altered(f"replaces {_called(owner)}.{name}")
    for owner in {owner for owner, _ in names if isinstance(owner, type)}:
        new = [name for name, value in vars(owner).items() if (owner, name) not in names and _bare(value) is value]
        if new := [name for name in new if name not in LAZY and name[:3] != "___"]:  # torch's own marks
            raise Altered(f"replaces {_called(owner)}.{new[0]}")
    new = sorted(key for key in set(torch.library._impls) - kernels if key.startswith("aten/") and not key.endswith("/FuncTorchBatched"))
    if new:  # torch itself enters those left out, at the first `vmap`
        raise Altered(f"replaces torch's kernel {new[0]}")


def _settings() -> dict[str, object]:
    """What torch does arithmetic by, in this thread."""
    c, hooks = torch._C, vars(torch.nn.modules.module)
    table = {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": getattr(getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None), "device", None),
        "torch's threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "whether torch keeps gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "whether torch is deterministic": (torch.are_deterministic_algorithms_enabled(), c._get_deterministic_fill_uninitialized_memory()),
        "what torch does with denormals": bool((torch.tensor([1e-40], dtype=torch.float32, device="cpu") * 1).item()),
        "torch's fp32 precision": [c._get_fp32_precision_getter(*key) for key in PRECISIONS],
        "autocast": [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")],
        "modes of torch's functions": (len(torch.overrides._get_current_function_mode_stack()),
                                       len(torch.utils._python_dispatch._get_current_dispatch_mode_stack())),
        "hooks of all modules": [len(value) for name, value in hooks.items() if name.startswith("_global_") and isinstance(value, dict)],
        "torch's attention kernels": [getattr(torch.backends.cuda, f"{name}_sdp_enabled")()
                                      for name in ("flash", "mem_efficient", "math", "cudnn")],
    }  # fmt: skip
    table |= {name: getattr(c, f"_get_{name}")() for name in FLAGS if hasattr(c, f"_get_{name}")}
    return table | {name: sys.modules[name].get_config_copy() for name in COMPILERS if name in sys.modules}


def _names() -> dict[tuple[ModuleType | type, str], tuple[object, object]]:
    """(owner, name) -> (what is there, what is in it), of functions, classes and methods that train, and of the suite's constants."""
    house = [module for name, module in sys.modules.items() if name.partition(".")[0] == "suite" and isinstance(module, ModuleType)]
    own = {value for module in house for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__}
    found = {(owner, name): value for owner in (*own, *CLASSES) for name, value in vars(owner).items()}
    for module in (*house, *(sys.modules[name] for name in SHARED if name in sys.modules)):
        found |= {(module, name): value for name, value in vars(module).items()
                  if name[:2] != "__" and (callable(value) or module in house and name.isupper())}  # fmt: skip
    return {(owner, name): (_bare(value), _inside(owner, _bare(value))) for (owner, name), value in found.items()}


def _bare(value: object) -> object:
    """Without what torch itself wraps a part of its own in: an optimiser's `step` as the first is made, more when its
    compiler is imported, and at the first compilation.
    """
    while True:
        if getattr(value, "__module__", None) == "torch._dynamo.mutation_guard" and getattr(value, "__closure__", None):
            value = value.__closure__[0].cell_contents
        elif getattr(value, "hooked", False) or getattr(value, "__code__", None) in _WRAPPERS:
            value = value.__wrapped__
        elif (inner := getattr(value, "_torchdynamo_orig_callable", value)) is not value:
            value = inner
        else:
            return value


def _inside(owner: ModuleType | type, value: object) -> object:
    """What may change in an object that stays the same: a function's code and defaults, what a constant holds."""
    if isinstance(value, FunctionType):
        return value.__code__, repr((value.__defaults__, value.__kwdefaults__))
    return repr(value) if isinstance(value, dict | list | set) and isinstance(owner, ModuleType) else None


def _called(owner: ModuleType | type) -> str:
    return f"{owner.__module__}.{owner.__qualname__}" if isinstance(owner, type) else owner.__name__
