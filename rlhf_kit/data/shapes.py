"""Rows in other projects' formats, read as ours: Alpaca, ShareGPT, HH transcripts, Nectar, arena battles.

A reader takes a row's columns and gives ours; all others stay as they are, and what is wrong in either is for the
checks to tell. Which rows were read so is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_kit.data.faults import is_list
from rlhf_kit.data.formats import KINDS
from rlhf_kit.data.prompts import prompt_of
from rlhf_kit.data.rows import Filed, holder
from rlhf_kit.inputs import parse_json

Row = dict[str, Any]
Reader = Callable[[Mapping[str, Any]], tuple[Row, Sequence[str]] | None]

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES = {"human": "user", "prompter": "user", "function": "tool", "function_response": "tool", "observation": "tool"}
_ROLES |= dict.fromkeys(("gpt", "chatgpt", "bot", "model", "bard", "bing", "function_call"), "assistant")
_RANKS = {"model_a": [1, 2], "a": [1, 2], "model_b": [2, 1], "b": [2, 1]}
_RANKS |= dict.fromkeys(("tie", "tie (bothbad)", "both_bad", "bothbad"), [1, 1])


def read(rows: Sequence[Any], kinds: Sequence[str]) -> tuple[Sequence[Any], list[str]]:
    """(rows in our columns, what is to be said of those that were read so), for a stage that takes `kinds`.

    Where that stage takes prompts, whose further columns are handed on, the columns read stay there too.
    """
    if set(kinds) == {"text"}:
        return rows, []
    counts = dict.fromkeys(READERS, 0)

    def ours() -> Iterator[Any]:
        for row in rows:
            for name, reader in READERS.items() if isinstance(row, Mapping) else ():
                if (fields := reader(row)) and (made := _made(row, *fields, kinds)):
                    row = made
                    counts[name] += 1
                    break
            yield row

    if isinstance(rows, Filed) and not any(sum(counts.values()) for _ in ours()):
        return rows, []
    counts = dict.fromkeys(READERS, 0)
    rows = holder(isinstance(rows, Filed))(ours())
    return rows, [f"{count} of {len(rows)} rows read as {name}" for name, count in counts.items() if count]


def _made(row: Mapping[str, Any], made: Row, taken: Sequence[str], kinds: Sequence[str]) -> Row | None:
    """`row` with `made` of its columns `taken`; None where that is of none of `kinds`."""
    present = [name for name, value in made.items() if value is not None]
    if "prompts" not in kinds:
        row = {name: value for name, value in row.items() if name not in taken} | made
    elif KINDS["prompts"].form(present):
        row = {**row, "prompt": prompt_of(made)}
    present = [name for name, value in row.items() if value is not None]
    return row if any(KINDS[kind].form(present) for kind in kinds) else None


# --- one reader a shape: (our columns, the columns they were made of), or None for a row of another shape -----------


def _alpaca(row: Mapping[str, Any]) -> tuple[Row, Sequence[str]] | None:
    """Also Dolly's `context` and `response`, and the older preferences whose `output` is [better, worse]."""
    instruction, output = row.get("instruction"), _first(row, "output", "response")
    if not isinstance(instruction, str) or row.get("prompt") is not None or row.get("messages") is not None:
        return None
    context = _first(row, "input", "context")
    parts = [text for text in (instruction, row.get(context)) if isinstance(text, str) and text.strip()]
    made: Row = {"prompt": "\n\n".join(parts) or instruction}
    taken = ["instruction", *([context] if isinstance(row.get(context), str) else [])]
    answer = row.get(output)
    if is_list(answer) and len(answer) == 2 and row.get("chosen") is None:
        made |= {"chosen": answer[0], "rejected": answer[1]}
    elif answer is not None and row.get("completion") is None:
        made["completion"] = answer
    else:
        output = "instruction"
    return _judged(row, made), [*taken, output, "kto_tag"]


def _first(row: Mapping[str, Any], *names: str) -> str:
    """The first of `names` under which a row has something."""
    return next((name for name in names if row.get(name) not in (None, "")), names[0])


def _judged(row: Mapping[str, Any], made: Row) -> Row:
    """`made` with `kto_tag`, the name that files of Alpaca's and ShareGPT's columns have for `label`."""
    return made | ({"label": row["kto_tag"]} if isinstance(row.get("kto_tag"), bool) else {})


def _sharegpt(row: Mapping[str, Any]) -> tuple[Row, Sequence[str]] | None:
    """`conversations` of `from` and `value`, or of `role` and `content`; beside `chosen` and `rejected` the prompt."""
    column = _first(row, "conversations", "conversation")
    turns = row.get(column)
    if not is_list(turns) or row.get("messages") is not None or row.get("prompt") is not None:
        return None
    turns, judged = [_turn(turn) for turn in turns], _judged(row, {})
    if row.get("chosen") is not None and row.get("rejected") is not None:
        answers = {name: _answer(row[name]) for name in ("chosen", "rejected")}
        return {"prompt": turns, **answers}, (column, *answers)
    if judged or row.get("label") is not None:
        return {"prompt": turns[:-1], "completion": turns[-1:], **judged}, (column, "kto_tag")
    return {"messages": turns}, (column,)


def _turn(turn: Any) -> Any:
    """A turn of `from` and `value` as `role` and `content`; a call written as JSON text as a call."""
    if not isinstance(turn, Mapping) or "from" not in turn or "role" in turn:
        return turn
    speaker, text = turn["from"], turn.get("value")
    further = {name: value for name, value in turn.items() if name not in ("from", "value")}
    role = _ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
    if speaker == "function_call" and (call := _call(text)):
        return {"role": role, "tool_calls": call, **further}
    return {"role": role, "content": text, **further}


def _call(text: Any) -> list[Row]:
    try:
        calls = parse_json(text)
    except (TypeError, ValueError):
        return []
    calls = calls if isinstance(calls, list) else [calls]
    named = all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls)
    return [{"type": "function", "function": dict(call)} for call in calls] if named else []


def _answer(value: Any) -> Any:
    """An answer of `chosen` or `rejected`: one turn, a list of turns or text."""
    if isinstance(value, Mapping):
        return [_turn(value)]
    return [_turn(turn) for turn in value] if is_list(value) else value


def _nectar(row: Mapping[str, Any]) -> tuple[Row, Sequence[str]] | None:
    """`answers` of `answer` and `rank` (1 = best), behind a transcript."""
    answers = row.get("answers")
    if not is_list(answers) or not answers or not all(isinstance(a, Mapping) and "answer" in a for a in answers):
        return None
    ranks = [answer.get("rank") for answer in answers]
    whole = [int(rank) if isinstance(rank, float) and rank.is_integer() else rank for rank in ranks]
    made = {"completions": [answer["answer"] for answer in answers], "ranks": whole}
    return made | {"prompt": _asked(row.get("prompt"))}, ("answers", "prompt")


def _arena(row: Mapping[str, Any]) -> tuple[Row, Sequence[str]] | None:
    """`conversation_a` and `conversation_b`, or `response_a` and `response_b`, and which of them won."""
    won, verdict = _verdict(row)
    if not verdict:
        return None
    if row.get("conversation_a") is not None:
        dialogues, taken = [row["conversation_a"], row.get("conversation_b")], ["conversation_a", "conversation_b"]
    elif row.get("response_a") is not None and row.get("prompt") is not None:
        prompts, taken = _texts(row["prompt"]), ["prompt", "response_a", "response_b"]
        dialogues = [_talk(prompts, _texts(row.get(name))) for name in taken[1:]]
    else:
        return None
    # Where the dialogues differ before, the second does not begin with the prompt, which is reported.
    prompt = dialogues[0][:-1] if is_list(dialogues[0]) else None
    return {"prompt": prompt, "completions": dialogues, "ranks": won}, [*taken, *verdict]


def _verdict(row: Mapping[str, Any]) -> tuple[list[int], list[str]]:
    """(ranks, the columns that say so) of a battle; ([], []) where no column does."""
    winner = row.get("winner")
    if isinstance(winner, str) and winner.strip().lower() in _RANKS:
        return _RANKS[winner.strip().lower()], ["winner"]
    names = ["winner_model_a", "winner_model_b", "winner_tie"]
    marks = [int(row[name]) if row.get(name) in (0, 1, "0", "1", True, False) else None for name in names]
    return ([[1, 2], [2, 1], [1, 1]][marks.index(1)], names) if sum(mark or 0 for mark in marks) == 1 else ([], [])


def _texts(value: Any) -> list[Any]:
    """Texts of turns: a list, its JSON text, or one text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError:
            return [value]
    return list(value) if is_list(value) else [value]


def _talk(asked: Sequence[Any], said: Sequence[Any]) -> list[Row]:
    turns = zip(asked, [*said, *[None] * (len(asked) - len(said))], strict=False)
    return [turn for question, answer in turns for turn in (_says("user", question), _says("assistant", answer))]


def _says(role: str, text: Any) -> Row:
    return {"role": role, "content": text}


def _hh(row: Mapping[str, Any]) -> tuple[Row, Sequence[str]] | None:
    """Transcripts: whole dialogues as `chosen` and `rejected` (arXiv:2204.05862) or `text`, or as the `prompt`."""
    sides = {name: transcript(row.get(name)) for name in ("chosen", "rejected")}
    if row.get("prompt") is None and all(sides.values()):
        return sides, tuple(sides)
    if (prompt := _asked(row.get("prompt"))) is not row.get("prompt"):
        return {"prompt": prompt}, ("prompt",)
    if (talk := transcript(row.get("text"))) and row.get("messages") is None and row.get("prompt") is None:
        return {"messages": talk}, ("text",)
    return None


def transcript(text: Any) -> list[Row] | None:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."; None for what is none."""
    if not isinstance(text, str) or not TURN.match(text):
        return None
    _, *rest = TURN.split(text)
    return [
        {"role": SPEAKERS[speaker], "content": speech.strip()}
        for speaker, speech in zip(rest[::2], rest[1::2], strict=True)
    ]


def _asked(prompt: Any) -> Any:
    """The turns of a transcript that ends where the assistant is to speak; any other prompt as it is."""
    turns = transcript(prompt) if isinstance(prompt, str) and prompt.startswith("\n\n") else None
    return turns[:-1] if turns and turns[-1] == {"role": "assistant", "content": ""} else prompt


READERS: dict[str, Reader] = {
    "ShareGPT: `conversations` are `messages`": _sharegpt,
    "Alpaca: `instruction`, with `input` below it, is the prompt, `output` the answer": _alpaca,
    "Nectar: `answers` with `rank` are ranked `completions`": _nectar,
    "arena battles: the last answers are `completions`, ranked by the winner": _arena,
    "transcripts: `Human:` is the user, `Assistant:` the assistant": _hh,
}
