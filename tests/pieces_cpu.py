"""FSDP2 and DeepSpeed on CPUs, for tests alone: accelerate would make plain DDP of them, and the kit refuses it.

It starts FSDP where there are several GPUs, and then asks for none; and DeepSpeed where it was not told of the CPU.
`python tests/pieces_cpu.py STAGE ...` is `rlhf-kit STAGE ...` under FSDP2, in processes that a launcher started.
"""

import os
import sys

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from rlhf_kit.cli import main

ASKED = {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_OFFLOAD_PARAMS": "false",
}


def real_fsdp() -> None:
    """As `accelerate launch` with fsdp2.yaml would have it on GPUs. Before anything else."""
    os.environ.update(ASKED)
    _take_for(DistributedType.MULTI_GPU)


def real_deepspeed(stage: int) -> None:
    """As `accelerate launch` with zero2.yaml or zero3.yaml would have it on GPUs. Before anything else."""
    os.environ.update(
        ACCELERATE_USE_CPU="true", ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE=str(stage),
        ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL="true",
    )  # fmt: skip
    _take_for(DistributedType.DEEPSPEED)
    begin = AcceleratorState.__init__

    def begin_without_cpu(self, mixed_precision=None, cpu=False, *given, **options):
        told = os.environ.pop("ACCELERATE_USE_CPU")
        begin(self, mixed_precision, False, *given, **options)
        os.environ["ACCELERATE_USE_CPU"] = told

    AcceleratorState.__init__ = begin_without_cpu


def _take_for(kind: DistributedType) -> None:
    """Several processes on CPUs are taken for this kind."""
    begin = PartialState.__init__

    def begin_as(self, cpu=False, **options):
        begin(self, cpu, **options)
        if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = kind

    PartialState.__init__ = begin_as


def check_sharded(model: torch.nn.Module) -> None:
    """Its blocks are units of their own, and this process holds about half of the weights."""
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    assert isinstance(model, FSDPModule) and len(units) > 2, [type(unit).__name__ for unit in units]
    weights = list(model.parameters())
    assert all(isinstance(weight, DTensor) for weight in weights)
    whole, here = sum(w.numel() for w in weights), sum(w.to_local().numel() for w in weights)
    assert 0.4 < here / whole < 0.6, (here, whole)


if __name__ == "__main__":
    real_fsdp()
    sys.exit(main(sys.argv[1:]))
