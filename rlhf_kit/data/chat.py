"""Dialogue as token ids: the only place where the text of a prompt or a completion is encoded.

Prompt and completion are always encoded apart, so the border between them is the same token border in training, in
sampling and in scoring.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf_kit.errors import UserError

Message = dict[str, str]
IGNORED = -100  # the label torch's cross entropy leaves out

# Plain text, no new tokens: GPT-2's embedding is never resized. The space stands with the completion ("Assistant:" +
# " Paris"), as byte-level BPE wants it: a prompt that ends in a space is a different token sequence.
GPT2_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- 'Assistant:' -}}"
    "{%- generation -%}{{- ' ' + (message['content'] | trim) + eos_token -}}{%- endgeneration -%}"
    "{%- elif message['role'] == 'system' -%}"
    "{{- 'System: ' + (message['content'] | trim) + eos_token -}}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- 'User: ' + (message['content'] | trim) + eos_token -}}"
    "{%- else -%}"
    "{{- raise_exception('a turn is of system, user or assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)
_NAMES = {"system": "System:", "user": "User:", "assistant": "Assistant:"}
# Characters of Unicode's supplementary private use area stand in for the text of special tokens.
_PRIVATE = 0xF0000
_PROBE = "\U000f8000"


def set_chat_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give `tokenizer` the plain-text template if it has none; it is then saved with the tokenizer. Returns it."""
    if not tokenizer.chat_template:
        if tokenizer.eos_token_id is None:
            raise UserError("The tokenizer has no EOS token, so no turn can end. Set tokenizer.eos_token.")
        tokenizer.chat_template = GPT2_CHAT_TEMPLATE
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message]) -> list[int]:
    """Token ids up to where the assistant speaks. A str is one user turn under a chat template, else verbatim."""
    if isinstance(prompt, str):
        if not tokenizer.chat_template:
            return _text_ids(tokenizer, prompt)
        prompt = [{"role": "user", "content": prompt}]
    _need_template(tokenizer)
    if _is_ours(tokenizer):
        return [i for message in prompt for i in _turn_ids(tokenizer, message)] + _text_ids(tokenizer, "Assistant:")
    prompt, shielded = _shield(tokenizer, prompt)
    return _rendered_ids(tokenizer, _render(tokenizer, prompt, add_generation_prompt=True), shielded)


def encode_completion(tokenizer: PreTrainedTokenizerBase, completion: str, eos: bool) -> list[int]:
    """Token ids of what the assistant says, ended as its turn ends if `eos`.

    Under a chat template surrounding whitespace is stripped and the template's own lead (ours: one space) put before
    it, so that `encode_prompt` + `encode_completion` are the ids of the dialogue; without one the text is verbatim.
    """
    if not tokenizer.chat_template:
        return _text_ids(tokenizer, completion) + ([_eos(tokenizer)] if eos else [])
    lead, end = _frame(tokenizer)
    if _is_ours(tokenizer):
        return _text_ids(tokenizer, lead + completion.strip()) + (end if eos else [])
    messages, shielded = _shield(tokenizer, [{"role": "assistant", "content": completion.strip()}])
    return _rendered_ids(tokenizer, lead + messages[0]["content"], shielded) + (end if eos else [])


def encode_dialogue(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """(input_ids, labels), equally long: every assistant turn and its EOS is trained, all else is -100.

    Raises UserError for a foreign template that neither marks the assistant's words (`{% generation %}`) nor renders a
    dialogue's beginning the same whatever follows.
    """
    _need_template(tokenizer)
    if _is_ours(tokenizer):
        ids, labels = [], []
        for message in messages:
            turn = _turn_ids(tokenizer, message)
            said = 0
            if message["role"] == "assistant":
                said = len(turn) - len(_text_ids(tokenizer, "Assistant:"))
            ids += turn
            labels += [IGNORED] * (len(turn) - said) + turn[len(turn) - said :]
        return ids, labels
    messages, shielded = _shield(tokenizer, messages)
    if not shielded and re.search(r"\{%-?\s*generation\s*-?%\}", tokenizer.chat_template):
        encoded = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids = list(encoded["input_ids"])
        said = encoded["assistant_masks"]
        return ids, [i if mask else IGNORED for i, mask in zip(ids, said, strict=True)]
    return _encode_incrementally(tokenizer, messages, shielded)


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of a completion's ids up to its EOS (not included), without surrounding whitespace."""
    ends = {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        ends.update(_frame(tokenizer)[1][-1:])
    ids = [int(i) for i in ids]
    stop = next((at for at, i in enumerate(ids) if i in ends), len(ids))
    return tokenizer.decode(ids[:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def _is_ours(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.chat_template == GPT2_CHAT_TEMPLATE


def _need_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise UserError("The prompt is a list of messages but the tokenizer has no chat template: set_chat_template.")


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise UserError("The tokenizer has no EOS token, so no completion can end. Set tokenizer.eos_token.")
    return tokenizer.eos_token_id


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # Data is text: "<|endoftext|>" typed by somebody must not end a turn.
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])


def _turn_ids(tokenizer: PreTrainedTokenizerBase, message: Message) -> list[int]:
    """One turn of our own template, EOS included."""
    role = message["role"]
    if role not in _NAMES:
        raise UserError(f"A turn has the role {role!r}; it must be one of {', '.join(_NAMES)}.")
    content = " " + message["content"].strip()
    if role == "assistant":
        return _text_ids(tokenizer, _NAMES[role]) + _text_ids(tokenizer, content) + [_eos(tokenizer)]
    return _text_ids(tokenizer, _NAMES[role] + content) + [_eos(tokenizer)]


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)


def _shield(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
    """`messages` with answers stripped and the text of special tokens as private characters; what each stands for."""
    specials = sorted(set(tokenizer.all_special_tokens), key=len, reverse=True)
    shielded: dict[str, str] = {}
    safe = []
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            content = content.strip()  # as encode_completion does, so that the two agree
        for at, special in enumerate(specials):
            if special in content:
                shielded[chr(_PRIVATE + at)] = special
                content = content.replace(special, chr(_PRIVATE + at))
        safe.append({**message, "content": content})
    return safe, shielded


def _rendered_ids(tokenizer: PreTrainedTokenizerBase, text: str, shielded: dict[str, str]) -> list[int]:
    """Ids of a rendered template: its special tokens are special, those that stood in a content are text."""
    pieces = re.split(f"([{''.join(shielded)}])", text) if shielded else [text]
    ids: list[int] = []
    for piece in pieces:
        if piece in shielded:
            ids += _text_ids(tokenizer, shielded[piece])
        elif piece:
            ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    return ids


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """What the template puts between the generation prompt and a completion (text), and the ids that end the turn."""
    if _is_ours(tokenizer):
        return " ", [_eos(tokenizer)]
    question = [{"role": "user", "content": "?"}]
    prefix = _render(tokenizer, question, add_generation_prompt=True)
    full = _render(tokenizer, [*question, {"role": "assistant", "content": _PROBE}], add_generation_prompt=False)
    before, probe, after = full.partition(_PROBE)
    if not probe or not before.startswith(prefix):
        return "", [_eos(tokenizer)]
    return before[len(prefix) :], _turn_end(tokenizer, after)


def lead_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a template not ours puts before every answer, such as an empty thought; none where it is white space."""
    if not tokenizer.chat_template or _is_ours(tokenizer):
        return []
    lead = _frame(tokenizer)[0]
    return _rendered_ids(tokenizer, lead, {}) if lead.strip() else []


def _turn_end(tokenizer: PreTrainedTokenizerBase, after: str) -> list[int]:
    """Ids from the end of the content to the first special token: the newline many templates add is not said."""
    ids = _rendered_ids(tokenizer, after, {})
    specials = set(tokenizer.all_special_ids)
    at = next((at for at, i in enumerate(ids) if i in specials), None)
    return [_eos(tokenizer)] if at is None else ids[: at + 1]


def _encode_incrementally(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], shielded: dict[str, str]
) -> tuple[list[int], list[int]]:
    full = _render(tokenizer, messages, add_generation_prompt=False)
    specials = set(tokenizer.all_special_ids)
    ids: list[int] = []
    labels: list[int] = []
    done = 0
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:at], add_generation_prompt=True)
        until = _render(tokenizer, messages[: at + 1], add_generation_prompt=False)
        if not (full.startswith(before) and full.startswith(until) and done <= len(before) <= len(until)):
            raise UserError(
                "The tokenizer's chat template renders the turns before an answer differently once the answer "
                "follows, so the assistant's words cannot be told apart. Mark them in it with {% generation %}."
            )
        asked = _rendered_ids(tokenizer, full[done : len(before)], shielded)
        said = _rendered_ids(tokenizer, full[len(before) : len(until)], shielded)
        last = max((i for i, token in enumerate(said) if token in specials), default=len(said) - 1)
        ids += asked + said
        labels += [IGNORED] * len(asked) + said[: last + 1] + [IGNORED] * (len(said) - last - 1)
        done = len(until)
    rest = _rendered_ids(tokenizer, full[done:], shielded)
    return ids + rest, labels + [IGNORED] * len(rest)
