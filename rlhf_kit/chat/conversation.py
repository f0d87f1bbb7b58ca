"""A conversation with several models at once: the same questions, each with its own answers, and the file of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_kit.chat.speakers import Said, Settings, Speaker
from rlhf_kit.data.messages import Message
from rlhf_kit.errors import UserError
from rlhf_kit.storage import Folder, json_lines, keep_lines

STOPPED = "stopped"  # by who asked; the other ends of an answer are the engine's


@dataclass
class Answer:
    """`ids`: what it was drawn after, and its tokens but for an end token; `finish` is None while it is drawn."""

    settings: Settings
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: str | None = None

    def add(self, said: Said) -> None:
        self.text += said.text
        self.finish = said.finish
        if said.drawn.finish != "stop":
            self.ids.append(said.drawn.token)


@dataclass
class Turn:
    """A question, and answers by the name of the model. A model without an answer has not heard it."""

    question: str
    answers: dict[str, Answer] = field(default_factory=dict)


@dataclass
class Conversation:
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def messages(self, name: str, question: str | None = None) -> list[Message]:
        """What one model has heard and said, and then `question`."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            answer = turn.answers.get(name)
            if answer is not None and answer.text.strip():
                found.append({"role": "user", "content": turn.question})
                found.append({"role": "assistant", "content": answer.text})
        return found + ([{"role": "user", "content": question}] if question is not None else [])

    def undo(self) -> str | None:
        """Take the last question and its answers back; returns the question."""
        return self.turns.pop().question if self.turns else None

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """A demonstration of each model that has answered: `rlhf-kit sft` reads it."""
        dialogues = {name: self.messages(name) for name in names}
        return [
            {"messages": messages, "model": name}
            for name, messages in dialogues.items()
            if messages and messages[-1]["role"] == "assistant"
        ]


def answering(
    conversation: Conversation, question: str, speakers: Sequence[Speaker], settings: Settings, turn: Turn
) -> Iterator[str | tuple[str, UserError]]:
    """Ask all models at once. With each token its answer grows in `turn`, and the model's name is given; where one
    cannot be asked, its name with the reason.

    The models draw at the same time, each in its engine's thread; here a token of each is taken in turn. Closing the
    iterator ends all answers.
    """
    going: dict[str, Iterator[Said]] = {}
    try:
        for speaker in speakers:
            try:
                ids = speaker.encode(conversation.messages(speaker.name, question))
                fitted = speaker.fitted(settings, ids)
                speaker.engine.check(speaker.request(ids, fitted))
            except UserError as error:
                yield speaker.name, error
                continue
            turn.answers[speaker.name] = Answer(fitted, list(ids))
            going[speaker.name] = speaker.say(ids, fitted)
        while going:
            for name, says in list(going.items()):
                said = next(says)
                turn.answers[name].add(said)
                if said.finish is not None:
                    going.pop(name).close()
                yield name
    finally:
        for name, says in going.items():
            says.close()
            turn.answers[name].finish = STOPPED


# --- files ----------------------------------------------------------------------------------------------------------


def home_of(path: Path) -> Folder:
    return Folder(path.parent, "chat")


def check_file(path: Path, option: str) -> None:
    """Raises UserError where it cannot be written, or would replace what is not ours."""
    home_of(path).check_file(path.name, option, "", "")


def save(path: Path, conversation: Conversation, names: Sequence[str]) -> int:
    """Write the conversation of each model, a line each; returns how many. Raises UserError."""
    rows = conversation.rows(names)
    if not rows:
        raise UserError("Nothing was answered yet, so there is nothing to save. 還沒有回答可以存。")
    check_file(path, "/save")
    home_of(path).write(path.name, json_lines(rows))
    return len(rows)


def lines_of(conversation: Conversation, speakers: Sequence[Speaker], places: dict[str, str]) -> list[dict[str, Any]]:
    """The last turn as the history has it: what each model was asked, what it said, and how that was drawn."""
    turn, before = conversation.turns[-1], Conversation(conversation.system, conversation.turns[:-1])
    lines = []
    for speaker in speakers:
        answer = turn.answers.get(speaker.name)
        if answer is not None:
            settings = answer.settings
            lines.append(
                {
                    "prompt": before.messages(speaker.name, turn.question),
                    "completion": answer.text,
                    "finish_reason": answer.finish,
                    "model": speaker.name,
                    "model_name_or_path": places[speaker.name],
                    "max_completion_length": settings.max_tokens,
                    "temperature": settings.temperature,
                    "top_k": settings.top_k or None,
                    "top_p": None if settings.top_p == 1 else settings.top_p,
                    "seed": settings.seed,
                    "turn": len(conversation.turns),
                }
            )
    return lines


class History:
    """`path`, to which lines are added behind those of earlier conversations; None: nothing is kept."""

    def __init__(self, path: Path | None):
        self.path = path

    @contextmanager
    def kept(self) -> Iterator[None]:
        """While lines are added. Raises UserError for a file that is not ours."""
        with nullcontext() if self.path is None else self._claimed(self.path):
            yield

    @contextmanager
    def _claimed(self, path: Path) -> Iterator[None]:
        home_of(path).claim(path.name)
        keep_lines(path)  # a kill may have cut the last off
        try:
            yield
        finally:
            home_of(path).settle(path.name)

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        if self.path is not None and lines:
            with self.path.open("ab") as file:
                file.write(json_lines(lines).encode())
