"""The models beside a policy, its reference, value model and rewards: how they are found and what they must know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.models.adapters import off_is_as_it_was
from rlhf_kit.models.checkpoints import load_config, load_policy, load_reward_model, load_tokenizer
from rlhf_kit.models.forward import context_length, copied, known_tokens, unwrapped
from rlhf_kit.models.value import PolicyAndValue, build_policy_and_value
from rlhf_kit.models.weights import is_classifier_config, is_here, origin, refuse_not_finite

VALUE_MODELS = ("shared", "separate", "reward")
OTHER_TOKENS = 0.01  # the share of ids that may stand for another token: end-of-turn marks get their names anew


def reference_of(
    policy: PreTrainedModel | PeftModel, reference: str | Path | nn.Module | None, lora: LoraConfig | None
) -> nn.Module | None:
    """The model to stay near: that given, else `policy` as it is now, frozen by a copy.

    None where the coming adapters of `lora` need only be switched off to give it.
    """
    if isinstance(reference, str | Path):
        return load_policy(reference)
    if reference is not None:
        refuse_not_finite(reference, "ref_model")
    if reference is None and (lora is None or not off_is_as_it_was(lora)):
        return copied(policy)
    return reference


def load_value_model(value_model: str | Path | nn.Module, device_map: str | None = None) -> str | nn.Module | None:
    """The words of `VALUE_MODELS` and models as they are; anything else is a model to load: None where it is to be
    looked at on the "meta" device, and its files are not on this machine.

    Raises:
        UserError: for a misspelt word, and for what is no model.
    """
    if isinstance(value_model, nn.Module) or value_model in VALUE_MODELS:
        return value_model
    name = str(value_model)
    near = did_you_mean(name, VALUE_MODELS)
    if near and not Path(name).exists():
        raise UserError(f"value_model {name!r} is not one of {', '.join(VALUE_MODELS)}, nor a folder.{near}")
    config = load_config(name)
    if device_map is not None and not is_here("a value model", name):
        return None
    load = load_reward_model if is_classifier_config(config) else load_policy
    return load(name, device_map=device_map)


def value_source(value_model: str | PreTrainedModel, reward_models: list) -> tuple:
    """What `build_policy_and_value` makes a value function of: the word or model, and the reward model it names."""
    if value_model == "reward" and len(reward_models) != 1:
        raise UserError(
            f"value_model='reward' needs exactly one reward model; reward_funcs has {len(reward_models)}. "
            "Choose 'shared' or 'separate'."
        )
    if isinstance(value_model, str) and value_model not in VALUE_MODELS:
        raise UserError(f"value_model {value_model!r} is not one of {', '.join(VALUE_MODELS)}, nor a model.")
    return value_model, (reward_models[0] if value_model == "reward" else None)


def refuse_shared_weights(policy: nn.Module, reference: nn.Module | str | None, rewards: object) -> None:
    """Raises UserError where a model that must stay as it is has weights of the policy, which change."""
    trained = {id(parameter) for parameter in policy.parameters()}
    rewards = rewards if isinstance(rewards, list | tuple) else [rewards]
    judges = [judge for reward in rewards for judge in getattr(reward, "models", [reward])]
    for name, model in [("ref_model", reference), *(("A reward model", judge) for judge in judges)]:
        if isinstance(model, nn.Module) and any(id(parameter) in trained for parameter in model.parameters()):
            raise UserError(
                f"{name} uses the policy's own weights, which training changes. Give a copy (copy.deepcopy)"
                + (
                    ", or leave ref_model out: the reference is then the initial policy."
                    if model is reference
                    else "."
                )
            )


def with_value(
    policy: PreTrainedModel | PeftModel,
    value_model: str | nn.Module,
    lora: LoraConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    *,
    ref_model: nn.Module | None,
    rewards: Sequence[tuple[str, nn.Module, PreTrainedTokenizerBase]],
) -> PolicyAndValue:
    """The policy with its value function beside it, once reference and value model are sure to read what it reads.

    Args:
        value_model: as `load_value_model` gives it. lora: of the policy, and so of a value trunk of its own.
        tokenizer, longest, ref_model: as for `check_readers`. rewards: name, model and tokenizer of each reward model.

    Raises:
        UserError: of `value_source`, `build_policy_and_value` and `check_readers`.
    """
    module = build_policy_and_value(policy, *value_source(value_model, [model for _, model, _ in rewards]), lora)
    check_readers(tokenizer, longest, ref_model, value_model, module.value_trunk, rewards[0][2] if rewards else None)
    return module


def check_readers(
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    ref_model: nn.Module | None,
    value_model: str | nn.Module,
    value_trunk: nn.Module | None,
    reward_tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Raise UserError for a reference or value model of another tokenizer, or of a shorter context, than needed.

    Args:
        tokenizer: the policy's.
        longest: tokens of a prompt and its completion.
        ref_model: None where it is a copy of the policy.
        value_trunk: what `value_model` became. reward_tokenizer: of the reward model that it may come from.
    """
    if ref_model is not None:
        _check_reader("ref_model", ref_model, _own_tokenizer(ref_model), tokenizer, longest)
    if value_trunk is not None and value_model != "separate":
        own = reward_tokenizer if value_model == "reward" else _own_tokenizer(value_trunk)
        _check_reader("value_model", value_trunk, own, tokenizer, longest)


def _check_reader(
    what: str,
    model: nn.Module,
    own: PreTrainedTokenizerBase | None,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
) -> None:
    model = unwrapped(model)
    limit, known = context_length(model.config), known_tokens(model)
    name = f"{what}: {type(model).__name__} {model.config._name_or_path}".rstrip()
    if limit is not None and longest > limit:
        raise UserError(
            f"{name} reads {limit} tokens, and a prompt and its completion may have {longest}: lower "
            "max_completion_length, or give a model that reads as many."
        )
    if len(tokenizer) > known:
        raise UserError(f"{name} knows {known} tokens, and the policy's tokenizer has {len(tokenizer)}.")
    ours, theirs = _tokens(tokenizer), _tokens(own or tokenizer)
    shared = ours.keys() & theirs.keys()
    others = sorted(number for number in shared if ours[number] != theirs[number])
    if len(others) > OTHER_TOKENS * len(shared):
        raise UserError(
            f"{name} was trained with another tokenizer than the policy, and reads the policy's tokens: {len(others)} "
            f"of {len(shared)} ids stand for another one (id {others[0]}: {theirs[others[0]]!r}, not "
            f"{ours[others[0]]!r}). Give a model of the policy's tokenizer, or leave {what} out."
        )


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {number: token for token, number in tokenizer.get_vocab().items()}


def _own_tokenizer(model: nn.Module) -> PreTrainedTokenizerBase | None:
    """That beside the model's files; None for a model made in memory, or where none lies there."""
    name = origin(unwrapped(model))
    try:
        return load_tokenizer(name, needs_eos=False) if name else None
    except UserError:
        return None
