"""Language models that are measured: loading, and texts as the token ids they read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import load_policy, load_tokenizer


def load_generator(
    name: str, dtype: str, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode on a device, and its tokenizer.

    Raises:
        UserError: also when the tokenizer has tokens that the model lacks.
    """
    tokenizer = load_tokenizer(name)
    model = load_policy(name, tokenizer=tokenizer, dtype=dtype)
    known = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > known:
        raise UserError(
            f"The tokenizer of {name!r} has {len(tokenizer)} tokens and the model knows {known}: they do not belong "
            "together. Save the model's own tokenizer beside it."
        )
    return model.to(device).eval(), tokenizer


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text: Llama's begin-of-text, nothing for GPT-2."""
    return [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text as it stands: nothing is put around it."""
    # verbose: a text longer than the model's context is no fault here
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def folders(models: Sequence[str], output: Path | None) -> list[Path | None]:
    """A folder in `output` for each model, called as the model is. Raises UserError for two of one name."""
    names = [re.sub(r"[^\w.-]+", "-", Path(model).name or model) for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--models: two are called {twice!r}; their results need names of their own. Rename a folder.")
    return [None if output is None else output / name for name in names]
