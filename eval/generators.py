"""Language models that are measured: loading, and texts as the token ids they read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import Message, encode_completion, encode_prompt, lead_ids, set_chat_template
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


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before a text: Llama's begin-of-text, nothing for GPT-2."""
    return [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text as it stands: nothing is put around it."""
    # verbose: a text longer than the model's context is no fault here
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


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

    Raises UserError where the template does.
    """
    with _refusals_told():
        return encode_prompt(tokenizer, messages) + lead_ids(tokenizer)


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token that ends the assistant's turn under the chat template. Raises UserError where the template does."""
    with _refusals_told():
        return tuple(encode_completion(tokenizer, "", eos=True)[-1:])


@contextmanager
def _refusals_told() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(f"The tokenizer's chat template refuses the dialogue: {error}. Ask in plain text.") from error


def folders(models: Sequence[str], output: Path | None) -> list[Path | None]:
    """A folder in `output` for each model, called as the model is. Raises UserError for two of one name."""
    names = [re.sub(r"[^\w.-]+", "-", Path(model).name or model) for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--models: two are called {twice!r}; their results need names of their own. Rename a folder.")
    return [None if output is None else output / name for name in names]
