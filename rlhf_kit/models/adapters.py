"""LoRA on every stage (Hu et al. 2021, arXiv:2106.09685): the right targets, the head trained and saved with them."""

from __future__ import annotations

import copy
from pathlib import Path

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import find_adapter_config_file

from rlhf_kit.data.hub import split_revision
from rlhf_kit.errors import UserError
from rlhf_kit.models.adapter_checks import ALL_LINEAR, check_config, check_handed_over, is_all_linear
from rlhf_kit.models.forward import output_embeddings
from rlhf_kit.models.heads import fold_calibration
from rlhf_kit.models.merging import merged
from rlhf_kit.models.preflight import check_trainable
from rlhf_kit.models.weights import REWARD_CONFIG, head_modules, is_classifier, located, origin


def trainable(model: PreTrainedModel | PeftModel, config: LoraConfig | None) -> PreTrainedModel | PeftModel:
    """What a trainer trains: `model` with the adapters of `config`, or as it was handed over where that is None.

    Raises:
        UserError: for an adapter that could not be trained, saved or merged right, or a model with nothing to train.
    """
    if isinstance(model, PeftModel):
        check_handed_over(model, config)
        for adapter in model.peft_config.values():
            adapter.base_model_name_or_path = located(adapter.base_model_name_or_path or "") or None
    elif getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(
            "The model has an adapter that transformers put in (from_pretrained of an adapter's folder, add_adapter). "
            "Give the folder itself, which is loaded with its adapter merged, or a peft.PeftModel."
        )
    elif config is not None:
        return wrap(model, config)
    check_trainable(model)
    return model


def wrap(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Put adapters on `model`: task type, targets and head are inferred where `config` leaves them open.

    GPT-2 keeps its weights transposed (`Conv1D`), which LoRA must know (`fan_in_fan_out`); its targets are the
    attention and MLP projections `c_attn`, `c_proj`, `c_fc`. A classifier's head is trained in full and saved with
    the adapter, and so is what else an encoder puts between its layers and the score (`head_modules`).

    Raises:
        UserError: for targets or modules to save that the model does not have, or a tied embedding among the targets.
    """
    config = copy.copy(config)
    if config.task_type is None:
        config.task_type = TaskType.SEQ_CLS if is_classifier(model) else TaskType.CAUSAL_LM
    check_config(model, config)
    if is_classifier(model) and config.task_type == TaskType.SEQ_CLS:
        config.modules_to_save = sorted({*(config.modules_to_save or []), *head_modules(model)})
    if is_all_linear(config.target_modules):
        config.target_modules = ALL_LINEAR
    if config.target_modules is None and not config.target_parameters:
        config.target_modules = default_targets(model)
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    model.name_or_path = located(model.name_or_path)
    try:
        return get_peft_model(model, config, revision=split_revision(origin(model))[1])
    except Exception as error:  # what peft's ways to initialise an adapter raise is their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        how = f" (init_lora_weights={config.init_lora_weights!r})" if config.init_lora_weights is not True else ""
        raise UserError(f"LoRA could not be put on {type(model).__name__}{how}: {reason}") from error


def default_targets(model: nn.Module) -> list[str] | str:
    """Names of the modules that get adapters when the user names none."""
    model_type = model.config.model_type
    if model_type == "gpt2":
        return ["c_attn", "c_proj", "c_fc"]
    return PEFT_TARGETS.get(model_type, ALL_LINEAR)


def off_is_as_it_was(config: LoraConfig) -> bool:
    """Whether a model with these adapters switched off is the model before they came."""
    return config.bias == "none" and config.init_lora_weights in (True, False, "gaussian", "orthogonal")


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


def is_on_adapter(model: PeftModel) -> bool:
    """Whether the base that the adapter names is an adapter too, which was merged when it was loaded."""
    adapter = model.peft_config["default"]
    name = adapter.base_model_name_or_path
    return bool(name) and find_adapter_config_file(name, revision=adapter.revision) is not None


def has_base(model: nn.Module) -> bool:
    """Whether what is frozen in `model` is the base of an adapter, which is saved without it and stands elsewhere:
    peft saves an adapted LM head with what is under it."""
    if not isinstance(model, PeftModel) or is_on_adapter(model):
        return False
    return not has_adapted_head(model)


def has_adapted_head(model: PreTrainedModel | PeftModel) -> bool:
    return isinstance(output_embeddings(model), BaseTunerLayer)


def refuse_adapted_head(policy: PreTrainedModel | PeftModel, stage: str) -> None:
    """TRL's losses multiply by the weights of the LM head itself: an adapter on it would learn nothing."""
    if has_adapted_head(policy):
        head = output_embeddings(policy)
        name = next(name for name, module in policy.named_modules() if module is head).rpartition(".")[2]
        raise UserError(
            f"{stage} puts no LoRA on the output layer {name!r}. Leave it out of the targets, or train it in full: "
            f"--lora_modules_to_save {name} (modules_to_save in a peft_config)."
        )


def save_base(model: PeftModel, folder: Path) -> None:
    """Save what `model` is without its adapter."""
    copy.deepcopy(model).unload().save_pretrained(folder)


def name_base(model: PeftModel, folder: Path) -> None:
    """From now on the adapter is saved as one on the model in `folder`."""
    model.get_base_model().name_or_path = located(folder)
    adapter = model.peft_config["default"]
    adapter.base_model_name_or_path, adapter.revision = located(folder), None


def save_config(model: PreTrainedModel | PeftModel, config: PretrainedConfig, folder: str | Path) -> None:
    """Write `config` beside the weights of `model`.

    Beside an adapter only what its base's config does not say, that of a scalar head, and under a name of its own:
    transformers takes a folder with a config.json for whole weights, and would look for them in vain.
    """
    if not isinstance(model, PeftModel):
        config.save_pretrained(folder)
    elif is_classifier(model.get_base_model()):
        config.to_json_file(Path(folder) / REWARD_CONFIG)
