"""`rlhf-kit chat`: a conversation in the terminal with one model, or with several side by side."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from rlhf_kit.chat.conversation import Conversation, History, Turn, answering, check_file, lines_of, save
from rlhf_kit.chat.showing import ENDS, Alone, Beside, show_next
from rlhf_kit.chat.speakers import Settings, Speaker, Speakers
from rlhf_kit.errors import UserError, did_you_mean, each
from rlhf_kit.generation.generators import check_generators
from rlhf_kit.generation.next_token import next_token
from rlhf_kit.models.revisions import named_models
from rlhf_kit.options import option
from rlhf_kit.options.bounds import range_faults
from rlhf_kit.options.coercion import coerce
from rlhf_kit.processes import processes, quiet
from rlhf_kit.terminal.console import Console
from rlhf_kit.terminal.interrupts import Stop, Terminated, heard, stoppable

MOST_MODELS = 4
SEEDS = 2**32
HELP = """\
/undo                 take the last question and its answers back      收回上一個問題
/retry                answer it again, by the next seed                換個亂數種子再答一次
/next [TEXT]          what each may say next; behind TEXT: to it       接下來可能說什麼
/save FILE            the conversation as JSONL, for rlhf-kit sft      把對話存成 JSONL
/clear                begin anew                                       重新開始
/temperature 0.7      so too /top_k /top_p /max_completion_length      調整取樣
                      /seed /system_prompt; none takes one off         none 表示取消
/help /quit           Ctrl-C stops an answer, Ctrl-D ends              說明、離開
//TEXT                a text that begins with /                        以 / 開頭的文字"""
OTHER_NAMES = {"exit": "quit", "?": "help", "status": "help"}  # as other chats call them


@dataclass
class ChatOptions:
    models: list[str] = option(
        [], "One to four: folders or hub ids, or NAME=M. 模型", positional="MODEL...", required=True, whole=True
    )
    system_prompt: str | None = option(None, "A system turn before the conversation. 系統提示")
    max_completion_length: int = option(128, "Tokens of an answer. 回答的長度上限")
    temperature: float = option(1.0, "Of sampling; 0 takes the likeliest token each time. 取樣溫度")
    top_k: int | None = option(None, "Sample from the K likeliest tokens. 只從最可能的 K 個字取樣")
    top_p: float | None = option(
        None, "Sample from the likeliest tokens that together reach this probability. 只從累積機率達 P 的字取樣"
    )
    seed: int = option(0, "Of the answers. 亂數種子")
    output_file: Path | None = option(None, "JSONL: every turn is added as it ends. 對話紀錄")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "Type of the weights. 數值精度")
    trust_remote_code: bool = option(False, "Run code that comes with a hub model. 執行模型自帶的程式碼")

    @property
    def settings(self) -> Settings:
        return Settings(
            self.max_completion_length, self.temperature, self.top_k or 0, 1.0 if self.top_p is None else self.top_p,
            self.seed,
        )  # fmt: skip


SETTINGS = ("temperature", "top_k", "top_p", "max_completion_length", "seed", "system_prompt")


def run(options: ChatOptions) -> None:
    """`rlhf-kit chat`. Raises UserError before a weight is loaded where that can be known."""
    quiet()
    places, _ = each(lambda part: part(options), (places_of, check_output))
    check_generators(places.values())
    console = Console()
    read = line_reader(console)
    with Speakers(places, options.dtype, processes().device, most=MOST_MODELS) as speakers:
        session = Session([speakers[name] for name in places], places, options, console)
        with session.history.kept():
            session.talk(read)


def places_of(options: ChatOptions) -> dict[str, str]:
    """Folder or hub id by name, those of the hub by commit. Raises UserError."""
    if len(options.models) > MOST_MODELS:
        raise UserError(
            f"chat: {len(options.models)} models were given; side by side there is room for {MOST_MODELS}. "
            f"最多同時 {MOST_MODELS} 個模型。"
        )
    if processes().num_processes > 1:
        raise UserError("chat: start it as one process: two would read the same keyboard.")
    return named_models(options)


def check_output(options: ChatOptions) -> None:
    if options.output_file is not None:
        check_file(options.output_file, "--output_file")


def line_reader(console: Console) -> Callable[[], str]:
    """What reads a line: asks for it where a person is there, with the keys and the history of readline."""
    if not sys.stdin.isatty():
        with suppress(AttributeError):  # a stream of a program's own
            sys.stdin.reconfigure(errors="replace")
        return input
    if console.is_terminal:
        with suppress(ImportError):  # Windows
            importlib.import_module("readline")
    return _line_of_keys


def _line_of_keys() -> str:
    with heard():
        return input("> ")


class Session:
    """A conversation as it goes on, and the commands that a line may be."""

    def __init__(self, speakers: list[Speaker], places: dict[str, str], options: ChatOptions, console: Console):
        self.speakers, self.places, self.options, self.console = speakers, places, replace(options), console
        self.conversation = Conversation(options.system_prompt)
        self.history = History(options.output_file)

    def talk(self, read: Callable[[], str]) -> None:
        """Until the input ends, or /quit."""
        is_asked = self.console.is_terminal and sys.stdin.isatty()
        if is_asked:
            self._greet()
        while True:
            if is_asked:
                self._show_settings()
            try:
                line = read()
            except EOFError:
                if is_asked:
                    self.console.print()
                return
            try:
                if self.obey(line) == "quit":
                    return
            except UserError as error:
                self.console.tell(str(error))

    def obey(self, line: str) -> str | None:
        """Do what a line says; returns "quit" where that is it. Raises UserError, and nothing is changed."""
        if not line.strip():
            return None
        if not line.startswith("/") or line.startswith("//"):
            self.ask(line.removeprefix("/") if line.startswith("//") else line)
            return None
        word, _, rest = line[1:].partition(" ")
        word = OTHER_NAMES.get(word, word)
        if word == "quit":
            return word
        if word in SETTINGS:
            self.set(word, rest.strip())
        elif word in COMMANDS:
            COMMANDS[word](self, rest.strip())
        else:
            near = did_you_mean(word, [*COMMANDS, *SETTINGS, "quit"]).replace("'", "'/", 1)
            raise UserError(
                f"There is no command '/{word}'.{near} /help shows all; //TEXT says a text. 沒有這個指令。"
            )
        return None

    # -- commands ----------------------------------------------------------------------------------------------------

    def ask(self, question: str) -> None:
        """All models answer; what they say is kept, also where Ctrl-C stops them."""
        turn, settings = Turn(question), self.options.settings
        with stoppable() as stop:
            with closing(answering(self.conversation, question, self.speakers, settings, turn)) as going:
                try:
                    self._show(turn, going, stop)
                except KeyboardInterrupt as interrupt:
                    if isinstance(interrupt, Terminated):
                        raise
            if any(answer.text.strip() for answer in turn.answers.values()):
                self.conversation.turns.append(turn)
                self.history.add(lines_of(self.conversation, self.speakers, self.places))
            elif turn.answers or stop.is_asked:
                self.console.print("No model said anything; the question is taken back. 沒有回答，問題已收回。")

    def undo(self, rest: str = "") -> None:
        question = self.conversation.undo()
        if question is None:
            raise UserError("There is no question to take back. 沒有可以收回的問題。")
        self.console.tell(f"Taken back 已收回: {question}")

    def retry(self, rest: str = "") -> None:
        question = self.conversation.undo()
        if question is None:
            raise UserError("There is no question to answer again. 還沒有問題可以重答。")
        self.options.seed = (self.options.seed + 1) % SEEDS
        self.ask(question)

    def save(self, rest: str) -> None:
        if not rest:
            raise UserError("/save needs the name of a file, as in /save talk.jsonl. 請給檔名。")
        path = Path(rest).expanduser()
        try:
            count = save(path, self.conversation, [speaker.name for speaker in self.speakers])
        except OSError as error:
            raise UserError(f"/save: {str(path)!r} cannot be written ({error.strerror}).") from error
        self.console.tell(f"{path}: {count} conversations, for `rlhf-kit sft --dataset_name {path}`. 已存檔。")

    def clear(self, rest: str = "") -> None:
        self.conversation.turns.clear()
        self.console.print("A new conversation. 重新開始。")

    def help(self, rest: str = "") -> None:
        self.console.print(HELP, soft_wrap=True)
        self._show_settings()

    def next(self, text: str) -> None:
        """What each model may say next: behind its last answer, or as an answer to `text`."""
        settings = self.options.settings
        temperature = settings.temperature or 1.0  # at 0 there is nothing to see but the first
        for speaker in self.speakers:
            try:
                view = speaker.engine.call(
                    next_token, speaker.tokenizer, self._place(speaker, text), temperature=temperature,
                    top_k=settings.top_k, top_p=settings.top_p, end_ids=speaker.ends,
                ).result()  # fmt: skip
            except UserError as error:
                self.console.tell(f"{speaker.name}: {error}")
            else:
                show_next(self.console, speaker.name, view, temperature)

    def _place(self, speaker: Speaker, text: str) -> list[int]:
        answer = self.conversation.turns[-1].answers.get(speaker.name) if self.conversation.turns else None
        if text:
            return speaker.encode(self.conversation.messages(speaker.name, text))
        if answer is None:
            raise UserError("nothing was said yet; /next TEXT shows what it may answer to TEXT. 還沒有對話。")
        return answer.ids

    def set(self, name: str, text: str) -> None:
        """A setting of the session. Raises UserError."""
        if not text:
            raise UserError(f"{name} is {_shown(getattr(self.options, name))}; /{name} VALUE changes it.")
        try:
            changed = replace(self.options, **{name: coerce(text, get_type_hints(ChatOptions)[name])})
        except ValueError as error:
            raise UserError(f"/{name}: {error}") from error
        faults = range_faults(changed)
        if faults:
            raise UserError(f"/{name}: {'; '.join(faults)}.")
        self.options = changed
        self.conversation.system = changed.system_prompt

    # -- what is shown -----------------------------------------------------------------------------------------------

    def _greet(self) -> None:
        for speaker in self.speakers:
            does = (
                "answers 會回答" if speaker.chats else "has no chat template: it continues text 沒有對話樣板，只接龍"
            )
            self.console.print(f"{speaker.name} ({self.places[speaker.name]}) {does}")
        self.console.print("/help: commands 指令")

    def _show_settings(self) -> None:
        told = "  ".join(f"{name} {_shown(getattr(self.options, name))}" for name in SETTINGS[:-1])
        self.console.print(f"[{told}]", style="dim", soft_wrap=True)

    def _show(self, turn: Turn, going: Iterator[str | tuple[str, UserError]], stop: Stop) -> None:
        names = [speaker.name for speaker in self.speakers]
        refused: dict[str, str] = {}

        def texts() -> dict[str, str]:
            return {name: answer.text for name, answer in turn.answers.items()} | refused

        with (Alone if len(names) == 1 else Beside)(self.console, names) as display:
            try:
                for given in stop.each(going):
                    if isinstance(given, tuple):
                        refused[given[0]] = str(given[1])
                    display.show(texts())
            finally:
                going.close()
                if self.console.is_terminal:
                    ends = {name: ENDS.get(answer.finish, "") for name, answer in turn.answers.items()}
                    display.show({name: text + ends.get(name, "") for name, text in texts().items()})


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


COMMANDS = {
    "undo": Session.undo, "retry": Session.retry, "next": Session.next, "save": Session.save, "clear": Session.clear,
    "help": Session.help,
}  # fmt: skip
