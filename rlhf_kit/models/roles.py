"""The models that read the policy's own tokens, its reference and its value model: whether they know all of them."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import context_length, load_tokenizer
from rlhf_kit.models.heads import unwrapped
from rlhf_kit.models.weights import origin

OTHER_TOKENS = 0.01  # the share of ids that may stand for another token: end-of-turn marks get their names anew


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
    limit, known = context_length(model.config), model.get_input_embeddings().weight.shape[0]
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
