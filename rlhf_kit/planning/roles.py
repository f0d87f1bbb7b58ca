"""The models that a run holds, as its trainer makes them, without content: what each weighs, and what it keeps."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)
from transformers.pytorch_utils import Conv1D

from rlhf_kit.inputs import read_yaml
from rlhf_kit.models.activations import row_bytes
from rlhf_kit.models.adapters import trainable
from rlhf_kit.models.checkpoints import DTYPES, load_config, new_model
from rlhf_kit.models.dropout import disable_dropout
from rlhf_kit.models.forward import unwrapped
from rlhf_kit.models.fused import fuse_activations
from rlhf_kit.models.value import build_policy_and_value
from rlhf_kit.models.work import multiplied
from rlhf_kit.planning.kept import PLANNED, Kept, cached_values, kept_by_forward, trunk_of, without_content
from rlhf_kit.planning.records import Part, Roles, Shape
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.loading import peft_config

logger = logging.getLogger(__name__)
KINDS = {"mlm": AutoModelForMaskedLM, "reward": AutoModelForSequenceClassification}
FUNCTION = ":"  # stands in the names of reward functions alone


def roles_of(settings: Settings, config: PretrainedConfig, half: bool, packs: bool, base: Base) -> Roles:
    """Of a run of `settings` on a model of `config`.

    Args:
        half: autocast to 16 bit. packs: attention is a CPU's, of rows side by side. base: finds other models.
    """
    value, reference, rewards = None, None, []
    with torch.device("meta"):
        model = _model(settings, config, PLANNED[packs])
        if settings.stage == "ppo":
            model, value, reference, rewards = _of_ppo(settings, config, model, base, PLANNED[packs])
        parts = _part("policy", model), None if value is None else _part("value", value)
    trunks = [trunk_of(model), *([] if value is None else [unwrapped(value)])]
    with without_content(*trunks):
        cached = cached_values(trunks[0]) if settings.stage == "ppo" else 0.0

    @cache
    def of_rows(rows: int, width: int) -> Kept:
        with without_content():
            each = [_kept(trunk, config, rows, width, half) for trunk in trunks]
        return Kept(tuple(size for one in each for size in one.sizes), sum(one.stream for one in each))

    def kept(rows: int, width: int) -> Kept:
        return of_rows(2, width).extended(of_rows(3, width), rows)

    return Roles(Shape.of(config), *parts, reference, rewards, cached, kept)


def _kept(trunk: nn.Module, config: PretrainedConfig, rows: int, width: int, half: bool) -> Kept:
    """By the hooks; for a forward that cannot be followed, by Korthikanti's count."""
    try:
        return kept_by_forward(trunk, rows, width, half)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        total = row_bytes(config, width, 0, half)
        if total is None:
            raise
        logger.warning("Activations by the count of Korthikanti et al. 2022: %s", str(error).splitlines()[0])
        stream = rows * width * Shape.of(config).hidden * (2 if half else 4)
        return Kept((int(rows * total),), stream)


def _model(settings: Settings, config: PretrainedConfig, attention: str) -> nn.Module:
    """The model that is trained, as its trainer prepares it."""
    asked = settings.model.attn_implementation
    options = {
        "attn_implementation": asked if asked == "eager" else attention,
        "dtype": DTYPES[settings.model.dtype],
        "trust_remote_code": settings.model.trust_remote_code,
    }
    if settings.stage == "reward":
        config.num_labels, config.pad_token_id = 1, 0
    it_makes = f"The config.json of {config.name_or_path!r} makes"
    model = new_model(KINDS.get(settings.stage, AutoModelForCausalLM), config, it_makes, "meta", **options)
    if settings.stage == "ppo" or settings.stage == "reward" and settings.training.disable_dropout:
        disable_dropout(model)
    fuse_activations(model)
    return trainable(model, peft_config(settings.model))


def _of_ppo(settings: Settings, config: PretrainedConfig, policy: nn.Module, base: Base, attention: str) -> tuple:
    """The policy and its value trunk, what they are compared with, and what scores."""
    extra, lora = settings.extra, peft_config(settings.model)
    options = {"attn_implementation": attention, "dtype": torch.float32}
    names = [name for name in extra.reward_funcs if FUNCTION not in name]
    judges = [_judge(base.config(name), options) for name in names]
    rewards = [_part(f"reward model {name}", judge, frozen=True) for name, judge in zip(names, judges, strict=True)]
    reference = None
    if extra.ref_model_name_or_path:
        other = base.config(extra.ref_model_name_or_path)
        reference = _part("reference", new_model(AutoModelForCausalLM, other, "", "meta", **options), frozen=True)
    elif not isinstance(policy, PeftModel):
        reference = _part("reference", policy, frozen=True)
    kind = extra.value_model
    if kind not in ("shared", "separate", "reward"):
        kind = new_model(AutoModelForCausalLM, base.config(kind), "", "meta", **options)
    source = judges[0] if kind == "reward" else None
    module = build_policy_and_value(policy, kind, source, lora)
    if module.value_trunk is not None:
        disable_dropout(module.value_trunk)
        fuse_activations(module.value_trunk)
    return module.policy, module.value_trunk, reference, rewards


def _judge(config: PretrainedConfig, options: dict[str, Any]) -> nn.Module:
    config.num_labels, config.pad_token_id = 1, 0
    return new_model(AutoModelForSequenceClassification, config, "", "meta", **options)


def _part(name: str, model: nn.Module, frozen: bool = False) -> Part:
    parameters = [*model.parameters()]
    trained = [] if frozen else [parameter for parameter in parameters if parameter.requires_grad]
    body, head = multiplied(model)
    kept = {id(x) for x in trained}
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    linear = [x for x in linear if id(x) not in kept and x.dtype == torch.float32]
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tied = [x for x in linear if id(x) in embedded]  # the head gets weights of its own
    return Part(
        name, sum(x.numel() for x in parameters), sum(x.numel() for x in trained), sum(map(_bytes, parameters)),
        sum(map(_bytes, trained)), body, head, _largest_block(unwrapped(model)),
        sum(map(_bytes, tied)) - sum(map(_bytes, linear)) // 2, sum(map(_bytes, linear)) // 2,
    )  # fmt: skip


def _bytes(parameter: torch.Tensor) -> int:
    return parameter.numel() * parameter.element_size()


def _largest_block(model: nn.Module) -> int:
    """Bytes of the largest unit that sharding gathers: a layer, or what stands outside of the layers."""
    layers = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
    sizes = [sum(map(_bytes, layer.parameters())) for layer in layers]
    outside = sum(map(_bytes, model.parameters())) - sum(sizes)
    return max([outside, *sizes])


# --- models that an earlier stage makes -----------------------------------------------------------------------------


class Base:
    """Configurations by name; of a folder that a recipe beside this one is to make, that of the model it starts from.

    Args:
        config: the recipe's path, or None.
    """

    def __init__(self, config: str | None, trust_remote_code: bool = False):
        self.trust_remote_code = trust_remote_code
        self.makes: dict[str, str] = {}  # output folder -> model, by the recipes in one folder
        folder = Path(config).parent if config is not None and Path(config).is_file() else None
        for path in sorted(folder.glob("*.yaml")) if folder else ():
            values = read_yaml(path)
            if isinstance(values, dict) and {"output_dir", "model_name_or_path"} <= {*values}:
                self.makes[str(Path(values["output_dir"]))] = str(values["model_name_or_path"])

    def name(self, name: str) -> str:
        """What is there: `name`, or what the stage that makes it starts from, or the stage before that."""
        seen = set()
        while not Path(name).exists() and str(Path(name)) in self.makes and name not in seen:
            seen.add(name)
            name = self.makes[str(Path(name))]
        return name

    def config(self, name: str) -> PretrainedConfig:
        """Raises UserError where there is none."""
        return load_config(self.name(name), self.trust_remote_code)
