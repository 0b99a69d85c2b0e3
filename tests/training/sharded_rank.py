"""One rank of test_sharded.py, started by `accelerate launch --config_file suite/scale/fsdp2.yaml`: prints what it saw as JSON.

Every case trains a run of the suite by its own `Trainer`, sharded over the processes there are.
"""

import json
import os
import resource
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor

sys.path.append(str(Path(__file__).parents[1]))
import toys  # noqa: E402

from suite import registry  # noqa: E402
from suite.data.load import load  # noqa: E402
from suite.diagnosis.audit_pass import final_state  # noqa: E402
from suite.protocol import Run  # noqa: E402
from suite.scale.sharded import Sharding, read  # noqa: E402
from suite.training.checkpoint import CheckpointWarning  # noqa: E402
from suite.training.trainer import Trainer  # noqa: E402


def look(trainer: Trainer) -> dict:
    """What lies where, and in which precision a block works."""
    dit, seen = trainer.state.dit, {}
    block = dit.blocks[0]

    def inside(module, inputs):
        seen["weights"], seen["rope"], seen["step"] = (str(t.dtype) for t in (module.wo, inputs[1], inputs[3]))
        seen["gates"] = sorted({str(p.dtype) for p in module.residuals.parameters()})
        seen["gathered"] = not isinstance(module.wo, DTensor)

    hook = block.register_forward_pre_hook(inside)  # after FSDP's own
    trainer.evaluation.heldout_loss()
    hook.remove()
    parts = trainer.state.parameters.parts
    return seen | {
        "state": final_state(trainer), "masters": sorted({str(p.dtype) for p in dit.parameters()}),
        "mine": sum(p.to_local().numel() for p in parts.values()), "of": sum(p.numel() for p in parts.values()),
        "whole": sorted(trainer.state.parameters.whole.slices), "units": sum(type(m).__name__.startswith("FSDP") for m in dit.modules()),
        "recomputed": [i for i, b in enumerate(dit.blocks) if b.recomputed],
        "compiled": all(b.compiled_merges is not None for b in dit.blocks),
    }  # fmt: skip


def on_a_full_disk(save) -> str:
    """What a save says where no file may grow beyond 4 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        save()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return "nothing"


def train(case: dict) -> dict:
    """The case's run to its step `stop`, from its folder's checkpoint if there is one; `save` says whether one is left."""
    run, said = Run.from_json(case["run"]), []
    if run.scheme.startswith("toy_") and run.scheme not in registry.names():
        toys.enter()
    sharding = Sharding(read(run.protocol).reshard, case.get("micro"))
    trainer = Trainer(run, load(run.data), Path(case["folder"]), placement=sharding)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        restored = trainer.restore()
    said += [str(w.message) for w in found if issubclass(w.category, CheckpointWarning)]
    while trainer.state.step < case["stop"] and trainer.advance():
        if case.get("gates"):
            trainer.note_heldout(0.0)
        if case.get("save"):
            trainer.checkpoint()
    if case.get("full"):
        said.append(on_a_full_disk(trainer.save))
    samples, _ = trainer.evaluation.sample(7)  # of an odd number: the processes have not equally many
    seen = look(trainer) if case.get("look") else {}
    return seen | {
        "restored": restored, "said": said, "curve": trainer.state.curve, "heldout": float(trainer.evaluation.heldout_loss()),
        "gate_rows": trainer.state.log.get("gates", []),
        "samples": samples.flatten(1)[:, :6].tolist(), "n_samples": len(samples), "world": dist.get_world_size(),
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    state = PartialState(cpu=True)
    fsdp = {name: value for name, value in os.environ.items() if name.startswith(("FSDP_", "ACCELERATE_"))}
    for case in json.loads(Path(sys.argv[1]).read_text()):
        os.environ.update(fsdp)  # a trainer takes them out
        AcceleratorState._reset_state()  # of one precision only
        found = train(case)
        if state.is_main_process:
            print("CASE", json.dumps(found), flush=True)
    dist.barrier()
    os._exit(0)  # as suite/__main__.py does, and why


if __name__ == "__main__":
    main()
