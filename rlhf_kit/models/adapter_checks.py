"""What LoRA cannot do right with a model, found before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Iterable

from peft import LoraConfig, PeftModel, PeftType, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.models.weights import head_modules, is_classifier, is_mergeable, names_classifier
from rlhf_kit.options.bounds import number_faults

ALL_LINEAR = "all-linear"  # peft's word for all linear layers but the head


def is_all_linear(targets: str | Iterable[str] | None) -> bool:
    """Peft's word, alone or as the only one of a list."""
    targets = [targets] if isinstance(targets, str) else list(targets or [])
    return [target.lower() for target in targets] == [ALL_LINEAR]


# Ways of an adapter to start that loading it repeats (PiSSA, OLoRA) or that leave the base as it was.
STARTS = (True, False, "gaussian", "orthogonal", "pissa", "olora", "mica")


def check_config(model: PreTrainedModel, config: LoraConfig) -> None:
    """Raises UserError, all faults at once, where `config` names what `model` does not have or what is tied.

    The weights are not looked at: a model on the meta device will do.
    """
    if config.peft_type != PeftType.LORA:
        raise UserError(
            f"peft_config is a {type(config).__name__}; only LoRA adapters are supported: give a LoraConfig."
        )
    faults = number_faults("LoraConfig", r=config.r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout)
    faults = [f"{fault}." for fault in faults]
    faults += [*_unknown_targets(model, config), *_unknown_to_save(model, config), *_start(model, config, STARTS)]
    faults = faults or _tied(model, config)
    if faults:
        raise UserError("LoRA: " + " ".join(faults))


def _start(model: nn.Module, config: LoraConfig, starts: tuple[bool | str, ...]) -> list[str]:
    """What is wrong with the way the adapter's matrices start, and with them the base that they are taken out of."""
    start = config.init_lora_weights
    if start not in starts:
        return [
            f"init_lora_weights {start!r} depends on data, random draws or a package that is missing when the saved "
            f"adapter is loaded: it would be another model. Give one of {', '.join(map(repr, starts))}."
        ]
    if start == "olora" and any(isinstance(module, Conv1D) for module in model.modules()):
        return ["init_lora_weights 'olora' does not know the transposed weights of Conv1D: give 'pissa' or True."]
    return []


def _adaptable(model: nn.Module) -> dict[str, nn.Module]:
    """Modules with a matrix of weights, by their names: what an adapter can be put on."""
    return {
        name: module
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) >= 2
    }


def _unknown_targets(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    targets, names = config.target_modules, _adaptable(model)
    if targets is None or is_all_linear(targets):
        return []
    if isinstance(targets, str):
        try:
            unknown = [targets] if not any(re.fullmatch(targets, name) for name in names) else []
        except re.error as error:
            return [f"target_modules {targets!r} is not a regular expression: {error}."]
    else:
        unknown = sorted({*targets} - names_found(model, targets))
    linear = {name: module for name, module in names.items() if not isinstance(module, nn.Embedding)}
    return _missing("target_modules", unknown, linear)


def _unknown_to_save(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    names = {name: part for name, part in model.named_modules() if name and any(True for _ in part.parameters(False))}
    inner = [name for name, _ in model.named_modules() if name]
    unknown = sorted(name for name in config.modules_to_save or [] if not _found(name, inner))
    return _missing("modules_to_save", unknown, names)


def names_found(model: nn.Module, targets: Iterable[str]) -> set[str]:
    """Those of `targets` that an adapter can be put on."""
    names = _adaptable(model)
    return {target for target in targets if _found(target, names)}


def _found(target: str, names: Iterable[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in names)


def _missing(option: str, unknown: list[str], names: Iterable[str]) -> list[str]:
    if not unknown:
        return []
    known = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()})
    near = did_you_mean(unknown[0], known)
    return [
        f"the model has no {', '.join(map(repr, unknown))} (--lora_{option}, {option} in a peft_config); "
        f"it has {', '.join(known)}.{near}"
    ]


def shared_weights(model: nn.Module) -> dict[int, list[str]]:
    """Of each weight that several modules use, by its id, their names: tied embeddings."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for weight in module._parameters.values():
            if weight is not None:
                users.setdefault(id(weight), []).append(name)
    return {weight: names for weight, names in users.items() if len(names) > 1}


def _tied(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    if config.target_modules is None or is_all_linear(config.target_modules):  # neither adapts an output layer
        return []
    shared = shared_weights(model)
    adapted = [name for name in _adaptable(model) if check_target_module_exists(config, name)]
    return _told_of_tied(
        (name, user)
        for name in adapted
        for user in shared.get(id(model.get_submodule(name).weight), [])
        if user != name
    )


def _told_of_tied(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Of modules with an adapter, each with another that uses the same weight."""
    leaves = {tuple(name.removesuffix(".base_layer").rpartition(".")[2] for name in pair) for pair in pairs}
    return [
        f"{name!r} is tied to {other!r}: one weight, and merging would change both. Train it in full instead: leave "
        f"it out of the targets and give --lora_modules_to_save {name} (modules_to_save in a peft_config)."
        for name, other in sorted(leaves)
    ]


def check_handed_over(model: PeftModel, config: LoraConfig | None) -> None:
    """Raises UserError, all faults at once, where the adapter of `model` cannot be trained, saved or loaded right."""
    if config is not None:
        raise UserError(
            "The model has an adapter and peft_config asks for another; saved alone, that one would lack the first. "
            "Leave peft_config out to train the adapter on, or save it and give its folder: a new adapter can be "
            "trained on top of it."
        )
    names = list(model.peft_config)
    if names != ["default"] or model.active_adapters != ["default"]:
        raise UserError(
            f"The model has the adapters {', '.join(map(repr, names))}, of which {model.active_adapters} are active. "
            "One adapter is trained and saved, by the name 'default': load or add it alone."
        )
    adapter, faults = model.peft_config["default"], []
    if not is_mergeable(adapter):
        raise UserError(f"{type(adapter).__name__} is not part of the weights and cannot be merged: give LoRA.")
    if isinstance(adapter, LoraConfig):
        faults += _start(model, adapter, (*STARTS, "eva"))  # its data came before; the base is as it was
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if any(layer.merged for layer in layers):
        faults.append("its adapter is merged and would learn nothing: call unmerge_adapter().")
    if any(layer.disable_adapters for layer in layers):
        faults.append("its adapter is switched off: call enable_adapter_layers().")
    base = model.get_base_model()
    own = {name for users in shared_weights(base).values() for name in users if name.endswith(".base_layer")}
    faults += _told_of_tied(
        (name, user)
        for users in shared_weights(base).values()
        for name in own & {*users}
        for user in users
        if user != name
    )
    faults += _unsaved(model, base)
    if faults:
        raise UserError("The PeftModel: " + " ".join(faults))


def _unsaved(model: PeftModel, base: PreTrainedModel) -> list[str]:
    """Of weights that are trained or new and would not be saved with the adapter."""
    kept = {w.data_ptr() for w in get_peft_model_state_dict(model, save_embedding_layers=False).values()}
    lost = [name for name, w in model.named_parameters() if w.requires_grad and w.data_ptr() not in kept]
    faults = []
    if lost:
        faults.append(
            f"{len(lost)} weights outside its adapter can be trained ({lost[0]}) and would not be saved with it: "
            "freeze them, or name their modules in modules_to_save."
        )
    if is_classifier(base) and not any(map(names_classifier, base.config.architectures or [])):
        saved = {part for name, w in model.named_parameters() if w.data_ptr() in kept for part in name.split(".")}
        new = [name for name in head_modules(base) if name not in saved]
        if new:
            faults.append(
                f"its base is a language model, so {', '.join(map(repr, new))} is new, and would not be saved with "
                "the adapter: give modules_to_save, or task_type='SEQ_CLS', to its LoraConfig."
            )
    return faults
