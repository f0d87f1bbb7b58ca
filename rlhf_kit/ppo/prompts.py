"""Prompts as tokens, the order in which rollouts take them, and the texts of PPO-ptx.

PPO-ptx is next-token training mixed into PPO, so that the policy forgets less (InstructGPT, section 3.5).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_kit.data.chat import encode_prompt, encode_texts, encoding, set_chat_template
from rlhf_kit.data.loading import checked
from rlhf_kit.data.rows import Filed, is_large
from rlhf_kit.data.store import token_key
from rlhf_kit.data.templates import warn_unread
from rlhf_kit.data.tokens import IDS, Tokens, tokens_of
from rlhf_kit.data.workers import workers_for
from rlhf_kit.errors import UserError
from rlhf_kit.models.activations import forwards, row_bytes
from rlhf_kit.models.forward import pad_right
from rlhf_kit.models.room import Room
from rlhf_kit.ops import length_mask
from rlhf_kit.ppo.config import PPOConfig

logger = logging.getLogger(__name__)
LONGEST = 512  # tokens of a text, where nobody says otherwise


def prompt_order(size: int, places: range, seed: int, shuffle: bool = True) -> list[int]:
    """Rows of the prompts at `places` of an endless sequence: pass after pass over `size` rows, each shuffled anew.

    A data set smaller than a rollout simply comes round again.
    """
    passes: dict[int, Sequence[int]] = {}
    rows = []
    for place in places:
        number, offset = divmod(place, size)
        if number not in passes:
            generator = torch.Generator().manual_seed(seed + 7_919 * number)
            passes[number] = torch.randperm(size, generator=generator).numpy() if shuffle else range(size)
        rows.append(int(passes[number][offset]))
    return rows


class Prompts(Sequence):
    """Rows with their tokens, as `encode_prompts` gives them. `lengths`: the tokens of each prompt, (N,)."""

    def __init__(self, rows: Sequence[dict], lengths: np.ndarray | None = None):
        self.rows = rows
        self.lengths = np.array([len(row["prompt_ids"]) for row in rows]) if lengths is None else lengths

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int | slice) -> Any:
        return self.rows[at]

    def __iter__(self) -> Iterator[dict]:
        return iter(self.rows)


class _WithIds(Filed):
    """Those of the `rows` at the places `kept`, each with its tokens."""

    def __init__(self, rows: Sequence[dict], ids: Tokens, kept: Sequence[int]):
        self.rows, self.ids, self.kept = rows, ids, kept

    def __len__(self) -> int:
        return len(self.kept)

    def at(self, place: int) -> dict:
        place = int(self.kept[place])
        return {**self.rows[place], "prompt_ids": self.ids[place]}

    def __iter__(self) -> Iterator[dict]:
        if len(self.kept) < len(self.rows):
            return super().__iter__()
        return ({**row, "prompt_ids": ids} for row, ids in zip(self.rows, self.ids, strict=True))


def encode_prompts(
    dataset: Dataset | list[dict],
    tokenizer: PreTrainedTokenizerBase,
    max_completion_length: int,
    limit: int | None,
    name: str = "train_dataset",
    max_prompt_length: int | None = None,
    tell: Callable[[str], None] = logger.warning,
    workers: int | None = None,
) -> Prompts:
    """Rows with `prompt`, `prompt_ids` and all further columns as they stand, of rows of any kind (`data.prompts`).

    `Prompts` are given back as they are. The tokenizer gets the plain-text chat template if it has none and the
    prompts are messages.

    Args:
        limit: of prompt and completion, in tokens. name: of the rows, in messages.
        max_prompt_length: prompts of more tokens are left out; `tell` takes how many.
        workers: processes that tokenize (`data.workers.workers_for`).

    Raises:
        UserError: for what no prompt is, and for a prompt that leaves no room for a completion.
    """
    if isinstance(dataset, Prompts):
        return dataset
    room = Room(limit, max_completion_length, "max_completion_length")
    if not room.holds(1):
        raise UserError(
            f"max_completion_length {max_completion_length} leaves no room for a prompt in the context of {limit} "
            "tokens."
        )
    rows, *_ = checked(dataset, ("prompts",), name)
    if not isinstance(rows[0]["prompt"], str):
        set_chat_template(tokenizer)

    def tokenize(about: dict) -> Iterator[dict]:
        unread: Counter[str] = Counter()

        def encode(row: dict, counts: Counter[str]) -> list[int]:
            return encode_prompt(tokenizer, row["prompt"], counts)

        for ids in encoding(rows, encode, name, unread, workers_for(workers, is_large(dataset))):
            yield {"prompt_ids": ids}
        about["unread"] = dict(unread)

    key = partial(token_key, "prompts", dataset, tokenizer) if is_large(dataset) else None
    encoded, about = tokens_of(key, name, {"prompt_ids": IDS}, tokenize)
    warn_unread(Counter(about["unread"]), len(rows), name)
    ids = Tokens(encoded, "prompt_ids")
    lengths = ids.lengths()
    if not lengths.all():
        number = int(np.argmin(lengths)) + 1
        raise UserError(
            f"{name}: the prompt of row {number} has no tokens to continue from; remove it, or add some text."
        )
    most = math.inf if max_prompt_length is None else max_prompt_length
    kept: Sequence[int] = range(len(rows))
    if lengths.max() > most:
        kept = np.flatnonzero(lengths <= most).astype(np.int32)
        lengths = lengths[kept]
    if not len(kept):
        raise UserError(f"{name}: no prompt has at most max_prompt_length {most} tokens.")
    if len(kept) < len(rows):
        tell(f"{name}: {len(rows) - len(kept)} of {len(rows)} prompts, of more than {most} tokens, are left out")
    if not room.holds(int(lengths.max())):
        advice = f"Drop them (PPO's max_prompt_length={room.tokens} does), or lower max_completion_length."
        sizes = {f"row {at + 1}": tokens for at, tokens in zip(map(int, kept), lengths.tolist(), strict=True)}
        room.check(sizes, "prompts", advice, name)
    prompts = _WithIds(rows, ids, kept)
    return Prompts(prompts if isinstance(rows, Filed) else list(prompts), lengths)


def longest_row(prompts: Iterable[Prompts], max_completion_length: int) -> int:
    """Tokens of the longest prompt of all with its completion."""
    return max((int(rows.lengths.max()) for rows in prompts if len(rows)), default=0) + max_completion_length


# --- texts ----------------------------------------------------------------------------------------------------------


def text_length(asked: int | None, context: int | None) -> int:
    """Tokens a text may have: `ptx_max_length`, or `LONGEST`; the context at most. Raises UserError for more."""
    if asked is not None and context is not None and asked > context:
        raise UserError(f"ptx_max_length={asked} is more than the policy's context of {context} tokens; lower it.")
    return asked or min(LONGEST, context or LONGEST)


class PretrainingTexts:
    """Texts as token rows, dealt out to optimizer steps by the step's number alone.

    Args:
        dataset: rows with `text`. max_length: tokens; a longer text is cut there, a shorter one ends with EOS.
    """

    def __init__(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, workers: int | None = None
    ):
        if "text" not in dataset.column_names:
            raise UserError(f"ptx_dataset has the columns {', '.join(dataset.column_names)}; it needs `text`.")
        for number, text in enumerate(dataset["text"], start=1):
            if not isinstance(text, str):
                raise UserError(f"ptx_dataset: row {number} has the `text` {text!r}; it needs to be text.")

        def tokenize(about: dict) -> Iterator[dict]:
            about["cut"] = 0
            for ids in encode_texts(tokenizer, dataset["text"], workers_for(workers, is_large(dataset))):
                about["cut"] += len(ids) >= max_length  # EOS is behind it
                yield {"input_ids": [*ids, tokenizer.eos_token_id][:max_length]}

        key = partial(token_key, "ptx", dataset, tokenizer, max_length) if is_large(dataset) else None
        rows, about = tokens_of(key, "ptx_dataset", {"input_ids": IDS}, tokenize)
        self.rows = Tokens(rows)
        if not self.rows:
            raise UserError("ptx_dataset has no text to learn from.")
        empty, cut = len(dataset) - len(rows), about["cut"]
        if empty or cut:
            logger.warning(
                "ptx_dataset: of %d texts %d are empty and left out, %d are cut to %d tokens.",
                len(dataset), empty, cut, max_length,
            )  # fmt: skip
        self.pad_id, self.longest = tokenizer.pad_token_id, int(self.rows.lengths().max())

    def batches(self, step: int, args: PPOConfig) -> Iterator[dict[str, Tensor]]:
        """The micro-batches of optimizer step `step` on this process: ptx_ids (b, T), ptx_lengths (b,)."""
        total = args.ptx_batch_size or args.mini_batch_size
        share = total // args.world_size
        first = step * total + args.process_index * share
        order = prompt_order(len(self.rows), range(first, first + share), args.seed, args.shuffle_dataset)
        rows = sorted((self.rows[i] for i in order), key=len)
        for part in torch.arange(share).tensor_split(args.gradient_accumulation_steps):
            ids, lengths = pad_right([rows[i] for i in part.tolist()], self.pad_id)
            yield {"ptx_ids": ids.to(args.device), "ptx_lengths": lengths.to(args.device)}


def rows_a_forward(args: PPOConfig, config: PretrainedConfig, longest: int, ptx: PretrainingTexts | None) -> int:
    """As many completions of a mini-batch as fit, each with its share of the pretraining texts.

    Args:
        longest: tokens of the longest row.
    """
    rows, half = max(1, args.mini_batch_size // args.world_size), args.bf16 or args.fp16
    each, parts = row_bytes(config, longest, args.max_completion_length, half), rows
    if ptx is not None:
        texts, tokens = (args.ptx_batch_size or args.mini_batch_size) // args.world_size, ptx.longest
        parts = math.gcd(rows, texts)
        each = each and each + texts / rows * row_bytes(config, tokens, tokens, half)
    return rows // forwards(rows, each, parts, args.device, args.world_size)


def next_token_mask(lengths: Tensor, width: int) -> Tensor:
    """The tokens that are predicted: all but the first of each row. (b,) -> (b, width - 1) bool."""
    return length_mask(lengths, width)[:, 1:]
