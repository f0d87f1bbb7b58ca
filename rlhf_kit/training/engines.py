"""Which engine trains: what a launch asks for is refused where it would become something else; what wrapped the model.

accelerate starts FSDP and DeepSpeed on GPUs and other accelerators alone. Elsewhere it wraps the model in
DistributedDataParallel, or in nothing, without a word.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback, TrainingArguments

from rlhf_kit.errors import UserError
from rlhf_kit.launched import is_main_process, is_started
from rlhf_kit.processes import is_asked
from rlhf_kit.terminal import complain

FSDP, DEEPSPEED = "FSDP", "DeepSpeed"
# What of accelerate's configuration is looked at, and the variable by which its launcher tells each process.
SETTINGS = {
    "fsdp_version": "FSDP_VERSION",
    "fsdp_state_dict_type": "FSDP_STATE_DICT_TYPE",
    "zero_stage": "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "zero3_save_16bit_model": "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL",
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
}
# As `--fsdp` has them, which transformers reads, where nothing else is given.
OF_TRANSFORMERS = {"fsdp_version": 2}


# -- before anything is loaded -------------------------------------------------------------------------------------


def refuse_other_engine(args: TrainingArguments) -> None:
    """Raises UserError where the engine or the precision that was asked for would silently be another."""
    faults = [fault for engine in asked_engines(args) for fault in _faults(engine, args)]
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    own = "fp16" if args.fp16 else "bf16" if args.bf16 else "no"
    if launched not in ("no", own):
        faults.append(precision_fault(launched))
    if faults:
        raise UserError(" ".join(faults))


def asked_engines(args: TrainingArguments) -> list[str]:
    """Those that cut a model into pieces and were asked for, by an option or by a launcher."""
    options = {FSDP: args.fsdp, DEEPSPEED: args.deepspeed}
    return [engine for engine, option in options.items() if option or is_asked(engine.upper())]


def _faults(engine: str, args: TrainingArguments) -> Iterator[str]:
    state = getattr(args, "distributed_state", None)
    if state is not None and state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        yield no_accelerator(engine)
    if engine == FSDP and args.fsdp:
        given = {f"fsdp_{name.removeprefix('fsdp_')}": value for name, value in (args.fsdp_config or {}).items()}
        yield from setting_faults(FSDP, OF_TRANSFORMERS | given)
    elif not args.deepspeed:
        yield from setting_faults(engine, {name: os.environ.get(name_, "") for name, name_ in SETTINGS.items()})


def no_accelerator(engine: str) -> str:
    return (
        f"{engine} was asked for, and accelerate starts it on GPUs alone: here it would train with "
        "DistributedDataParallel, or a single process, and say nothing. For several processes on a CPU: "
        "--accelerate cpu-2."
    )


def precision_fault(precision: str) -> str:
    return (
        f"mixed_precision {precision} in accelerate's configuration: the precision is the command's own choice, and "
        f"this is not it. Write mixed_precision: 'no' there, and give --{precision} if that is wanted."
    )


def setting_faults(engine: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """What of accelerate's settings for the engine, by their names in its YAML, would not be what it seems."""
    values = {name: str(settings.get(name, "")).strip().lower() for name in SETTINGS}
    if engine == FSDP:
        if values["fsdp_version"] != "2":
            yield f"fsdp_version {values['fsdp_version'] or 1}: only FSDP2 is supported; write fsdp_version: 2."
        kind = values["fsdp_state_dict_type"].upper()
        if kind not in ("", "FULL_STATE_DICT"):
            yield (
                f"fsdp_state_dict_type {kind}: checkpoints are written whole, as one process writes them; write "
                "fsdp_state_dict_type: FULL_STATE_DICT."
            )
        return
    for name, option in {"gradient_accumulation_steps": "", "gradient_clipping": "max_grad_norm"}.items():
        if values[name] not in ("", "auto"):
            yield f"{name} {values[name]} in accelerate's configuration: leave it out, and give --{option or name}."
    if values["zero_stage"] == "3" and values["zero3_save_16bit_model"] != "true":
        yield "zero3_save_16bit_model: no model would be saved at the end; write zero3_save_16bit_model: true."


# -- when the model is wrapped ---------------------------------------------------------------------------------------


def engine_of(trainer: Trainer) -> dict[str, Any]:
    """What holds the model, found by looking at it: for `run.json`."""
    model, args = trainer.model_wrapped, trainer.args
    trained = next((p for p in model.parameters() if p.requires_grad), None)
    return {
        "name": wrapper_of(model),
        "processes": max(1, args.world_size),
        "device": args.device.type,
        "weights": None if trained is None else str(trained.dtype).removeprefix("torch."),
        "mixed_precision": "fp16" if args.fp16 else "bf16" if args.bf16 else "no",
    }


def wrapper_of(model: nn.Module) -> str:
    """FSDP2, DDP, DeepSpeed ZeRO-N; `none` for a model that one process holds alone."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        return "FSDP2"
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return "FSDP1"
    if type(model).__name__ == "DeepSpeedEngine":  # a package that may not be there
        return f"DeepSpeed ZeRO-{model.zero_optimization_stage()}"
    return "DDP" if isinstance(model, DistributedDataParallel) else "none"


class EngineLine(TrainerCallback):
    """Says at the start of a launched run which engine holds the model."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if is_started() and is_main_process():
            complain(told(engine_of(self.trainer)))


def told(engine: Mapping[str, Any]) -> str:
    count = engine["processes"]
    processes = f"{count} processes" if count > 1 else "1 process"
    precision = "" if engine["mixed_precision"] == "no" else f", {engine['mixed_precision']} autocast"
    return f"Engine 引擎: {engine['name']}, {processes}, {engine['device']}, {engine['weights']} weights{precision}"
