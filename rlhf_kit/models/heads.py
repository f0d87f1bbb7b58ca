"""The scalar head of a reward model: which token it reads, how its numbers are scaled, scores of texts.

A reward model reads prompt + completion WITHOUT the final EOS, and its score stands at the last of those tokens.
transformers pools the rightmost token that is not padding, so a saved model gives the same score there, whether its
padding is EOS or a token of its own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import Message, encode_completion, encode_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import context_length
from rlhf_kit.ops import length_mask


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside DDP, a compiled module or adapters."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if isinstance(model, PeftModel) else model


# ------------------------------------------------------------------------------------------
# Raw scores


def sequence_scores(model: nn.Module, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """Raw head output at the last token of right-padded rows. (B, T), (B,) -> (B,) float32, with gradients.

    Depends on the tokens alone: not on the padding id, its amount or the other rows. `model` is any sequence
    classifier with one label, bare or wrapped (DDP, FSDP, adapters): its own forward runs, so that the hooks of the
    wrapper fire and its outputs carry the gradient. Encoders that pool by themselves (BERT) get the mask and keep
    their pooling. No position ids are passed: with the padding on the right every model's own start at the first
    token, and some (RoBERTa, OPT) do not count from 0.
    """
    inner = unwrapped(model)
    lengths = lengths.to(input_ids.device)
    inputs = {"input_ids": input_ids, "attention_mask": length_mask(lengths, input_ids.shape[1]).long()}
    if "use_cache" in inspect.signature(type(inner).forward).parameters:
        inputs["use_cache"] = False
    with _pooled_by_length(inner, lengths):
        return model(**inputs).logits[:, 0].float()


@contextmanager
def _pooled_by_length(model: PreTrainedModel, lengths: Tensor) -> Iterator[None]:
    """Within, the head `score` gives the logit of place `lengths` - 1 at every place of its row.

    So whichever place the model's forward then picks, by the padding id, is the right one.
    """
    head = getattr(model, "score", None)
    if head is None:
        yield
        return

    def pool(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = torch.arange(len(lengths), device=lengths.device)
        last = args[0][rows, lengths - 1]  # (B, H)
        # Under autocast the head would round to bf16, and answers that differ by less than 0.4 % would tie.
        with torch.autocast(last.device.type, enabled=False):
            score = module.forward(last.to(getattr(module, "weight", last).dtype))  # (B, 1)
        return score[:, None].expand(-1, output.shape[1], -1)

    config = model.config.get_text_config()
    pad_token_id = config.pad_token_id
    # Without a padding id transformers refuses batches, for the sake of the pooling that is replaced here.
    config.pad_token_id = 0 if pad_token_id is None else pad_token_id
    # First in line: under ZeRO-3 and FSDP the hooks behind give the head's weights away.
    hook = head.register_forward_hook(pool, prepend=True)
    try:
        yield
    finally:
        hook.remove()
        config.pad_token_id = pad_token_id


# ------------------------------------------------------------------------------------------
# Calibration


def calibration(config: PretrainedConfig) -> tuple[float, float]:
    """(gain, bias) of a reward model: score = gain * raw + bias; (1, 0) for a model that was never calibrated.

    Source: Ziegler et al. 2019, section 2.2: the reward is normalised to mean 0 and variance 1.
    """
    return getattr(config, "reward_gain", 1.0), getattr(config, "reward_bias", 0.0)


def set_calibration(config: PretrainedConfig, gain: float, bias: float) -> None:
    """Store the calibration in the model's config, saved with it. A gain below 0 would reverse the ranking."""
    gain, bias = float(gain), float(bias)
    if not (math.isfinite(gain) and gain > 0 and math.isfinite(bias)):
        raise UserError(f"Calibration gain={gain}, bias={bias}: both must be finite and the gain above 0.")
    config.reward_gain, config.reward_bias = gain, bias


# ------------------------------------------------------------------------------------------
# Scores of texts


def fit_context(prompt_ids: Sequence[int], completion_ids: Sequence[int], limit: int | None) -> list[int] | None:
    """Prompt + completion in `limit` tokens: the prompt loses its beginning, the completion nothing.

    None when the completion alone is longer. `limit=None`: no limit.
    """
    if limit is None:
        return [*prompt_ids, *completion_ids]
    room = limit - len(completion_ids)
    return None if room < 0 else [*prompt_ids[max(len(prompt_ids) - room, 0) :], *completion_ids]


def pad_right(rows: Sequence[Sequence[int]], pad_token_id: int | None) -> tuple[Tensor, Tensor]:
    """Rows of token ids as input_ids (B, T), padded on the right, and lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = torch.full((len(rows), int(lengths.max())), pad_token_id or 0)
    for place, row in zip(input_ids, rows, strict=True):
        place[: len(row)] = torch.tensor(row)
    return input_ids, lengths


@torch.no_grad()
def score_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    completions: Sequence[str],
    batch_size: int = 16,
) -> Tensor:
    """Calibrated scores of completions to their prompts, in the given order. (N,) float32, on the CPU.

    A prompt that does not fit the model's context loses its beginning.

    Raises:
        UserError: for a completion longer than the context, or a row with nothing to read.
    """
    if len(prompts) != len(completions):
        raise UserError(
            f"{len(prompts)} prompts and {len(completions)} completions: one prompt a completion is needed."
        )
    inner = unwrapped(model)
    limit = context_length(inner.config)
    rows = []
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        completion_ids = encode_completion(tokenizer, completion, eos=False)
        ids = fit_context(encode_prompt(tokenizer, prompt), completion_ids, limit)
        if ids is None:
            raise UserError(
                f"Row {number}: the completion has {len(completion_ids)} tokens and the reward model reads {limit}. "
                "Shorten it: a completion is never cut, since its end is what is judged."
            )
        if not ids:
            raise UserError(f"Row {number}: prompt and completion are empty, there is nothing to score.")
        rows.append(ids)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True)  # alike lengths pad little
    device = next(inner.parameters()).device
    pad_token_id = inner.config.get_text_config().pad_token_id
    scores = torch.zeros(len(rows))
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            input_ids, lengths = pad_right([rows[row] for row in batch], pad_token_id)
            scores[batch] = sequence_scores(model, input_ids.to(device), lengths).cpu()
    finally:
        model.train(was_training)
    gain, bias = calibration(inner.config)
    return gain * scores + bias
