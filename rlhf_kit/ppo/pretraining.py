"""PPO-ptx: next-token training mixed into PPO, so that the policy forgets less (InstructGPT, section 3.5)."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.chat import encode_texts
from rlhf_kit.errors import UserError
from rlhf_kit.models.heads import pad_right
from rlhf_kit.ops import length_mask
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.prompts import prompt_order

logger = logging.getLogger(__name__)
LONGEST = 512  # tokens of a text, where nobody says otherwise


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

    def __init__(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int):
        if "text" not in dataset.column_names:
            raise UserError(f"ptx_dataset has the columns {', '.join(dataset.column_names)}; it needs `text`.")
        texts = list(dataset["text"])
        wrong = next((row for row, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise UserError(f"ptx_dataset: row {wrong} has the `text` {texts[wrong]!r}; it needs to be text.")
        rows = [ids + [tokenizer.eos_token_id] for ids in encode_texts(tokenizer, texts)]
        self.rows = [ids[:max_length] for ids in rows]
        if not self.rows:
            raise UserError("ptx_dataset has no text to learn from.")
        empty, cut = len(texts) - len(rows), sum(len(ids) > max_length for ids in rows)
        if empty or cut:
            logger.warning(
                "ptx_dataset: of %d texts %d are empty and left out, %d are cut to %d tokens.",
                len(texts), empty, cut, max_length,
            )  # fmt: skip
        self.pad_id = tokenizer.pad_token_id

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


def next_token_mask(lengths: Tensor, width: int) -> Tensor:
    """The tokens that are predicted: all but the first of each row. (b,) -> (b, width - 1) bool."""
    return length_mask(lengths, width)[:, 1:]
