"""Options that are mappings: every key in them is used, or refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from accelerate.utils import GradientAccumulationPlugin
from transformers.trainer_pt_utils import AcceleratorConfig

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.options.coercion import coerce
from rlhf_kit.options.declared import declared_fields
from rlhf_kit.options.reading import listed

# What transformers 5.23 reads of it (`TrainingArguments.fsdp_config`); any key may begin with fsdp_.
FSDP = (
    *("version", "reshard_after_forward", "cpu_offload", "activation_checkpointing", "cpu_ram_efficient_loading"),
    *("state_dict_type", "auto_wrap_policy", "transformer_layer_cls_to_wrap", "min_num_params"),
    *("xla", "xla_fsdp_v2", "xla_fsdp_settings", "xla_fsdp_grad_ckpt"),
    *("forward_prefetch", "backward_prefetch", "use_orig_params", "sync_module_states", "limit_all_gathers"),
)
SAME = (
    ("activation_checkpointing", "gradient_checkpointing"),
    ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
)


def checked(values: dict[str, Any]) -> dict[str, Any]:
    """`values` as given, those in `accelerator_config` as the types it declares. Raises UserError for all faults."""
    values, faults = dict(values), []
    if isinstance(values.get("accelerator_config"), dict):
        values["accelerator_config"] = _accelerator(values["accelerator_config"], faults)
    fsdp = values.get("fsdp_config")
    if fsdp is not None and not values.get("fsdp"):
        faults.append("--fsdp_config needs --fsdp.")
    _refuse_unknown("fsdp_config", [key.removeprefix("fsdp_") for key in fsdp or {}], FSDP, faults)
    faults += [
        f"--{new} and --{old} are two names for one option; give one."
        for new, old in SAME
        if values.get(new) is not None and values.get(old) is not None
    ]
    if faults:
        raise UserError(listed("the run", faults))
    return values


def _accelerator(given: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    known = declared_fields([AcceleratorConfig])
    _refuse_unknown("accelerator_config", given, known, faults)
    result = {}
    for key in given.keys() & known.keys():
        try:
            result[key] = coerce(given[key], known[key].type)
        except ValueError as error:
            faults.append(f"--accelerator_config: {key}: {error}")
    accumulation = result.get("gradient_accumulation_kwargs") or {}
    if "num_steps" in accumulation:
        faults.append("--accelerator_config: num_steps is an option of its own, --gradient_accumulation_steps.")
    allowed = [item.name for item in dataclasses.fields(GradientAccumulationPlugin)]
    _refuse_unknown("accelerator_config: gradient_accumulation_kwargs", accumulation, allowed, faults)
    return result


def _refuse_unknown(option: str, given: Any, known: Any, faults: list[str]) -> None:
    faults += [
        f"--{option}: nothing reads {key!r}; its keys are {', '.join(known)}.{did_you_mean(str(key), known)}"
        for key in given
        if key not in known
    ]
