"""What a model's forward takes and gives: its context, the inputs it names, padded rows, states at chosen places."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from rlhf_kit import ops
from rlhf_kit.data.packing import IGNORED
from rlhf_kit.models.packed import is_packed, packed

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
    if isinstance(model, PreTrainedModel) and "_orig_mod" not in vars(model):
        return model  # at once: accelerate looks through all modules, a millisecond of each token that is drawn
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def copied(model: nn.Module) -> nn.Module:
    """A copy that computes with its own weights alone: TRL's trainers leave a forward on a model that leads, in a deep
    copy too, to the model that they train."""
    twin = copy.deepcopy(model)
    inner = unwrapped(twin)
    if getattr(vars(inner).get("forward"), "__wrapped__", None) is type(inner).forward:
        del inner.forward
    return twin


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
def captured_input(module: nn.Module, places: Tensor | None = None):
    """A list that receives what `module`, the LM head, is called with: the states at `places` (G, 1) of each row,
    None: at its last place. It computes on no others.

    The LM head's input is the last hidden state of any causal LM; `output_hidden_states` would keep every layer's.
    """

    def choose(states: Tensor) -> tuple[Tensor, Tensor]:
        if places is None:
            chosen = states[:, -1:]
        else:
            chosen = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
        return chosen, chosen

    with _head_reads(module, choose) as captured:
        yield captured


@contextmanager
def _head_reads(head: nn.Module, choose: Callable[[Tensor], tuple[Tensor, Tensor]]):
    """A list that receives the first of what `choose` makes of the head's input; the second is what the head reads."""
    captured: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...]):
        kept, read = choose(args[0])
        captured.append(kept)
        return (read, *args[1:])

    handle = head.register_forward_pre_hook(hook)
    try:
        yield captured
    finally:
        handle.remove()


def known_tokens(model: PreTrainedModel) -> int:
    """How many tokens it has an embedding for, whole or in pieces: under ZeRO-3 a weight is empty, its shape kept."""
    weight = model.get_input_embeddings().weight
    return getattr(weight, "ds_shape", weight.shape)[0]


def output_embeddings(policy: nn.Module) -> nn.Module:
    return unwrapped(policy).get_output_embeddings()


# --- rows of completions --------------------------------------------------------------------------------------------


def compact_rows(rows: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Rows (B, T) padded on the right, of `lengths` (B,), as a model reads them."""
    return {"input_ids": rows, "attention_mask": ops.length_mask(lengths, rows.shape[1]).long()}


def packed_rows(rows: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """The same tokens as one long row: input_ids and position_ids (1, N), and `lengths` (B,)."""
    mask = ops.length_mask(lengths, rows.shape[1])
    positions = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape)
    return {"input_ids": rows[mask][None], "position_ids": positions[mask][None], "lengths": lengths}


def states_of(mask: Tensor) -> Tensor:
    """Of the tokens (B, R) of completions, their states: before each, and after the last of a row. -> (B, R + 1)."""
    return F.pad(mask, (1, 0), value=True)


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Values (M,) of the M places of a mask, row after row, in their places; 0 elsewhere. -> the mask's shape."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def read_rows(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    """The output of `model` for `compact_rows` or `packed_rows`."""
    lengths, names = inputs.get("lengths"), ("input_ids", "attention_mask", "position_ids")
    rows = {name: inputs[name] for name in names if inputs.get(name) is not None}
    if lengths is None:
        return model(**taken(model, **rows, use_cache=False))
    with packed(lengths):
        rows["attention_mask"] = torch.ones_like(rows["input_ids"])
        return model(**taken(model, **rows, use_cache=False))


def completion_logits_and_states(policy: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits that predict the M tokens of the completions, row after row, and their S states. -> (M, V), (S, H).

    The head computes on nothing else.

    Args:
        inputs: of `Rollout.model_inputs`: rows, `completion_mask` (B, R) of the tokens, and `places` (S,): where, in
            all rows side by side, the states stand.
    """
    mask = inputs["completion_mask"]
    predicts = F.pad(mask, (0, 1))[states_of(mask)]  # (S,): all but the last of each row

    def choose(states: Tensor) -> tuple[Tensor, Tensor]:
        states = states.flatten(0, 1)[inputs["places"]]
        return states, states[predicts][None]

    with _head_reads(output_embeddings(policy), choose) as captured:
        logits = read_rows(policy, inputs).logits[0]
    return logits, captured[0]


def trunk_states(trunk: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The same states of a model without a head. -> (S, H)."""
    return read_rows(trunk, inputs).last_hidden_state.flatten(0, 1)[inputs["places"]]


# --- rows with labels -----------------------------------------------------------------------------------------------


def labelled_logits(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits that predict the M tokens with a label, row after row, and these tokens. -> (M, V), (M,).

    The head computes on nothing else. A model whose attention is packed reads the batch as `one_row`.

    Args:
        inputs: `input_ids` and `labels` (B, T) with what keeps texts apart, as a collator makes them.
    """
    pack = is_packed(unwrapped(model))
    rows = one_row(inputs) if pack else inputs
    tokens = F.pad(rows["labels"], (0, 1), value=IGNORED)[:, 1:].flatten()  # each state's next
    places = (tokens != IGNORED).nonzero().squeeze(1)

    def choose(states: Tensor) -> tuple[Tensor, Tensor]:
        return states, states.flatten(0, 1)[places][None]

    with _head_reads(output_embeddings(model), choose):
        if pack:
            logits = read_rows(model, rows).logits
        else:
            given = {name: value for name, value in rows.items() if name != "labels"}
            logits = model(**given, **taken(model, use_cache=False)).logits
    return logits[0], tokens[places]


def labelled_loss(
    model: nn.Module, num_items_in_batch: Tensor | int | None = None, **inputs: Any
) -> dict[str, Tensor]:
    """`labelled_logits` as the loss that transformers' models give: the mean of the labelled tokens, or their share of
    those of the whole step."""
    nats = -ops.token_logprobs(*labelled_logits(model, inputs))
    return {"loss": nats.mean() if num_items_in_batch is None else nats.sum() / num_items_in_batch}


def one_row(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A collator's batch as `packed_rows` with `labels`, the first token of a text without one.

    Rows (B, T) with an `attention_mask`, one text each, or texts side by side (1, N) with `position_ids`.
    """
    if "attention_mask" in inputs:
        mask = inputs["attention_mask"].bool()
        rows = packed_rows(inputs["input_ids"], mask.sum(1))
        labels = inputs["labels"][mask][None]
    else:
        rows = {name: inputs[name] for name in ("input_ids", "position_ids")}
        starts = (rows["position_ids"][0] == 0).nonzero().squeeze(1)
        rows["lengths"] = torch.diff(starts, append=starts.new_tensor([rows["input_ids"].shape[1]]))
        labels = inputs["labels"]
    return {**rows, "labels": labels.masked_fill(rows["position_ids"] == 0, IGNORED)}
