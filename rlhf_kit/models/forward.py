"""What a model's forward takes and gives: its context, the inputs it names, padded rows, states at chosen places."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

# What configurations call the number of tokens that a model reads at once; transformers maps most to the first.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length", "seq_length")
CONTEXT_NAMES += ("max_sequence_length", "context_length", "model_max_length")
# Models whose first token stands one place after that of the padding id: 514 positions are 512 tokens.
COUNT_FROM_PADDING = ("camembert", "data2vec-text", "longformer", "mpnet", "roberta", "roberta-prelayernorm")
COUNT_FROM_PADDING += ("xlm-roberta", "xlm-roberta-xl", "xmod")


def context_length(config: PretrainedConfig) -> int | None:
    """Tokens the model reads at once, or None when it has no fixed number (BLOOM, Mamba)."""
    config = config.get_text_config()
    name = context_name(config)
    return None if name is None else getattr(config, name) - _places_before(config)


def context_name(config: PretrainedConfig) -> str | None:
    """What this configuration calls its context length; None when it has none."""
    config = config.get_text_config()
    return next((name for name in CONTEXT_NAMES if isinstance(getattr(config, name, None), int)), None)


def context_of(config: PretrainedConfig, overrides: dict, length: int) -> dict[str, int]:
    """The override that gives a new model a context of `length` tokens: {} where it has no such number, or
    `overrides` set it already."""
    name = context_name(config)
    if name is None or set(CONTEXT_NAMES) & set(overrides):
        return {}
    return {name: length + _places_before(config.get_text_config())}


def _places_before(config: PretrainedConfig) -> int:
    return config.pad_token_id + 1 if config.model_type in COUNT_FROM_PADDING else 0


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside DDP, a compiled module or adapters."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def taken(model: nn.Module, **inputs: Any) -> dict[str, Any]:
    """Those `inputs` that the forward of `model` names: BLOOM knows no `position_ids`, GPT-1 no cache."""
    names = inspect.signature(type(unwrapped(model)).forward).parameters
    return {name: value for name, value in inputs.items() if name in names}


def pad_right(rows: Sequence[Sequence[int]], pad_token_id: int | None) -> tuple[Tensor, Tensor]:
    """Rows of token ids as input_ids (B, T), padded on the right, and lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = torch.full((len(rows), int(lengths.max())), pad_token_id or 0)
    for place, row in zip(input_ids, rows, strict=True):
        place[: len(row)] = torch.tensor(row)
    return input_ids, lengths


@contextmanager
def captured_input(module: nn.Module, keep: int, places: Tensor | None = None, drop_last: bool = False):
    """A list that receives what `module`, the LM head, is called with: the states at the last `keep` places of each
    row, or at `places` (B, keep). It computes on no others, and may be spared the last of them.

    The LM head's input is the last hidden state of any causal LM; `output_hidden_states` would keep every layer's.
    """
    captured: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...]):
        captured.append(_states_at(args[0], keep, places))
        return (captured[0][:, :-1] if drop_last else captured[0], *args[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield captured
    finally:
        handle.remove()


def _states_at(states: Tensor, keep: int, places: Tensor | None) -> Tensor:
    """(B, T, H) -> (B, keep, H)."""
    if places is None:
        return states[:, -keep:]
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def output_embeddings(policy: PreTrainedModel | PeftModel) -> nn.Module:
    return (policy.get_base_model() if isinstance(policy, PeftModel) else policy).get_output_embeddings()


def completion_logits_and_states(policy: nn.Module, inputs: dict[str, Tensor], keep: int) -> tuple[Tensor, Tensor]:
    """Logits that predict the last `keep - 1` tokens, and the last `keep` states. -> (B, keep-1, V), (B, keep, H).

    Args:
        inputs: of `Rollout.model_inputs`; with `places` (B, keep) the states stand there instead.
    """
    places, inputs = inputs.get("places"), _without_places(inputs)
    options = {"use_cache": False} if places is not None else {"use_cache": False, "logits_to_keep": keep}
    with captured_input(output_embeddings(policy), keep, places, drop_last=True) as captured:
        logits = policy(**taken(policy, **inputs, **options)).logits
    return logits, captured[0]


def trunk_states(trunk: nn.Module, inputs: dict[str, Tensor], keep: int) -> Tensor:
    """The last `keep` states of a model without a head; as above. -> (B, keep, H)."""
    output = trunk(**taken(trunk, **_without_places(inputs), use_cache=False))
    return _states_at(output.last_hidden_state, keep, inputs.get("places"))


def _without_places(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if name != "places" and value is not None}
