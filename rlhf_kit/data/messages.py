"""A dialogue's turns, and the columns of a row that belong to its dialogue: `system`, `history`, `tools`.

A turn has a `role` and a `content`. Whatever else it holds (`tool_calls`, `reasoning_content`, `name`, ...) is handed
to the model's chat template as it is; what that leaves out, `templates.unread` tells. `LEARNT` is for the loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_kit.data.faults import WRONG_TYPE, Fault, describe, is_list, text_faults
from rlhf_kit.errors import did_you_mean
from rlhf_kit.inputs import parse_json

Message = dict[str, Any]
OPENINGS = ("system", "developer")  # roles of what stands before the dialogue
RESULTS = ("tool", "function", "ipython", "observation")  # roles of what a tool gave back
ROLES = ("system", "user", "assistant", "developer", *RESULTS)
# Keys by which a turn says whether it is learnt (OpenAI and Mistral, Axolotl, ms-swift): 1 or true, 0 or false.
LEARNT = ("weight", "train", "training", "loss")
OPENING = ("system", "history")  # columns of turns before the dialogue
CALLS = ("tool_calls", "function_call")


# --- turns ----------------------------------------------------------------------------------------------------------


def as_messages(prompt: str | Sequence[Mapping[str, Any]]) -> list[Message]:
    """A prompt as messages: text is one turn of the user. Null keys are left out, text in parts is joined."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [_turn(message) for message in prompt]


def _turn(message: Mapping[str, Any]) -> Message:
    turn = {key: value for key, value in message.items() if value is not None and (key, value) != ("tool_calls", [])}
    return turn if "content" not in turn else {**turn, "content": content_text(turn["content"])}


def content_text(content: Any) -> str:
    """A content, given as text, as parts of text or not at all, as text."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content)


def completion_text(value: Any) -> str:
    """A completion given as text or as messages, as text."""
    return value if isinstance(value, str) else content_text(value[-1].get("content"))


def answer_turns(completion: Sequence[Mapping[str, Any]], prompt: Any) -> list[Message]:
    """The turns of a completion, without those of the prompt if it begins with them (whole dialogues).

    `completion` is without fault; what a row's `system` and `history` put before the prompt may be missing.
    """
    turns = as_messages(completion)
    if not isinstance(prompt, str) and any_fault(prompt):
        return turns
    keys, prompt_keys = turn_keys(turns), turn_keys(as_messages(prompt))
    repeated = next((n for n in range(len(turns) - 1, 0, -1) if keys[:n] == prompt_keys[-n:]), 0)
    return turns[repeated:]


def before_answer(messages: Sequence[Any]) -> list[Any]:
    """A dialogue without the assistant's turns at its end.

    >>> before_answer([{"role": "user"}, {"role": "assistant"}, {"role": "user"}, {"role": "assistant"}])
    [{'role': 'user'}, {'role': 'assistant'}, {'role': 'user'}]
    """
    end = len(messages)
    while end and isinstance(messages[end - 1], Mapping) and messages[end - 1].get("role") == "assistant":
        end -= 1
    return list(messages[:end])


def is_learnt(message: Mapping[str, Any]) -> bool:
    """Whether the loss lies on a turn: one of the assistant that does not say otherwise."""
    return message["role"] == "assistant" and all(message.get(key) in (None, 1) for key in LEARNT)


def learning_last(messages: Sequence[Message]) -> list[Message]:
    """`messages` of which the last turn alone is learnt."""
    return [*({**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in messages[:-1]), messages[-1]]


def turn_keys(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Equal for equal turns, whatever blanks surround their texts and whether they are learnt."""
    return [
        {key: value for key, value in turn.items() if key not in LEARNT} | {"content": _stripped(turn.get("content"))}
        for turn in as_messages(messages)
    ]


def _stripped(content: Any) -> str:
    return content_text(content).strip()


def prompt_key(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """Equal for equal prompts, whether text or messages, whatever blanks surround their turns."""
    return json.dumps(turn_keys(as_messages(prompt)), ensure_ascii=False, sort_keys=True)


def shared_prompt(chosen: Any, rejected: Any) -> list[Mapping[str, Any]] | None:
    """The turns before the last of two dialogues, if there are any and they are the same."""
    if not (is_list(chosen) and is_list(rejected)) or len(chosen) < 2 or len(chosen) != len(rejected):
        return None
    if any(map(any_fault, (chosen, rejected))):
        return list(chosen[:-1]) if chosen[:-1] == rejected[:-1] else None
    return list(chosen[:-1]) if turn_keys(chosen[:-1]) == turn_keys(rejected[:-1]) else None


def any_fault(messages: Any) -> bool:
    return next(messages_faults("", messages), None) is not None


def own_keys(
    rows: Sequence[Mapping[str, Any]], kinds: Sequence[str], exact: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Rows of a table, objects without the nulls that they get for keys of other objects of their column.

    Of columns that are handed on to reward functions this holds for dialogues and tools: what is null elsewhere stays,
    and so do columns that are `exact`.
    """
    own = own_turns if "prompts" in kinds else without_nulls
    return [
        {
            name: value if name in exact else without_nulls(value) if name in ("prompt", "tools") else own(value)
            for name, value in row.items()
        }
        for row in rows
    ]


def own_turns(value: Any) -> Any:
    """`value`, the turns in it (objects of `role` and `content` or calls, ShareGPT's of `from`) `without_nulls`."""
    if isinstance(value, Mapping):
        if "role" in value and value.keys() & {"content", *CALLS} or value.keys() >= {"from", "value"}:
            return without_nulls(value)
        return {key: own_turns(member) for key, member in value.items()}
    return [own_turns(member) for member in value] if isinstance(value, list) else value


def without_nulls(value: Any) -> Any:
    """`value` without the null members of its objects, however deep: tables give all objects of a column one set of
    keys."""
    if isinstance(value, Mapping):
        return {key: without_nulls(member) for key, member in value.items() if member is not None}
    return [without_nulls(member) for member in value] if isinstance(value, list) else value


# --- what is wrong with them ----------------------------------------------------------------------------------------


def messages_faults(name: str, value: Any) -> Iterator[Fault]:
    """Faults of a list of messages, whichever turn it ends with."""
    if not is_list(value):
        yield Fault(WRONG_TYPE, f'{name} is {describe(value)}; give a list of {{"role", "content"}}')
        return
    if not value:
        yield Fault("no messages", f'{name} is an empty list; give at least one {{"role", "content"}}')
        return
    for at, message in enumerate(value, start=1):
        yield from _turn_faults(f"{name}, turn {at}", message)


def _turn_faults(name: str, message: Any) -> Iterator[Fault]:
    if not isinstance(message, Mapping) or message.get("role") is None or not message.keys() & {"content", *CALLS}:
        description = ", ".join(f"`{key}`" for key in message) if isinstance(message, Mapping) else describe(message)
        description = description or "an empty object"
        yield Fault(WRONG_TYPE, f"{name}: found {description}; a turn has `role` and `content`")
        return
    role = message["role"]
    if role not in ROLES:
        hint = did_you_mean(str(role), ROLES) or (" Did you mean 'user'?" if role == "human" else "")
        yield Fault("unknown role", f"{name}: unknown role {role!r}; give one of {', '.join(ROLES)}.{hint}")
    calls = [key for key in CALLS if message.get(key)]
    if not (calls and message.get("content") in (None, "")):
        yield from _content_faults(f"{name}: `content`", message.get("content"))
    for key in calls:
        yield from _call_faults(f"{name}: `{key}`", message[key] if key == "tool_calls" else [message[key]])
    for key in LEARNT:
        if message.get(key) not in (None, 0, 1):
            fault = f"{name}: `{key}` is {describe(message[key])}; give 1 (the turn is learnt) or 0 (it is not)"
            yield Fault(WRONG_TYPE, fault)


def _content_faults(name: str, content: Any) -> Iterator[Fault]:
    if not is_list(content):
        yield from text_faults(name, content)
        return
    for at, part in enumerate(content, start=1):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else None
            description = f"of type {kind!r}" if kind not in (None, "text") else describe(part)
            message = f'{name}, part {at} is {description}; only text is read: {{"type": "text", "text": "..."}}'
            yield Fault("a content that is not text", message)
            return
        if unread := [key for key, value in part.items() if key not in ("type", "text") and value is not None]:
            message = f"{name}, part {at} has `{'`, `'.join(unread)}`, which nothing reads; leave it out"
            yield Fault("a content that is not text", message)
            return
    yield from text_faults(name, content_text(content))


def _call_faults(name: str, calls: Any) -> Iterator[Fault]:
    need = 'give [{"type": "function", "function": {"name": "...", "arguments": {...}}}]'
    if not is_list(calls):
        yield Fault(WRONG_TYPE, f"{name} is {describe(calls)}; {need}")
        return
    for at, call in enumerate(calls, start=1):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            yield Fault(WRONG_TYPE, f"{name}, {at} is {describe(call)} without the `name` of a function; {need}")


# --- columns that belong to a dialogue ------------------------------------------------------------------------------


def opening_faults(row: Mapping[str, Any]) -> Iterator[Fault]:
    """Faults of the columns `system`, `history` and `tools` of a row."""
    system, history = row.get("system"), row.get("history")
    if system is not None and not isinstance(system, str):
        yield Fault(WRONG_TYPE, f"`system` is {describe(system)}; give the text of the system turn")
    elif system and system.strip():
        own = [turn for name in _dialogues(row) for turn in _openings(row[name])]
        if any(turn.get("content") is not None and _other_text(turn["content"], system) for turn in own):
            yield Fault("two system texts", "`system` and the dialogue's own system turn are two; keep one of them")
    yield from _history_faults(history)
    yield from _tools_faults(row.get("tools"))


def _openings(dialogue: Any) -> list[Mapping[str, Any]]:
    turns = dialogue if is_list(dialogue) else []
    return [turn for turn in turns if isinstance(turn, Mapping) and turn.get("role") in OPENINGS]


def _other_text(content: Any, text: str) -> bool:
    return next(_content_faults("", content), None) is None and _stripped(content) != text.strip()


def _history_faults(history: Any) -> Iterator[Fault]:
    if history is None or history == []:
        return
    if is_list(history) and all(isinstance(turn, Mapping) for turn in history):
        yield from messages_faults("`history`", history)
        return
    if not is_list(history):
        yield Fault(WRONG_TYPE, f"`history` is {describe(history)}; give a list of [question, answer]")
        return
    for at, pair in enumerate(history, start=1):
        if not is_list(pair) or len(pair) != 2 or not all(isinstance(text, str) and text.strip() for text in pair):
            message = f"`history`, {at} is {describe(pair)}; give [question, answer], two texts"
            yield Fault(WRONG_TYPE, message)


def _tools_faults(given: Any) -> Iterator[Fault]:
    tools = parsed(given)
    if tools is not None and not (is_list(tools) and all(isinstance(tool, Mapping) for tool in tools)):
        message = f"`tools` is {describe(given)}; give a list of JSON schemas, as it is or as JSON text"
        yield Fault(WRONG_TYPE, message)


def parsed(value: Any) -> Any:
    """What JSON text holds (text that is not JSON as it is); all else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value) if value.strip() else None
    except ValueError:
        return value


def _dialogues(row: Mapping[str, Any]) -> list[str]:
    """The columns in which a row's dialogue begins."""
    whole = ("chosen", "rejected")
    return next((list(names) for names in (("messages",), ("prompt",), whole) if row.get(names[0]) is not None), [])


def with_opening(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with its `system` and `history`, which have no fault, before its dialogue, unless already there."""
    system, history = row.get("system"), row.get("history")
    if not history and not (system and system.strip()):
        return dict(row)
    before, row = list(_history_turns(history or [])), dict(row)
    for name in _dialogues(row):
        if not isinstance(row[name], str) and any_fault(row[name]):
            continue  # reported for the row as it is
        turns = as_messages(row[name])
        opening = [turn for turn in turns[:1] if turn["role"] in OPENINGS]
        turns = turns[len(opening) :]
        if turn_keys(turns[: len(before)]) != turn_keys(before):
            turns = before + turns
        if system and system.strip() and not opening:
            opening = [{"role": "system", "content": system}]
        row[name] = opening + turns
    return row


def _history_turns(history: Sequence[Any]) -> Iterator[Message]:
    for entry in history:
        if isinstance(entry, Mapping):
            yield _turn(entry)
        else:
            yield {"role": "user", "content": entry[0]}
            yield {"role": "assistant", "content": entry[1]}


# --- demonstrations -------------------------------------------------------------------------------------------------


def demonstration(row: Mapping[str, Any]) -> dict[str, Any]:
    """A demonstration without fault as two texts, `prompt` and `completion`, or else as `messages`, with its `tools`.

    Answers inside a `prompt` are not learnt (TRL's rule), those of a `history` are (LLaMA-Factory's).
    """
    tools, messages = parsed(row.get("tools")) or None, row.get("messages")
    if messages is None:
        prompt, completion = row["prompt"], row["completion"]
        if not isinstance(prompt, str):
            turns = as_messages(prompt)
            prompt = [{"weight": 0} | turn if turn["role"] == "assistant" else turn for turn in turns]
        ending = completion
        if isinstance(completion, str):
            ending = [{"role": "assistant", "content": completion}]
        row = with_opening({**row, "prompt": prompt})
        answer = answer_turns(ending, row["prompt"])
        if isinstance(row["prompt"], str) and not tools and [turn.keys() for turn in answer] == [{"role", "content"}]:
            return {"prompt": prompt, "completion": answer[0]["content"]}
        messages = [*as_messages(row["prompt"]), *answer]
    else:
        messages = as_messages(with_opening(row)["messages"])
    return {"messages": messages} | ({"tools": tools} if tools else {})


def as_dialogue(row: Mapping[str, Any]) -> dict[str, Any]:
    """A `demonstration` that is two texts as `messages`."""
    if "messages" in row:
        return dict(row)
    return {"messages": [*as_messages(row["prompt"]), {"role": "assistant", "content": row["completion"]}]}
