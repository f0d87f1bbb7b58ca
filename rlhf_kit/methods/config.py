"""What can be set of DPO and KTO: TRL's options, with the kit's defaults and what contradicts the kit refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments
from trl import DPOConfig as TRLDPOConfig
from trl import KTOConfig as TRLKTOConfig

from rlhf_kit.errors import UserError
from rlhf_kit.options import option
from rlhf_kit.options.bounds import range_faults

LONGEST = "Longest prompt + answer in tokens; None: the model's context. A longer answer is left out, none is cut."
Refusals = dict[str, tuple[Callable[[Any], Any], str]]

# TRL's options that would undo what these trainers promise: (refused value, why and what to do).
REFUSED: Refusals = {
    "disable_dropout": (lambda v: not v, "with dropout a policy is not what it is compared with; leave it out"),
    "remove_unused_columns": (bool, "the trainer reads columns of its own; leave it out"),
    "model_init_kwargs": (bool, "give the model, or its dtype and attn_implementation"),
    "label_smoothing_factor": (bool, "nothing reads it; leave it out"),
    "neftune_noise_alpha": (bool, "noise would look like a change of the policy; leave it out"),
}
OF_PREFERENCES: Refusals = REFUSED | {
    "precompute_ref_log_probs": (bool, "the reference reads each batch; to hold no second model train with LoRA"),
    "precompute_ref_batch_size": (lambda v: v is not None, "it belongs to precompute_ref_log_probs; leave it out"),
}
OF_DPO: Refusals = OF_PREFERENCES | {
    "truncation_mode": (lambda v: v != "keep_start", "nothing is cut; leave it out"),
    "padding_free": (bool, "TRL does nothing for it at present; leave it out"),
    "pad_token": (lambda v: v is not None, "masks come from lengths, so padding needs no token of its own"),
    "ld_alpha": (lambda v: v is not None, "an answer's log-prob does not depend on what it is compared with here"),
}
OF_KTO: Refusals = OF_PREFERENCES | {
    "per_device_train_batch_size": (lambda v: v < 2, "the KL is of answers to other prompts; give at least 2"),
    "train_sampling_strategy": (
        lambda v: v != "sequential",
        "TRL keeps the order, shuffled by the seed; leave it out",
    ),
}
# What nothing reads but for some value of another option.
SYNCED = {name: ("sync_ref_model", (True,)) for name in ("ref_model_mixup_alpha", "ref_model_sync_steps")}
ONLY_DPO = SYNCED | {
    "label_smoothing": ("loss_type", ("robust", "exo_pair", "aot", "aot_unpaired")),
    "discopop_tau": ("loss_type", ("discopop",)),
    "f_alpha_divergence_coef": ("f_divergence_type", ("alpha_divergence",)),
}


@dataclass
class DPOConfig(TRLDPOConfig):
    """How to train by DPO. A row of a batch is a list: all answers to a prompt."""

    learning_rate: float = option(1e-6, "Peak learning rate (Rafailov et al. 2023, appendix B: 1e-6).")
    beta: float = option(0.1, "Weight of the KL to the reference (Rafailov et al. 2023, appendix B: 0.1).")
    max_length: int | None = option(None, LONGEST)
    remove_unused_columns: bool = option(False, "The answers and their order are needed.")

    def __post_init__(self):
        refuse_out_of_range(self)
        super().__post_init__()


@dataclass
class KTOConfig(TRLKTOConfig):
    """How to train by KTO. A row of a batch is one answer; TRL needs two at least, and keeps their order."""

    learning_rate: float = option(1e-6, "Peak learning rate (Ethayarajh et al. 2024, section 4.1: 5e-7 to 5e-6).")
    beta: float = option(0.1, "Weight of the KL to the reference (Ethayarajh et al. 2024, section 4.1: 0.1).")
    max_length: int | None = option(None, LONGEST)
    desirable_weight: float | None = option(
        None,
        "Weight of good answers. None, and none for bad ones: so that the good ones together are as heavy as the bad, "
        "or heavier by at most a third (Ethayarajh et al. 2024, eq. 8).",
    )
    undesirable_weight: float | None = option(None, "Weight of bad answers.")
    remove_unused_columns: bool = option(False, "The answers and their labels are needed.")

    def __post_init__(self):
        refuse_out_of_range(self)
        super().__post_init__()


def refuse_out_of_range(args: TrainingArguments) -> None:
    """Raises UserError for numbers that make no sense."""
    if faults := range_faults(args):
        raise UserError(f"{type(args).__name__}: {'; '.join(faults)}.")


def refuse_options(
    args: TrainingArguments, refused: Refusals, conditional: dict[str, tuple[str, Sequence]], lora_dropout: float = 0.0
) -> None:
    """Raise UserError for options of TRL's that contradict the kit, or that nothing would read; all of them."""
    faults = [
        f"{name}={getattr(args, name)!r}: {reason}"
        for name, (is_refused, reason) in refused.items()
        if is_refused(getattr(args, name))
    ]
    defaults = type(args).__dataclass_fields__
    for name, (other, values) in conditional.items():
        value = getattr(args, other)
        read = {*values} & ({*value} if isinstance(value, list) else {value})
        if getattr(args, name) != defaults[name].default and not read:
            needed = " or ".join(map(str, values))
            faults.append(f"{name}={getattr(args, name)!r}: nothing reads it unless {other} is {needed}")
    if lora_dropout:
        faults.append(f"lora_dropout={lora_dropout}: {REFUSED['disable_dropout'][1]}")
    if faults:
        raise UserError(f"{type(args).__name__} does not take " + "; ".join(faults) + ".")
