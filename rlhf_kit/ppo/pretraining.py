"""PPO-ptx: next-token training mixed into PPO, so that the policy forgets less (InstructGPT, section 3.5)."""

from __future__ import annotations

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


class PretrainingTexts:
    """Texts as token rows, dealt out to optimizer steps by the step's number alone.

    Args:
        dataset: rows with `text`. max_length: tokens; a longer text is cut there, a shorter one ends with EOS.
    """

    def __init__(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int):
        if "text" not in dataset.column_names:
            raise UserError(f"ptx_dataset has the columns {', '.join(dataset.column_names)}; it needs `text`.")
        end = [tokenizer.eos_token_id]
        rows = (ids + end for ids in encode_texts(tokenizer, dataset["text"]))
        self.rows = [ids[:max_length] for ids in rows]
        if not self.rows:
            raise UserError("ptx_dataset has no text to learn from.")
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
