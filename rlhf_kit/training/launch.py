"""Ways to launch training that these trainers do not support, refused before anything is loaded."""

from __future__ import annotations

from typing import TypeVar

from transformers import TrainingArguments

from rlhf_kit.errors import UserError
from rlhf_kit.processes import is_asked
from rlhf_kit.training.schedule import refuse_unusable

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def usable(args: Arguments) -> Arguments:
    """`args`, looked at before the model is looked for. Raises UserError for what none of the trainers obeys."""
    refuse_data_parallel(args)
    refuse_unusable(args)
    return args


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
    """What of the options or of `accelerate launch` would leave each process with a piece of the weights."""
    settings = {
        "FSDP": args.fsdp,
        "DeepSpeed": args.deepspeed,
        "parallelism_config": getattr(args, "parallelism_config", None),
    }
    return [name for name, value in settings.items() if value or is_asked(name.upper())]
