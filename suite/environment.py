"""Where a run was made: versions, processor, compiler, commit. Columns of runs.csv; never part of a run id."""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = "screambench"  # in the user's cache directory
CACHE_OF_USER = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")  # read before torch writes its own default there
OF_ACCELERATE = ("ACCELERATE_", "FSDP_", "FP8_", "MEGATRON_LM_", "DEEPSPEED_", "PARALLELISM_CONFIG_")  # how its variables begin
OF_TORCH = (
    "TORCHINDUCTOR_", "TORCHDYNAMO_", "TORCH_COMPILE_", "TORCH_DYNAMO_", "PYTORCH_TENSOREXPR", "PYTORCH_JIT", "TORCH_ALLOW_TF32",
    "TORCH_BLAS_", "TORCH_LINALG_", "TORCH_CUDNN_", "TORCH_MKLDNN_", "TORCH_LINEAR_", "TORCH_ROCM_", "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_", "ONEDNN_", "DNNL_", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "TRITON_F32_DEFAULT",
)  # fmt: skip
MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # what Accelerate reads under `accelerate launch --cpu`
HARMLESS = (  # of both, what changes no number, or says where to train
    "ACCELERATE_USE_CPU", "ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE", "ACCELERATE_LOG_LEVEL", "ACCELERATE_ENABLE_RICH",
    "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS",
)  # fmt: skip


def harmless(name: str, *beginnings: str) -> bool:
    """Whether a variable of the environment changes no number, or is none of those that begin so."""
    return not name.startswith(beginnings or OF_TORCH) or name in HARMLESS


def forget(*beginnings: str) -> None:
    """Take the variables that begin so out of this process's environment: a run is a function of its id, not of what a shell exports.

    `ATEN_CPU_CAPABILITY` stays, and the column `cpu_isa` says what it did.
    """
    for name in [name for name in os.environ if not harmless(name, *beginnings)]:
        del os.environ[name]


@cache
def compiler() -> str:
    """First line of the C++ compiler's version, or "" where there is none (blocks then run eager)."""
    command = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not command:
        return ""
    try:
        text = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return text.splitlines()[0].strip() if text.strip() else ""


@cache
def commit() -> str:
    """g and the short commit of this checkout, "-dirty" where its code differs from it, "" outside git. Results never make it dirty.

    The g, as `git describe` has it: without a letter one commit in a hundred reads as a number.
    """

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        top = git("rev-parse", "--show-toplevel")
        if not top or Path(top).resolve() != ROOT or not git("ls-files", "suite/environment.py"):
            return ""  # installed somewhere inside a repository of another project
        head = git("rev-parse", "--short=12", "HEAD")
        dirty = head and git("status", "--porcelain", "--", "suite", "baselines", "requirements.lock")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head and f"g{head}" + ("-dirty" if dirty else "")


@cache
def compile_cache() -> Path:
    """Where Inductor keeps compiled blocks: below TORCHINDUCTOR_CACHE_DIR, else in a folder of the user's own that nobody else can write.

    One for each version, compiler and instruction set: Inductor's key of a graph leaves the instruction set out, and
    a graph made for vectors of another width gives nan or, worse, other numbers. Never a results folder: the cache
    holds pickles and shared libraries, which run code where they are loaded. A temporary folder where there is no
    such place.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    made_by = f"{platform.python_version()} {cpu_model()} {compiler()} {instruction_sets()}"
    name = f"torch-{package('torch')}-{hashlib.sha256(made_by.encode()).hexdigest()[:12]}"
    if CACHE_OF_USER:  # which a worker has from the process that started it, complete
        return Path(CACHE_OF_USER) if Path(CACHE_OF_USER).name == name else Path(CACHE_OF_USER) / name
    try:
        folder = (Path(base) if base.startswith("/") else Path.home() / ".cache") / CACHE / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = folder.stat()
        if state.st_uid == os.getuid() and not state.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: no home
        pass
    return Path(_temporary_cache())


@cache
def _temporary_cache() -> str:
    folder = tempfile.mkdtemp(prefix="screambench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def cpu_model() -> str:
    """Processor name as the system gives it."""
    return _told("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def instruction_sets() -> str:
    """What decides the vectors of compiled code: the processor's own extensions, and what ATEN_CPU_CAPABILITY leaves of them."""
    flags = sorted(flag for flag in _told("/proc/cpuinfo", "flags").split() if flag.startswith(("avx", "amx", "fma")))
    return " ".join([os.environ.get("ATEN_CPU_CAPABILITY", ""), *flags])


def _told(file: str, what: str) -> str:
    """What a file of the system says behind the first line's name that begins so, "" where it does not."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(what)), "")


def cpu_wanted() -> bool:
    """Whether Accelerate is told to leave GPUs alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")


def sharding_wanted() -> bool:
    """Whether this process was launched to shard, by Accelerate's settings."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")


def processes() -> int:
    """How many processes a launcher started together, this one included."""
    names = ("WORLD_SIZE", *MPI) if cpu_wanted() else ("WORLD_SIZE",)  # without it a sweep on each rank is meant
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 1)


def launched() -> bool:
    """Whether this process is one of a run's: of several, or one that was launched to shard."""
    return processes() > 1 or (sharding_wanted() and "RANK" in os.environ)


def launched_alone() -> bool:
    """Whether `accelerate launch --cpu` was asked for several processes and started one: without MPI it does so, silently."""
    return not launched() and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def cards() -> int:
    """CUDA devices that Accelerate would train on."""
    import torch

    return 0 if cpu_wanted() else torch.cuda.device_count()


def usable_cores() -> int:
    """Cores this process may use: affinity and cgroup quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def free_memory() -> int | None:
    """Bytes that this process may still take before the system kills it: the machine's and its cgroup's; None where unknown."""
    available = _told("/proc/meminfo", "MemAvailable:").removesuffix(" kB")
    free = [1024 * int(available)] if available.isdigit() else []
    for folder, limit, used in (("", "memory.max", "memory.current"), ("memory/", "memory.limit_in_bytes", "memory.usage_in_bytes")):
        group = Path("/sys/fs/cgroup") / folder
        try:
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            cache = int(stat.get("inactive_file", 0))  # given back before anything is killed
            free.append(int((group / limit).read_text()) - int((group / used).read_text()) + cache)
        except (OSError, ValueError):  # none of this version, or no limit ("max")
            pass
    return max(0, min(free)) if free else None


def package(name: str) -> str:
    """Installed version of a package, "" where absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def provenance() -> dict[str, object]:
    """The provenance columns that do not depend on the run."""
    import torch

    return {
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerate": package("accelerate"),
        "cpu_model": cpu_model(),
        "cpu_isa": torch.backends.cpu.get_cpu_capability(),
        "compiler": compiler(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def reset_peak_memory() -> None:
    """Forget this process's peak, where the system lets us; a worker takes many runs."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_memory_mib() -> float | None:
    """Peak resident memory in MiB since the last reset, None where unknown."""
    peak = _told("/proc/self/status", "VmHWM:").removesuffix(" kB")
    return int(peak) / 1024 if peak else None
