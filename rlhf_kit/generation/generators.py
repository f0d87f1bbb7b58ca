"""Language models that are measured: loading, and texts as the token ids they read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import Message, encode_each, encode_prompt, lead_ids, set_chat_template, start_ids
from rlhf_kit.data.hub import split_revision
from rlhf_kit.data.templates import warn_unread
from rlhf_kit.errors import UserError, each
from rlhf_kit.hashes import text_hash
from rlhf_kit.models.checkpoints import load_policy, load_tokenizer
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.prefix import shared_prefix
from rlhf_kit.models.room import Room


def load_generator(
    name: str, dtype: str, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode on a device, and its tokenizer.

    Raises:
        UserError: also when the tokenizer has tokens that the model lacks.
    """
    tokenizer = load_tokenizer(name)
    model = load_policy(name, tokenizer=tokenizer, dtype=dtype)
    # Masks come from lengths, and pad is GPT-2's end of text: transformers would take that for padding and warn.
    model.config.get_text_config().pad_token_id = None
    return model.to(device).eval(), tokenizer


def check_generators(names: Iterable[str]) -> list[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """As `load_generator` each, without weights. Raises UserError as that does, of all of them, but for weights that
    are no numbers: none is read."""

    def checked(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        tokenizer = load_tokenizer(name)
        return load_policy(name, tokenizer=tokenizer, device_map="meta"), tokenizer

    return each(checked, names)


def encode_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Any], length: int, source: str
) -> list[list[int]]:
    """The tokens of prompts, text or messages, up to where the assistant speaks; the tokenizer gets a chat template
    where one is needed. Raises UserError, which begins with `source`, where one leaves no room for `length` more."""
    if any(not isinstance(prompt, str) for prompt in prompts):
        set_chat_template(tokenizer)
    unread: Counter[str] = Counter()
    rows = encode_each(prompts, partial(encode_prompt, tokenizer), source, unread)
    warn_unread(unread, len(rows), source)
    room = Room(context_length(model.config), length, "max_completion_length")
    sizes = {f"prompt {number}": len(ids) for number, ids in enumerate(rows, start=1)}
    room.check(sizes, "prompts", "Drop them, or lower --max_completion_length.", source)
    return rows


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text as it stands: nothing is put around it."""
    # verbose: a text longer than the model's context is no fault here
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def encode_begun(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text with BOS in front where the tokenizer's own call puts it."""
    return start_ids(tokenizer) + encode(tokenizer, text)


def first_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that a text's own first token is scored after: BOS, else the end of text. Never empty."""
    bos = tokenizer.bos_token_id
    return start_ids(tokenizer) or [tokenizer.eos_token_id if bos is None else bos]


def encode_behind(
    tokenizer: PreTrainedTokenizerBase, context: str, continuations: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Ids of a context, begun and never empty, and of each continuation as it stands behind it.

    Encoded together and cut, since a text has other tokens alone: SentencePiece puts its mark before every text, and
    many tokenizers join what stands at the border. The context ends where it and all the whole texts still have the
    same ids; what is joined is the continuations'. Where nothing is (GPT-2 before a space), they are cut as they were
    given. As lm-evaluation-harness does it (its issue 443), which cuts at the context's own length.

    Raises UserError for a continuation that no token is made of.
    """
    texts = [context, *(context + continuation for continuation in continuations)]
    # verbose: a text longer than the model's context is no fault here
    own, *wholes = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    border = shared_prefix([own, *wholes])
    behind = [list(whole[border:]) for whole in wholes]
    lost = next((text for text, ids in zip(continuations, behind, strict=True) if text and not ids), None)
    if lost is not None:
        raise UserError(f"The tokenizer has no token for {lost!r}, so no model can be asked for it.")
    return (start_ids(tokenizer) + list(own[:border])) or first_ids(tokenizer), behind


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
    repos = [split_revision(model) for model in models]
    names = [re.sub(r"[^\w.-]+", "-", Path(repo).name or repo) for repo, _ in repos]
    names = [
        f"{name}-{commit[:8]}" if commit and names.count(name) > 1 else name
        for name, (_, commit) in zip(names, repos, strict=True)
    ]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--models: two are named {twice!r}, but results are stored by name. Rename a folder.")
    return [None if output is None else output / name for name in names]
