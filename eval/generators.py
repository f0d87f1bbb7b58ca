"""Language models that are measured: loading, and texts as the token ids they read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import Message, encode_prompt, lead_ids, set_chat_template, start_ids
from rlhf_kit.errors import UserError
from rlhf_kit.eval.hashes import text_hash
from rlhf_kit.models.checkpoints import check_vocabulary, load_policy, load_tokenizer


def load_generator(
    name: str, dtype: str, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode on a device, and its tokenizer.

    Raises:
        UserError: also when the tokenizer has tokens that the model lacks.
    """
    tokenizer = load_tokenizer(name)
    model = load_policy(name, tokenizer=tokenizer, dtype=dtype)
    check_vocabulary(name, tokenizer, model)
    # Masks come from lengths, and pad is GPT-2's end of text: transformers would take that for padding and warn.
    model.config.get_text_config().pad_token_id = None
    return model.to(device).eval(), tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text as it stands: nothing is put around it."""
    # verbose: a text longer than the model's context is no fault here
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def encode_begun(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text with BOS in front where the tokenizer's own call puts it."""
    return start_ids(tokenizer) + encode(tokenizer, text)


# --- in turns -------------------------------------------------------------------------------------------------------


def layout(tokenizer: PreTrainedTokenizerBase, chat: bool) -> dict[str, str]:
    """How questions are put, as a run's settings tell it: "plain" or "chat", and a hash of the template.

    For chat a tokenizer without a template gets the one that SFT would give it.
    """
    if not chat:
        return {"layout": "plain"}
    set_chat_template(tokenizer)
    return {"layout": "chat", "chat_template": text_hash(str(tokenizer.chat_template))}


def encode_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Ids of messages up to where the assistant speaks, as SFT trains on them; after `layout`.

    Raises TemplateRefusal where the template does not take them.
    """
    return encode_prompt(tokenizer, messages) + lead_ids(tokenizer)


def folders(models: Sequence[str], output: Path | None) -> list[Path | None]:
    """A folder in `output` for each model, called as the model is. Raises UserError for two of one name."""
    names = [re.sub(r"[^\w.-]+", "-", Path(model).name or model) for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--models: two are called {twice!r}; their results need names of their own. Rename a folder.")
    return [None if output is None else output / name for name in names]
