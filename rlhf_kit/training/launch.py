"""Ways to launch training that these trainers do not support, refused before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from transformers import TrainingArguments

from rlhf_kit.errors import UserError
from rlhf_kit.inputs import read_json
from rlhf_kit.processes import is_asked
from rlhf_kit.training.engines import DEEPSPEED, FSDP, asked_engines, refuse_other_engine
from rlhf_kit.training.schedule import refuse_unusable

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def usable(args: Arguments) -> Arguments:
    """`args`, looked at before the model is looked for. Raises UserError for what none of the trainers obeys."""
    refuse_launch(args)
    refuse_unusable(args)
    return args


def refuse_launch(args: TrainingArguments) -> None:
    """Raises UserError for processes in which another engine would train than the one that was asked for."""
    refuse_data_parallel(args)
    refuse_other_engine(args)


def refuse_data_parallel(args: TrainingArguments) -> None:
    """Several GPUs in one process: torch's DataParallel would cut up batches whose losses are means of the whole.

    Raises UserError.
    """
    if args.n_gpu > 1:
        raise UserError(
            f"{args.n_gpu} GPUs are visible to one process, which would spread every batch over them with torch's "
            "DataParallel and divide the losses here wrongly. Start one process a GPU (`accelerate launch "
            f"--num_processes {args.n_gpu} ...`), or show it a single one (CUDA_VISIBLE_DEVICES=0)."
        )


def sharding_faults(args: TrainingArguments) -> list[str]:
    """What of the options or of `accelerate launch` cuts weights in a way that a PPO run cannot work with."""
    faults = []
    if getattr(args, "parallelism_config", None) or is_asked("PARALLELISM_CONFIG"):
        faults.append("parallelism_config: its rollouts know data parallelism alone")
    engines = asked_engines(args)
    if DEEPSPEED in engines:
        stage = zero_stage(args)
        if stage not in (0, 1, 2):
            faults.append(
                f"DeepSpeed's ZeRO stage {stage}: its rollouts need whole weights, and each process would have a "
                "piece of them. Use zero2, which cuts gradients and the optimizer's state alone, or fsdp2"
            )
        if getattr(args, "value_warmup_rollouts", 0):
            faults.append(
                "DeepSpeed with value_warmup_rollouts, which takes a step before the policy's gradients can be left "
                "out. Leave one of them out, or use fsdp2"
            )
    if FSDP in engines:
        faults += _fsdp_faults(args)
    return faults


def zero_stage(args: TrainingArguments) -> int | str:
    """The ZeRO stage that DeepSpeed was asked for, by a configuration or by `accelerate launch`.

    Raises UserError for a configuration that cannot be read.
    """
    config = args.deepspeed or os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if isinstance(config, str):
        try:
            config = read_json(Path(config))
        except (OSError, ValueError) as error:
            raise UserError(f"DeepSpeed's configuration {config!r} cannot be read: {error}") from error
    if isinstance(config, dict):
        return config.get("zero_optimization", {}).get("stage", 0)
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")  # as accelerate's plugin has it
    return int(stage) if stage.isdecimal() else stage


def _fsdp_faults(args: TrainingArguments) -> list[str]:
    """`fsdp_config`, where the options ask for FSDP, else what `accelerate launch` has set."""
    name = "cpu_ram_efficient_loading"
    config = args.fsdp_config if args.fsdp and isinstance(args.fsdp_config, dict) else {}
    given = {key.removeprefix("fsdp_"): value for key, value in config.items()}.get(name, "")
    setting = given if args.fsdp else os.environ.get(f"FSDP_{name.upper()}", "")
    faults = []
    if str(setting).lower() in ("true", "1"):
        faults.append(
            "FSDP's cpu_ram_efficient_loading: the reference and the value function are copies of the policy, which "
            "one process alone would hold. Set fsdp_cpu_ram_efficient_loading: false"
        )
    if getattr(args, "ema_decay", None) is not None:
        faults.append("FSDP with ema_decay, whose average is of whole weights. Leave one of them out")
    return faults
