"""How a policy reads rows of prompt and completion: for the next token, and all at once; tried before the first draw.

padded      [ .  .  p  p  p | c  c  c  EOS  . ]     prompts padded on the left: completions begin in one column, and a
                                                    cache reads on
compact     [ p  p  p  c  c  c  EOS  .  .  . ]      padded on the right, each token reads its row anew: slow, and right
                                                    for any causal model
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from rlhf_kit import ops
from rlhf_kit.errors import UserError
from rlhf_kit.generation.attention import is_wide, wide_attention
from rlhf_kit.generation.cache import can_replace, growing_cache
from rlhf_kit.generation.loop import Begun, Step, write_on
from rlhf_kit.models.forward import (
    captured_input,
    compact_rows,
    completion_logits_and_states,
    output_embeddings,
    packed_rows,
    pad_right,
    read_rows,
    taken,
    trunk_states,
    unwrapped,
)
from rlhf_kit.models.preflight import agreed, alone, gap, short_texts, tried, why_not_packed

logger = logging.getLogger(__name__)


def left_pad(sequences: list[list[int]], pad_id: int, device=None) -> tuple[Tensor, Tensor]:
    """Token lists -> ids (B, P) padded on the left, lengths (B,)."""
    width = max(map(len, sequences))
    ids = torch.tensor([[pad_id] * (width - len(s)) + s for s in sequences], device=device)
    return ids, torch.tensor([len(s) for s in sequences], device=device)


def completion_rows(
    prompt_ids: Tensor, prompt_lengths: Tensor, completion_ids: Tensor, completion_lengths: Tensor, pack: bool
) -> dict[str, Tensor]:
    """(B, P) padded on the left, (B,), (B, R), (B,) -> `packed_rows` or `compact_rows` of prompt and completion, and
    `places` (S,) of the states: before each token of a completion, and after its last."""
    both = torch.cat([prompt_ids, completion_ids], 1)  # (B, P + R)
    lengths = prompt_lengths + completion_lengths
    starts, width = prompt_ids.shape[1] - prompt_lengths, int(lengths.max())
    steps = torch.arange(both.shape[1] + 1, device=both.device)
    rows = both.gather(1, (starts[:, None] + steps[:width]).clamp(max=both.shape[1] - 1))
    begins = lengths.cumsum(0) - lengths if pack else torch.arange(len(rows), device=both.device) * width
    places = (begins + prompt_lengths - 1)[:, None] + steps[: completion_ids.shape[1] + 1]
    states = ops.length_mask(completion_lengths + 1, places.shape[1])
    return (packed_rows if pack else compact_rows)(rows, lengths) | {"places": places[states]}


class Cached:
    """Rows that are read on: prompts padded on the left, and a cache of keys, values and states.

    refills: whether other rows may begin in the places of those that have ended.
    """

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], pad_id: int, room: int):
        self.model, self.pad_id = model, pad_id
        self.ids, self.lengths = left_pad(prompts, pad_id, next(model.parameters()).device)
        self.mask = _left_mask(self.lengths, self.ids.shape[1])
        self.positions = ops.position_ids(self.mask)
        self.wide = is_wide(model)
        self.cache = growing_cache(model, self.ids.shape[1] + room, self.wide)
        self.refills = can_replace(self.cache)

    def read(self) -> tuple[Tensor, Tensor]:
        """Logits (rows, V) that predict the next token of each row, and the states (rows, H) they come from."""
        with captured_input(output_embeddings(self.model)) as states:
            logits = _read_on(self.model, self.ids, self.mask, self.positions, self.cache)
        return logits[:, -1], states[0][:, -1]

    def write(self, step: Step) -> None:
        """Append a token to each row that continues."""
        if step.rows is not None:
            self.keep(step.rows)
        self.ids, self.positions = step.tokens[:, None], self.lengths[:, None]
        self.lengths = self.lengths + 1
        self.mask = F.pad(self.mask, (0, 1), value=1)
        if step.begun is not None:
            self.begin(*step.begun)
        if self.refills and (step.rows is not None or step.begun is not None):
            self._fit()

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows alone."""
        self.mask, self.lengths = self.mask[rows], self.lengths[rows]
        self.cache.reorder_cache(rows)

    def begin(self, places: Tensor, prompts: list[list[int]]) -> None:
        """Other rows in these places. Their prompts are read but for the last tokens, which all rows read together.

        [ .  a  a  a | a ]        [ .  a  a  a | a ]
        [ b  b  b  b | b ]   ->   [ .  .  c  c | c ]     b has ended; the first column is used no more
        """
        if (more := int(places.max()) + 1 - len(self.lengths)) > 0:
            self._add(more)
        ids, lengths = left_pad(prompts, self.pad_id, self.ids.device)
        width = ids.shape[1]
        self.ids[places], self.lengths[places] = ids[:, -1:], lengths
        self.positions = self.lengths[:, None] - 1
        self.mask = F.pad(self.mask, (max(0, width - self.mask.shape[1]), 0))
        self.mask[places] = _left_mask(lengths, self.mask.shape[1])
        if width > 1:
            mask, read = _left_mask(lengths, width)[:, :-1], growing_cache(self.model, wide=self.wide)
            _read_on(self.model, ids[:, :-1], mask, ops.position_ids(mask), read)
            for layer, new in zip(self.cache.layers, read.layers, strict=True):
                layer.replace(places, new.keys, new.values)

    def _add(self, rows: int) -> None:
        """Places behind the last row, for rows that begin there."""
        self.ids, self.mask = F.pad(self.ids, (0, 0, 0, rows)), F.pad(self.mask, (0, 0, 0, rows))
        self.lengths = F.pad(self.lengths, (0, rows))
        for layer in self.cache.layers:
            layer.add_rows(rows)

    def _fit(self) -> None:
        """Without the first columns, where no row has a token any more."""
        width = int(self.lengths.max())
        self.mask = self.mask[:, -width:]
        for layer in self.cache.layers:
            layer.keep_last(width - 1)


def _left_mask(lengths: Tensor, width: int) -> Tensor:
    """(B,) -> (B, width) int64, 1 at the last tokens."""
    return ops.length_mask(lengths, width).flip(1).long()


def _read_on(model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Logits after the last of `ids` (B, N); `mask` is of what the cache holds, too."""
    inputs = taken(model, input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
    return model(**inputs, past_key_values=cache, use_cache=True).logits


class Anew:
    """Rows that are read from the beginning for every token, padded on the right: of any causal model."""

    refills = True

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], pad_id: int, room: int):
        self.model, self.pad_id, self.room = model, pad_id, room
        ids, lengths = pad_right(prompts, pad_id)
        device = next(model.parameters()).device
        self.ids, self.lengths = ids.to(device), lengths.to(device)

    def read(self) -> tuple[Tensor, Tensor]:
        rows = compact_rows(self.ids[:, : int(self.lengths.max())], self.lengths)
        with captured_input(output_embeddings(self.model), self.lengths[:, None] - 1) as states:
            logits = read_rows(self.model, rows).logits
        return logits[:, -1], states[0][:, -1]

    def write(self, step: Step) -> None:
        if step.rows is not None:
            self.ids, self.lengths = self.ids[step.rows], self.lengths[step.rows]
        if int(self.lengths.max()) == self.ids.shape[1]:
            self.ids = F.pad(self.ids, (0, self.room), value=self.pad_id)
        self.ids[torch.arange(len(step.tokens), device=step.tokens.device), self.lengths] = step.tokens
        self.lengths = self.lengths + 1
        if step.begun is not None:
            self.begin(*step.begun)

    def begin(self, places: Tensor, prompts: list[list[int]]) -> None:
        ids, lengths = (x.to(self.ids.device) for x in pad_right(prompts, self.pad_id))
        more = max(0, int(places.max()) + 1 - len(self.lengths))
        wider = max(0, ids.shape[1] - self.ids.shape[1])
        self.ids = F.pad(self.ids, (0, wider, 0, more), value=self.pad_id)
        self.lengths = F.pad(self.lengths, (0, more))
        self.ids[places, : ids.shape[1]], self.lengths[places] = ids, lengths


# --- before the first draw ------------------------------------------------------------------------------------------


def check_sampling(model: nn.Module, prompts: list[list[int]], value_trunk: nn.Module | None = None) -> bool:
    """Whether rows must be compact: where the cache, or padding on the left, gives other logits than a text alone.

    Tried on two short texts of `prompts`, each a prompt and what it is continued by; `value_trunk` reads them too.

    Raises:
        UserError: for a model that reads padding on the right, or what is to come.
    """
    texts = short_texts(model, prompts)

    def decide() -> tuple[str | None, str | None]:
        padded = tried(model, lambda: _sampling_gap(model, texts, False, value_trunk))
        return padded, padded and tried(model, lambda: _sampling_gap(model, texts, True, value_trunk))

    padded, compact = agreed(decide) or (None, None)
    if compact:
        raise UserError(
            f"{type(unwrapped(model)).__name__} cannot be sampled from: when whole rows are read again, {compact}."
        )
    if padded:
        logger.warning(
            "%s, with a cache and prompts padded on the left: %s; each new token reads its whole row again, which is "
            "slow.",
            type(unwrapped(model)).__name__, padded,
        )  # fmt: skip
    return padded is not None


def _sampling_gap(model: nn.Module, texts: list[list[int]], compact: bool, value_trunk: nn.Module | None) -> float:
    """By how much the sampler's logits, the training forward's, and the value trunk's states are off."""
    starts = [(len(text) + 1) // 2 for text in texts]
    truth = [alone(model, text)[start - 1 : -1] for text, start in zip(texts, starts, strict=True)]
    with wide_attention(model):
        sampled, number_of = _sampled_logits(model, texts, starts, compact)
    worst = gap(sampled, [truth[number] for number in number_of])
    rows, own = _read(model, texts, False, value_trunk), _read_alone(model, texts, value_trunk)
    return max(worst, *(gap([x], [y]) for x, y in zip(rows, own, strict=True)))


def packs(model: nn.Module, prompts: list[list[int]], value_trunk: nn.Module | None = None) -> bool:
    """Whether training may read all rows as one, without padding: where that gives the logits of a text alone.

    From then on `model` and `value_trunk` have the attention that can (`models.packed`).
    """
    texts = short_texts(model, prompts)
    models = [model] if value_trunk is None else [model, value_trunk]
    fault = why_not_packed(
        models, lambda: _read(model, texts, True, value_trunk), lambda: _read_alone(model, texts, value_trunk)
    )
    if fault is not None:
        logger.warning("%s reads rows with padding: without, %s.", type(unwrapped(model)).__name__, fault)
    return fault is None


def _read(model: nn.Module, texts: list[list[int]], pack: bool, value_trunk: nn.Module | None) -> list[Tensor]:
    """Logits, and the value trunk's states, of the second halves of texts as training reads them."""
    starts, device = [(len(text) + 1) // 2 for text in texts], next(model.parameters()).device
    prompts, lengths = left_pad([text[:start] for text, start in zip(texts, starts, strict=True)], 0, device)
    rests = [text[start:] for text, start in zip(texts, starts, strict=True)]
    completions, sizes = (x.to(device) for x in pad_right(rests, 0))
    inputs = completion_rows(prompts, lengths, completions, sizes, pack)
    inputs["completion_mask"] = ops.length_mask(sizes, completions.shape[1])
    logits, _ = completion_logits_and_states(model, inputs)
    return [logits.float(), *([] if value_trunk is None else [trunk_states(value_trunk, inputs).float()])]


def _read_alone(model: nn.Module, texts: list[list[int]], value_trunk: nn.Module | None) -> list[Tensor]:
    """The same, each text by itself."""
    starts, device = [(len(text) + 1) // 2 for text in texts], next(model.parameters()).device
    found = [torch.cat([alone(model, text)[start - 1 : -1] for text, start in zip(texts, starts, strict=True)])]
    if value_trunk is not None:
        rows = [torch.tensor([text], device=device) for text in texts]
        states = [read_rows(value_trunk, {"input_ids": row}).last_hidden_state[0] for row in rows]
        found.append(torch.cat([x[start - 1 :].float() for x, start in zip(states, starts, strict=True)]))
    return found


def _sampled_logits(
    model: nn.Module, texts: list[list[int]], starts: list[int], compact: bool
) -> tuple[list[Tensor], list[int]]:
    """The logits that the sampler would draw from, were these texts what it draws; and which text each row is of.

    The shorter one ends first; where another may begin in its place, it is the same once more.
    """
    begun, room = [text[:start] for text, start in zip(texts, starts, strict=True)], max(map(len, texts))
    device = next(model.parameters()).device
    reader = (Anew if compact else Cached)(model, begun, 0, room)
    number_of, logits_of = list(range(len(texts))), [[] for _ in texts]
    going = list(number_of)

    def end(row: int) -> int:
        return starts[number_of[row]] + len(logits_of[row])

    def forced(logits: Tensor, _: Tensor) -> Step | None:
        for row, scores in zip(going, logits.float(), strict=True):
            logits_of[row].append(scores)
        ended = [at for at, row in enumerate(going) if end(row) == len(texts[number_of[row]])]
        new = None
        if ended and reader.refills and len(number_of) == len(texts):
            number = number_of[going[ended[0]]]
            going[ended[0]] = len(number_of)
            number_of.append(number)
            logits_of.append([])
            new = Begun(torch.tensor([ended.pop(0)], device=device), [begun[number]])
        kept = [at for at in range(len(going)) if at not in ended]
        going[:] = [going[at] for at in kept]
        tokens = [texts[number_of[row]][end(row) - 1] for row in going]
        rows = torch.tensor(kept, device=device) if ended else None
        return Step(torch.tensor(tokens, device=device), rows, new) if going else None

    write_on(reader, forced)
    return [torch.stack(rows) for rows in logits_of], number_of
