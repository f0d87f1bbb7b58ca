"""What a run would be on: a device's memory and speed, and how a launch divides a run over several of them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_kit import inputs
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.training.engines import DEEPSPEED, FSDP, setting_faults

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """A device: FLOPs a second of dense products with 16-bit and with float32 inputs, bytes a second of its memory."""

    name: str
    memory: float  # bytes
    half: float
    float32: float
    bandwidth: float
    has_bf16: bool = True
    process: float = 0.0  # bytes of a process before a model is there

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"


# Dense TFLOP/s with bf16 inputs (T4: fp16; it has no bf16) and in float32, memory in GB and its GB/s. From NVIDIA's
# data sheets of each, where bf16 stands "with sparsity" for H200, H100, L40S and L4: half of that here. A100 and the
# two H are the SXM boards; RTX 4090 and 3090, with float32 sums, from the white papers of Ada (appendix A) and GA102.
GPUS = {
    "H200": (989, 67, 141, 4800),
    "H100": (989, 67, 80, 3350),
    "A100-80": (312, 19.5, 80, 2039),
    "A100-40": (312, 19.5, 40, 1555),
    "L40S": (362, 91.6, 48, 864),
    "RTX4090": (165, 82.6, 24, 1008),
    "RTX3090": (71, 35.6, 24, 936),
    "L4": (121, 30.3, 24, 300),
    "T4": (65, 8.1, 16, 320),
}
NO_BF16 = ("T4",)
CONTEXT = (
    0.8 * GIB
)  # of a process on a GPU: CUDA's context, cuBLAS' workspace, what the allocator cannot fill; a guess


def machine(name: str | None) -> Machine:
    """The device of that name in any case; None: the CPU of this machine. Raises UserError."""
    if name is None or name.lower() == "cpu":
        return this_cpu()
    wanted = "".join(letter for letter in name.lower() if letter.isalnum())
    known = {gpu.lower().replace("-", ""): gpu for gpu in GPUS}
    gpu = known.get({"a100": "a10080"}.get(wanted, wanted))
    if gpu is None:
        near = did_you_mean(name, GPUS)
        raise UserError(f"--gpu {name!r} is not one of {', '.join([*GPUS, 'cpu'])}.{near}")
    half, float32, gigabytes, bandwidth = GPUS[gpu]
    rates = (half * 1e12, float32 * 1e12, bandwidth * 1e9)
    return Machine(gpu, gigabytes * 1e9, *rates, has_bf16=gpu not in NO_BF16, process=CONTEXT)


def this_cpu() -> Machine:
    """This machine's memory, and its speed by a product in float32 that takes a tenth of a second."""
    size = 1024
    x = torch.randn(size, size)
    (x @ x).sum()
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < 0.1:
        x @ x
        products += 1
    flops = products * 2 * size**3 / (time.perf_counter() - began)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine("cpu", memory, flops, flops, 20e9, process=IMPORTED)


# Of a stage's process when its model is about to be loaded: the interpreter, torch, transformers, trl and peft
# (`benchmarks/plan_vs_measured.py --floor`).
IMPORTED = 0.55 * GIB


# --- the launch -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """How many processes, a device each, and what of a model each of them holds.

    `shards`: what is in pieces over them, `offloads`: what lies in the host's memory, of `WHOLE`.
    """

    name: str = "one process"
    devices: int = 1
    shards: frozenset[str] = frozenset()
    offloads: frozenset[str] = frozenset()
    is_deepspeed: bool = False

    def share(self, part: str) -> float:
        """How much of a part of the model a device holds."""
        return 0 if part in self.offloads else 1 / self.devices if part in self.shards else 1

    @property
    def is_ddp(self) -> bool:
        return self.devices > 1 and not self.shards


WHOLE = frozenset({"weights", "gradients", "optimizer"})
STATES = WHOLE - {"weights"}
ZERO = {0: frozenset(), 1: frozenset({"optimizer"}), 2: STATES, 3: WHOLE}
CONFIGS = Path(__file__).parents[1] / "stages" / "accelerate"


def read_launch(name: str | None, devices: int | None) -> Launch:
    """What an accelerate configuration (its path, or its name) says; `devices` in place of its
    own number of processes. Raises UserError."""
    if name is None:
        return _plain(devices or 1)
    path = _found(name)
    values = inputs.read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"--accelerate {path}: needs lines of `key: value`, as `accelerate config` writes them.")
    kind = str(values.get("distributed_type", "NO")).upper()
    count = devices or _number(path, values, "num_processes", 1 if kind == "NO" else None)
    if kind == "NO" and count > 1:
        raise UserError(f"--accelerate {path} starts one process, not {count}: give ddp, say, or leave out --devices.")
    config = values.get(f"{kind.lower()}_config") or {}
    if kind == "FSDP":
        config = {key if key.startswith("fsdp_") else f"fsdp_{key}": value for key, value in config.items()}
        _refuse(path, FSDP, config)
        return fully_sharded(count, config)
    if kind == "DEEPSPEED":
        _refuse(path, DEEPSPEED, config)
        stage = _number(path, config, "zero_stage", 2)
        moved = {"optimizer": "offload_optimizer_device", "weights": "offload_param_device"}
        offloads = frozenset(part for part, key in moved.items() if str(config.get(key, "none")).lower() != "none")
        return Launch(f"ZeRO-{stage} over {count}", count, ZERO.get(stage, WHOLE), offloads, True)
    return _plain(count)


def _refuse(path: Path, engine: str, config: Mapping[str, Any]) -> None:
    """What the launch itself would be refused for."""
    faults = [*setting_faults(engine, config)]
    if faults:
        raise UserError(f"--accelerate {path}: {' '.join(faults)}")


def _plain(count: int) -> Launch:
    return Launch() if count == 1 else Launch(f"DDP over {count}", count)


def fully_sharded(count: int, config: Mapping[str, Any]) -> Launch:
    """FSDP2. `fsdp_reshard_after_forward` false keeps the weights whole between the passes."""
    shards = STATES if str(config.get("fsdp_reshard_after_forward", True)).lower() == "false" else WHOLE
    offloads = {"weights", "optimizer"} if str(config.get("fsdp_offload_params", False)).lower() == "true" else set()
    more = (", weights whole" if shards == STATES else "") + (", offloaded" if offloads else "")
    return Launch(f"FSDP2 over {count}{more}", count, shards, frozenset(offloads))


def _found(name: str) -> Path:
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    path = CONFIGS / f"{name}.yaml" if name in names else Path(name)
    if not path.is_file():
        raise UserError(
            f"--accelerate {name!r}: no such file, and no launch of that name ({', '.join(names)})."
            f"{did_you_mean(name, names)}"
        )
    return path


def _number(path: Path, values: Mapping[str, Any], key: str, default: int | None) -> int:
    value = values.get(key, default)
    if value is None:
        raise UserError(f"--accelerate {path} does not say how many processes there are: give --devices 8, say.")
    least = 0 if key == "zero_stage" else 1
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"--accelerate {path}: {key} is {value!r}; it must be a whole number from {least} on.")
    return value
