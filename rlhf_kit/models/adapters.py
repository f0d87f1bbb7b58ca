"""LoRA on every stage (Hu et al. 2021, arXiv:2106.09685): the right targets, the head trained and saved with them."""

from __future__ import annotations

import copy
from pathlib import Path

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_kit.models.checkpoints import REWARD_CONFIG, located
from rlhf_kit.models.heads import fold_calibration
from rlhf_kit.models.merging import merged


def wrap(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Put adapters on `model`: task type, targets and head are inferred where `config` leaves them open.

    GPT-2 keeps its weights transposed (`Conv1D`), which LoRA must know (`fan_in_fan_out`); its targets are the
    attention and MLP projections `c_attn`, `c_proj`, `c_fc`. A classifier's head is trained in full and saved with
    the adapter, and so is what else an encoder puts between its layers and the score (`head_modules`).
    """
    config = copy.copy(config)
    if config.task_type is None:
        config.task_type = TaskType.SEQ_CLS if is_classifier(model) else TaskType.CAUSAL_LM
    if is_classifier(model) and config.task_type == TaskType.SEQ_CLS:
        config.modules_to_save = sorted({*(config.modules_to_save or []), *head_modules(model)})
    if config.target_modules is None:
        config.target_modules = default_targets(model)
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    model.name_or_path = located(model.name_or_path)
    return get_peft_model(model, config)


def default_targets(model: nn.Module) -> list[str] | str:
    """Names of the modules that get adapters when the user names none."""
    model_type = model.config.model_type
    if model_type == "gpt2":
        return ["c_attn", "c_proj", "c_fc"]
    return PEFT_TARGETS.get(model_type, "all-linear")


def head_modules(model: nn.Module) -> list[str]:
    """Names of the modules of a classifier that its trunk's checkpoint may lack: they begin at random.

    All that stands beside the trunk, and the trunk's pooler: BERT saved for masked tokens has none.
    """
    beside = [name for name, module in model.named_children() if any(True for _ in module.parameters())]
    trunk = getattr(model, model.base_model_prefix)
    has_pooler = isinstance(getattr(trunk, "pooler", None), nn.Module)
    return [name for name in beside if name != model.base_model_prefix] + ["pooler"] * has_pooler


def save(model: PreTrainedModel | PeftModel, folder: str | Path, merge: bool = False) -> None:
    """Save a model, or its adapter with the configuration beside it; `merge=True` saves a plain model instead.

    A reward model's calibration goes into its weights (`heads.fold_calibration`). Merging works on a copy, so that
    training can go on.
    """
    if isinstance(model, PeftModel) and merge:
        model = merged(copy.deepcopy(model))
    state_dict, config = fold_calibration(model.state_dict(), model)
    model.save_pretrained(folder, state_dict=state_dict)
    save_config(model, config, folder)


def save_config(model: PreTrainedModel | PeftModel, config: PretrainedConfig, folder: str | Path) -> None:
    """Write `config` beside the weights of `model`.

    Beside an adapter only what its base's config does not say, that of a scalar head, and under a name of its own:
    transformers takes a folder with a config.json for whole weights, and would look for them in vain.
    """
    if not isinstance(model, PeftModel):
        config.save_pretrained(folder)
    elif is_classifier(model.get_base_model()):
        config.to_json_file(Path(folder) / REWARD_CONFIG)


def is_classifier(model: nn.Module) -> bool:
    return type(model).__name__.endswith("ForSequenceClassification")
