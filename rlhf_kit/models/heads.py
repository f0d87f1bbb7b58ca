"""The scalar head of a reward model: the row it reads, which token it reads, how its numbers are scaled.

A causal reward model reads prompt + completion WITHOUT the final EOS, and its score stands at the last of those
tokens. transformers pools the rightmost token that is not padding, so a saved model gives the same score there,
whether its padding is EOS or a token of its own. An encoder reads the pair as its tokenizer joins two texts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rlhf_kit.data.chat import Message, encode_completion, encode_each, encode_prompt, start_ids
from rlhf_kit.errors import UserError
from rlhf_kit.models.dropout import eval_mode
from rlhf_kit.models.forward import compact_rows, context_length, packed_rows, pad_right, read_rows, taken, unwrapped
from rlhf_kit.models.packed import is_packed, take_padded
from rlhf_kit.models.preflight import agreed, gap, short_texts, tried, why_not_packed
from rlhf_kit.models.room import Room
from rlhf_kit.ops import length_mask

# ------------------------------------------------------------------------------------------
# Rows


@dataclass(frozen=True)
class RowFormat:
    """The special ids around prompt and completion: `before` prompt `between` completion `after`.

    Args:
        typed: the model has an embedding that tells the completion (1) from the prompt (0): BERT's token types.
    """

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    typed: bool = False

    @property
    def size(self) -> int:
        """How many special tokens a row has."""
        return len(self.before) + len(self.between) + len(self.after)

    def room(self, limit: int | None) -> Room:
        """For a completion, or with it for a prompt, in a row of `limit` tokens (None: any number)."""
        return Room(limit, self.size, "special tokens")

    def token_types(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """0 up to the separator before the completion, 1 from there on, 0 for padding. (B, T), (B,) -> (B, T).

        Exact whatever the prompt is: a completion is text and holds no separator of its own (`data.chat`).
        """
        inside = length_mask(lengths, input_ids.shape[1])
        separators = ((input_ids == self.between[-1]) & inside).long()
        from_here = separators.flip(1).cumsum(1).flip(1)
        return ((from_here <= self.after.count(self.between[-1])) & inside).long()


PLAIN = RowFormat()


def row_format(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> RowFormat:
    """How a model of this `config` reads a pair: an encoder as its tokenizer joins two texts, others just in a row,
    behind BOS where the tokenizer begins a text with it.

    For BERT [CLS] prompt [SEP] completion [SEP] (Devlin et al. 2019, section 3), for RoBERTa two separators between.
    """
    if config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return RowFormat(before=tuple(start_ids(tokenizer)))
    pair = tokenizer("a", "a", return_special_tokens_mask=True)
    ids, special = pair["input_ids"], pair["special_tokens_mask"]
    text = [place for place, is_special in enumerate(special) if not is_special]
    start, end = text[0], text[-1] + 1
    between = tuple(ids[place] for place in range(start, end) if special[place])
    if not between:
        return PLAIN
    row = RowFormat(tuple(ids[:start]), between, tuple(ids[end:]))
    types = row.token_types(torch.tensor([ids]), torch.tensor([len(ids)]))[0].tolist()
    has_types = (getattr(config, "type_vocab_size", None) or 0) > 1  # RoBERTa has one, DistilBERT none
    return replace(row, typed=has_types and pair.get("token_type_ids") == types)


def fit_context(
    prompt_ids: Sequence[int], completion_ids: Sequence[int], limit: int | None, row_format: RowFormat = PLAIN
) -> list[int] | None:
    """The row of prompt and completion in `limit` tokens: the prompt loses its beginning, the completion nothing.

    What the prompt begins with of `row_format.before` stands there once, and is never lost.
    None when the completion and the special tokens alone are longer. `limit=None`: no limit.
    """
    before, kept = [*row_format.before], [*row_format.between, *completion_ids, *row_format.after]
    prompt_ids = prompt_ids[len(before) :] if list(prompt_ids[: len(before)]) == before else prompt_ids
    room = Room(limit, len(before) + len(kept), "the completion")
    return [*before, *prompt_ids[room.excess(len(prompt_ids)) :], *kept] if room.holds(0) else None


# ------------------------------------------------------------------------------------------
# Raw scores


def sequence_scores(model: nn.Module, input_ids: Tensor, lengths: Tensor, row_format: RowFormat = PLAIN) -> Tensor:
    """Raw head output at the last token of right-padded rows. (B, T), (B,) -> (B,) float32, with gradients.

    Depends on the tokens alone: not on the padding id, its amount or the other rows. `model` is any sequence
    classifier with one label, bare or wrapped (DDP, FSDP, adapters): its own forward runs, so that the hooks of the
    wrapper fire and its outputs carry the gradient. Encoders that pool by themselves (BERT) get the mask and keep
    their pooling. No position ids are passed: with the padding on the right every model's own start at the first
    token, and some (RoBERTa, OPT) do not count from 0. A model that may read one long row (`check_scores`) gets that.
    """
    inner = unwrapped(model)
    lengths = lengths.to(input_ids.device)
    if is_packed(inner):
        ends = lengths.cumsum(0) - 1
        with scores_at(inner, ends[None]):  # the forward pools one row; at its place stand the scores of all ends
            return read_rows(model, packed_rows(input_ids, lengths)).logits[0].float()
    inputs = compact_rows(input_ids, lengths)
    inputs |= taken(inner, use_cache=False)
    if row_format.typed:
        inputs["token_type_ids"] = row_format.token_types(input_ids, lengths)
    with scores_at(inner, lengths[:, None] - 1):
        return model(**inputs).logits[:, 0].float()


@contextmanager
def scores_at(model: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """Within, the logits of `model`'s forward are the scores at `places` (B, K) of its rows. -> logits (B, K).

    The head `score` gives them at every place of the row, so that whichever the forward then picks, by the padding
    id, holds the right ones. An encoder that pools by itself is left alone.
    """
    head = getattr(model, "score", None)
    if head is None:
        yield
        return

    def pool(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = torch.arange(len(places), device=places.device)[:, None]
        states = args[0][rows, places]  # (B, K, H)
        # Under autocast the head would round to bf16, and answers that differ by less than 0.4 % would tie.
        with torch.autocast(states.device.type, enabled=False):
            scores = module.forward(states.to(getattr(module, "weight", states).dtype)).squeeze(-1)  # (B, K)
        return scores[:, None].expand(-1, output.shape[1], -1)

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


def logit_scale(config: PretrainedConfig) -> float:
    """Bradley-Terry log-odds that one answer beats another = logit_scale * difference of their calibrated scores.

    1 for a model that was never calibrated: training on comparisons makes its raw scores log-odds.
    """
    return getattr(config, "reward_logit_scale", 1 / calibration(config)[0])


def logit_zero(config: PretrainedConfig) -> float:
    """The calibrated score at which a thumb up and a thumb down are as likely: where the raw score was 0."""
    return getattr(config, "reward_logit_zero", calibration(config)[1])


def set_calibration(
    config: PretrainedConfig, gain: float, bias: float, scale: float | None = None, zero: float | None = None
) -> None:
    """Store the calibration in the model's config, saved with it. A gain below 0 would reverse the ranking.

    Args:
        scale, zero: `logit_scale` and `logit_zero` of the calibrated scores; None: raw scores go on meaning what they
            mean (log-odds, or log-odds moved by a calibration that was folded into the weights).
    """
    gain, bias = float(gain), float(bias)
    if not (math.isfinite(gain) and gain > 0 and math.isfinite(bias)):
        raise UserError(f"Calibration gain={gain}, bias={bias}: both must be finite and the gain above 0.")
    old_gain, old_bias = calibration(config)
    if scale is None:
        scale = logit_scale(config) * old_gain / gain
    if zero is None:
        zero = gain * (logit_zero(config) - old_bias) / old_gain + bias
    config.reward_gain, config.reward_bias = gain, bias
    config.reward_logit_scale, config.reward_logit_zero = float(scale), float(zero)


def center_scores(config: PretrainedConfig, scores: Tensor, scale: bool = True) -> None:
    """Move the calibration so that these calibrated scores (N,) get mean 0, and with `scale` population std 1.

    Source: Ziegler et al. 2019, section 2.2 (answers of the reference policy); without scale InstructGPT, section 3.5
    (demonstrations).

    Raises:
        UserError: when all scores are the same and are to be scaled.
    """
    gain, bias = calibration(config)
    mean, std = scores.mean().item(), scores.std(correction=0).item() if scale else 1.0
    if not std > 1e-6 * max(1.0, abs(mean)):
        raise UserError(f"All {len(scores)} answers to calibrate on score {mean:.6g}: there is nothing to scale by.")
    set_calibration(config, gain / std, (bias - mean) / std)


def fold_calibration(state_dict: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], PretrainedConfig]:
    """The weights and the config to save, such that plain transformers gives calibrated scores. Changes neither given.

    The head's weight takes the gain, its bias the gain and the bias. A head without a bias (`score` of every causal
    model) leaves the bias to the last LayerNorm before it: from y = g * z + b to y = g * z + b + d, with
    d = bias * w / |w|^2 for the scaled head w, every score w . y rises by exactly `bias`. Where there is none
    (RMSNorm), or it is not saved (an adapter's base), the bias stays in the config: the same number for every answer,
    on which neither a ranking nor PPO's advantages depend.

    Args:
        state_dict: of `model`, complete (gathered from all processes) or an adapter's own.
        model: the reward model, bare or wrapped.

    Returns:
        A shallow copy of `state_dict`, and a config whose gain is 1 and whose bias is what was left; both as they
        were where `state_dict` does not hold the head.
    """
    inner = unwrapped(model)
    state_dict, config = dict(state_dict), copy.deepcopy(inner.config)
    # What `save_pretrained` writes into the config of a model that it saves.
    config.architectures, config.dtype = [type(inner).__name__.removeprefix("FSDP")], inner.dtype
    gain, bias = calibration(config)
    head = _head(inner)
    is_adapter = isinstance(extract_model_from_parallel(model, keep_torch_compile=False), PeftModel)
    weight = _saved_name(state_dict, f"{head}.weight", is_adapter)
    if (gain, bias) == (1.0, 0.0) or weight is None:
        return state_dict, config
    state_dict[weight] = _scaled(state_dict[weight], gain)
    w = state_dict[weight].float()  # (1, H)
    head_bias = _saved_name(state_dict, f"{head}.bias", is_adapter)
    # The head `score` of causal models reads the trunk's last states as they are; other heads have a bias.
    norm_bias = _saved_name(state_dict, _last_norm_bias(inner), is_adapter) if head == "score" else None
    if head_bias is not None:
        state_dict[head_bias] = _scaled(state_dict[head_bias], gain, bias)
        bias = 0.0
    elif norm_bias is not None and w.any():
        state_dict[norm_bias] = _scaled(state_dict[norm_bias], 1.0, bias * w[0] / w.square().sum())
        bias = 0.0
    set_calibration(config, 1.0, bias, logit_scale(config), logit_zero(config))
    return state_dict, config


def _scaled(tensor: Tensor, gain: float, offset: float | Tensor = 0.0) -> Tensor:
    return (gain * tensor.float() + offset).to(tensor.dtype)


def _head(model: PreTrainedModel) -> str:
    """Name of the layer that gives the score: the linear one outside the trunk with one output; "" without."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == 1 and ".original_module" not in name
    ]
    return next((name for name in names if not name.startswith(f"{model.base_model_prefix}.")), "")


def check_head(model: nn.Module, name: str) -> None:
    """Raises UserError for a model that gives no score: a language model, a bare trunk, several labels."""
    inner = unwrapped(model)
    kind, is_classifier = type(inner).__name__, type(inner).__name__.endswith("ForSequenceClassification")
    if is_classifier and inner.config.num_labels != 1:
        raise UserError(f"Reward model {name!r} has {inner.config.num_labels} labels, not 1.")
    if not _head(inner):
        raise UserError(
            f"Reward model {name!r} is not a reward model: it is a {kind}, without a head that gives scores. Train "
            "one "
            "with `rlhf-kit reward`, or give the folder of one."
        )


def _last_norm_bias(model: PreTrainedModel) -> str:
    """Name of the bias of the LayerNorm that stands in the trunk after its layers; "" where there is none."""
    trunk = list(getattr(model, model.base_model_prefix).named_children())
    layers = [place for place, (_, module) in enumerate(trunk) if isinstance(module, nn.ModuleList)]
    after = trunk[layers[-1] + 1 :] if layers else []
    norms = [name for name, module in after if isinstance(module, nn.LayerNorm) and module.bias is not None]
    return f"{model.base_model_prefix}.{norms[-1]}.bias" if norms else ""


def _saved_name(state_dict: dict[str, Tensor], name: str, is_adapter: bool) -> str | None:
    """The key under which a parameter is saved, None where it is not; peft drops its own words from the names."""
    if not is_adapter:
        return name if name in state_dict else None
    if ".modules_to_save.default." not in name:
        return None  # of the base, which an adapter leaves where it is
    key = f"base_model.model.{name}"
    return next((k for k in (key, key.replace(".modules_to_save.default", "")) if k in state_dict), None)


# ------------------------------------------------------------------------------------------
# Scores of texts


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
            f"{len(prompts)} prompts and {len(completions)} completions: one prompt per completion is needed."
        )
    inner = unwrapped(model)
    limit, form = context_length(inner.config), row_format(inner.config, tokenizer)
    rows = []
    encoded = encode_each(prompts, partial(encode_prompt, tokenizer), "scores")
    for number, (prompt_ids, completion) in enumerate(zip(encoded, completions, strict=True), start=1):
        completion_ids = encode_completion(tokenizer, completion, eos=False)
        ids = fit_context(prompt_ids, completion_ids, limit, form)
        if ids is None:
            raise UserError(
                f"Row {number}: the completion {form.room(limit).lacks(len(completion_ids))}. Shorten it: a "
                "completion is never cut, since its end is what is judged."
            )
        if len(ids) == form.size:
            raise UserError(f"Row {number}: prompt and completion are empty, there is nothing to score.")
        rows.append(ids)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True)  # alike lengths pad little
    device = next(inner.parameters()).device
    pad_token_id = inner.config.get_text_config().pad_token_id
    scores = torch.zeros(len(rows))
    with eval_mode(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            input_ids, lengths = pad_right([rows[row] for row in batch], pad_token_id)
            scores[batch] = sequence_scores(model, input_ids.to(device), lengths, form).cpu()
    gain, bias = calibration(inner.config)
    return gain * scores + bias


def check_scores(model: nn.Module, rows: Iterable[Sequence[int]], reads: RowFormat = PLAIN) -> None:
    """Raises UserError for a reward model whose scores of rows of token ids change with the padding behind them.

    From then on it reads all rows as one, without padding, where that gives the same scores.
    """
    take_padded(model)
    first, second = short_texts(model, rows)
    texts = [first, second, first[: len(first) // 2], second[: len(second) // 2]]
    device, pad_id = next(model.parameters()).device, unwrapped(model).config.get_text_config().pad_token_id

    def scores(texts: list[list[int]]) -> Tensor:
        ids, lengths = pad_right(texts, pad_id)
        return sequence_scores(model, ids.to(device), lengths, reads)

    def alone() -> Tensor:
        return torch.cat([scores([text]) for text in texts])

    fault = agreed(lambda: tried(model, lambda: gap([scores(texts)], [alone()]), "its scores are"))
    if fault:
        raise UserError(
            f"{type(unwrapped(model)).__name__}: a score must not depend on padding; in a batch of answers of "
            f"different lengths {fault}."
        )
    if hasattr(unwrapped(model), "score"):
        why_not_packed([model], lambda: [scores(texts)], lambda: [alone()])
