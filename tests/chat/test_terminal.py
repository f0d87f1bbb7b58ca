"""`rlhf-kit chat`: what is said equals what `sample` draws, what the commands do, what a terminal is told."""

import inspect
import io
import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from rich.cells import cell_len
from transformers import GPT2LMHeadModel

from rlhf_kit.chat import terminal
from rlhf_kit.chat.showing import show_next
from rlhf_kit.chat.speakers import Speaker, Speakers
from rlhf_kit.chat.terminal import ChatOptions, Session, places_of
from rlhf_kit.cli import main
from rlhf_kit.data.loading import load
from rlhf_kit.generation.next_token import Candidate, NextToken
from rlhf_kit.generation.sampling import sample
from rlhf_kit.generation.text import text_of
from rlhf_kit.models.checkpoints import load_policy, load_tokenizer
from rlhf_kit.terminal.console import Console
from rlhf_kit.terminal.interrupts import WAKING

PATIENCE = 120


@pytest.fixture
def places(policy, tokenizer, tokenizer_folder, tmp_path):
    """A model with a chat template, and one without."""
    for name, own in (("base", load_tokenizer(tokenizer_folder)), ("sft", tokenizer)):
        policy.save_pretrained(tmp_path / name)
        own.save_pretrained(tmp_path / name)
    return [str(tmp_path / "base"), str(tmp_path / "sft")]


@contextmanager
def session_of(places, console=None, **options):
    given = ChatOptions(models=places, **{"max_completion_length": 12, **options})
    named = places_of(given)
    with Speakers(named) as speakers:
        session = Session([speakers[name] for name in named], named, given, console or to_text())
        with session.history.kept():
            yield session


def to_text(width=100, **options) -> Console:
    return Console(file=io.StringIO(), width=width, **options)


def said(session) -> str:
    text = session.console.file.getvalue()
    session.console.file.seek(0)
    session.console.file.truncate()
    return text


def answers(session) -> dict[str, str]:
    return {name: answer.text for name, answer in session.conversation.turns[-1].answers.items()}


def drawn(session, ids, speaker, seed, length=12) -> str:
    """By `sample`, as text."""
    place = session.places[speaker.name]
    rollout = sample(
        load_policy(place).eval(), [ids], eos_ids=speaker.ends, pad_id=0, max_completion_length=length, seeds=[seed]
    )
    text = text_of(speaker.tokenizer, rollout.completions()[0])
    return text.lstrip() if speaker.chats else text


# --- what is said ---------------------------------------------------------------------------------------------------


def test_answers_are_those_of_sample_and_each_model_keeps_its_own(places):
    with session_of(places, seed=3) as session:
        base, sft = session.speakers
        session.obey("the cat")
        first = answers(session)
        assert first == {
            "base": drawn(session, base.tokenizer("the cat").input_ids, base, 3),
            "sft": drawn(session, sft.encode([{"role": "user", "content": "the cat"}]), sft, 3),
        }
        session.obey("on the mat")
        turns = [
            {"role": "user", "content": "the cat"},
            {"role": "assistant", "content": first["sft"]},
            {"role": "user", "content": "on the mat"},
        ]
        second = answers(session)
        assert second["sft"] == drawn(session, sft.encode(turns), sft, 3)
        text = f"the cat{first['base']}\non the mat"
        assert second["base"] == drawn(session, base.tokenizer(text).input_ids, base, 3)


def test_a_system_prompt_stands_before_the_conversation_and_is_changed_in_it(places):
    with session_of(places[1:], system_prompt="be good") as session:
        (sft,) = session.speakers
        session.obey("hello")
        turns = [{"role": "system", "content": "be good"}, {"role": "user", "content": "hello"}]
        assert answers(session)["sft"] == drawn(session, sft.encode(turns), sft, 0)
        session.obey("/system_prompt none")
        assert session.conversation.messages("sft")[0]["role"] == "user"


def test_undo_retry_and_clear(places):
    with session_of(places) as session:
        session.obey("hello")
        first = answers(session)
        session.obey("the cat")
        session.obey("/undo")
        assert answers(session) == first
        session.obey("/retry")
        again = answers(session)
        assert again != first and session.options.seed == 1 and len(session.conversation.turns) == 1
        sft = session.speakers[1]
        assert again["sft"] == drawn(session, sft.encode([{"role": "user", "content": "hello"}]), sft, 1)
        session.obey("/clear")
        assert not session.conversation.turns
        for line in ("/undo", "/retry", "/save x.jsonl"):
            with pytest.raises(ValueError, match="no question|[Nn]othing"):
                session.obey(line)
        session.obey("/next")
        assert said(session).count("nothing was said yet") == 2


def test_a_saved_conversation_is_what_sft_reads(places, tmp_path):
    with session_of(places, system_prompt="be good") as session:
        session.obey("hello")
        session.obey("the cat")
        session.obey(f"/save {tmp_path}/talk.jsonl")
        rows, _ = load(str(tmp_path / "talk.jsonl"), ("demonstrations",), "train")
        assert rows["messages"] == [session.conversation.messages(name) for name in ("base", "sft")]
        assert [turn["role"] for turn in rows["messages"][1]] == ["system", *["user", "assistant"] * 2]
        session.obey("/undo")
        session.obey(f"/save {tmp_path}/talk.jsonl")  # ours, as we left it
        (tmp_path / "own.jsonl").write_text("mine\n")
        with pytest.raises(ValueError, match="would be overwritten"):
            session.obey(f"/save {tmp_path}/own.jsonl")
        assert (tmp_path / "own.jsonl").read_text() == "mine\n"


def test_every_turn_is_in_the_history_as_it_ends(places, tmp_path):
    path = tmp_path / "log" / "history.jsonl"
    with session_of(places, output_file=path, top_k=5, seed=7) as session:
        session.obey("hello")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(line["model"], line["seed"], line["top_k"], line["turn"]) for line in lines] == [
            ("base", 7, 5, 1), ("sft", 7, 5, 1)
        ]  # fmt: skip
        assert {line["model"]: line["completion"] for line in lines} == answers(session)
        session.obey("/retry")
        assert len(path.read_text().splitlines()) == 4  # what was taken back was said
    with path.open("a") as file:
        file.write('{"prompt": "cut o')  # by another than us
    with pytest.raises(ValueError, match="would be overwritten"), session_of(places, output_file=path):
        pass


def test_the_history_goes_on_in_the_file_of_another_conversation(places, tmp_path):
    path = tmp_path / "history.jsonl"
    for count in (1, 2):
        with session_of(places[1:], output_file=path) as session:
            session.obey("hello")
        assert len(path.read_text().splitlines()) == count
    rows, _ = load(str(path), ("demonstrations",), "train")
    assert len(rows) == 2


def test_settings_are_changed_in_the_session_or_refused(places):
    with session_of(places[1:]) as session:
        for line in ("/temperature 0.5", "/top_k 3", "/seed 9", "/max_completion_length 4", "/top_p 0.9"):
            session.obey(line)
        settings = session.options.settings
        assert (settings.temperature, settings.top_k, settings.seed, settings.max_tokens, settings.top_p) == (
            0.5, 3, 9, 4, 0.9
        )  # fmt: skip
        session.obey("/top_k none")
        assert session.options.settings.top_k == 0
        for line, message in {
            "/temperature hot": "needs a number",
            "/temperature -1": "must not be negative",
            "/top_p 2": "at most 1",
            "/seed": "seed is 9",
            "/tempratur 1": "Did you mean '/temperature'",
            "/save": "needs the name of a file",
        }.items():
            with pytest.raises(ValueError, match=re.escape(message)):
                session.obey(line)
        assert session.options.temperature == 0.5


# --- the next token -------------------------------------------------------------------------------------------------


def table_of(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"  ([01]\.\d{7})", text)]


def test_next_shows_what_may_come_behind_the_last_answer_and_sums_to_1(places):
    with session_of(places) as session:
        session.obey("hello")
        said(session)
        session.obey("/next")
        text = said(session)
        for name, part in zip(("base", "sft"), text.split("sft  entropy"), strict=True):
            numbers = table_of(part)
            assert len(numbers) == 11 and abs(math.fsum(numbers) - 1) < 1e-5, name
        answer = session.conversation.turns[-1].answers["base"]
        assert len(answer.ids) == len(session.speakers[0].encode("hello")) + 12


def test_next_of_a_text_answers_nothing(places):
    with session_of(places[1:], temperature=0.0) as session:
        session.obey("/next the cat")
        (sft,) = session.speakers
        assert not session.conversation.turns
        numbers = table_of(said(session))
        ids = sft.encode([{"role": "user", "content": "the cat"}])
        best = sft.engine.call(terminal.next_token, sft.tokenizer, ids, end_ids=sft.ends).result().candidates[0]
        assert numbers[0] == pytest.approx(best.probability, abs=1e-6)


def test_a_table_is_in_columns_whatever_width_its_letters_have():
    console = to_text()
    candidates = [Candidate([1], "你好", 0.5), Candidate([2], " a\n", 0.25), Candidate([0], "<end>", 0.125, True)]
    show_next(console, "m", NextToken(candidates, 0.125, 1.0), 1.0)
    lines = console.file.getvalue().splitlines()[1:]
    assert lines[0].startswith("  '你好' ") and "█" * 24 in lines[0] and "█" * 12 in lines[1] and "(end" in lines[2]
    assert len({cell_len(re.split(r"\d\.\d", line)[0]) for line in lines}) == 1 and r"' a\n'" in lines[1]


# --- the terminal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, is_wide", [(100, True), (50, False)])
def test_models_stand_beside_each_other_where_there_is_room(places, width, is_wide):
    with session_of(places, to_text(width, force_terminal=True)) as session:
        session.obey("hello")
        text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said(session))
        assert bool(re.search(r"^base +sft", text, re.MULTILINE)) == is_wide


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("width", [20, 100])
def test_what_a_model_writes_is_no_escape_sequence(count, width, places, monkeypatch):
    monkeypatch.setattr("rlhf_kit.generation.text.decoded", lambda tokenizer, ids: "\x1b[2J[bold]\u202e" * len(ids))
    with session_of(places[2 - count :], to_text(width, force_terminal=True)) as session:
        session.obey("hello")
        text = said(session)
        assert "\x1b[2J" not in text and "\u202e" not in text
        assert "\\u001b[2J[bold]\\u202e" in text or width == 20


class Interrupting(io.StringIO):
    """Ctrl-C comes while an answer is being shown, or before its first token."""

    def __init__(self, writes):
        super().__init__()
        self.left = writes

    def write(self, text):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_stops_an_answer_and_leaves_no_work(count, places, monkeypatch):
    say, saying = Speaker.say, []  # held here, so that none is closed for want of a reader
    monkeypatch.setattr(Speaker, "say", lambda *arguments: saying.append(say(*arguments)) or saying[-1])
    console = Console(file=Interrupting(12), width=100, force_terminal=True)
    with session_of(places[2 - count :], console, max_completion_length=100, temperature=0.0) as session:
        session.obey("hello")
        assert [inspect.getgeneratorstate(one) for one in saying] == [inspect.GEN_CLOSED] * count
        until = time.monotonic() + PATIENCE
        while any(speaker.engine.is_busy for speaker in session.speakers) and time.monotonic() < until:
            time.sleep(0.01)
        assert [speaker.engine.going for speaker in session.speakers] == [0] * count
        kept = session.conversation.turns[-1].answers.values()
        assert {answer.finish for answer in kept} == {"stopped"}
        whole = Session(session.speakers, session.places, session.options, to_text())
        whole.obey("hello")
        for name, text in answers(session).items():
            assert answers(whole)[name].startswith(text) and answers(whole)[name] != text


def test_ctrl_c_before_the_first_token_takes_the_question_back(places):
    with session_of(places[1:], Console(file=Interrupting(1), width=100, force_terminal=True)) as session:
        session.obey("hello")
        assert not session.conversation.turns and "taken back" in said(session)
        session.obey("hello")
        assert len(session.conversation.turns) == 1


def test_keys_are_heard(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: f"{prompt}{signal.getitimer(signal.ITIMER_REAL)[1]:g}")
    assert terminal._line_of_keys() == f"> {WAKING:g}"


def test_ctrl_c_as_an_answer_ends_does_not_end_the_session(places, tmp_path):
    with session_of(places[1:], output_file=tmp_path / "talk.jsonl") as session:
        add = session.history.add
        session.history.add = lambda lines: (signal.raise_signal(signal.SIGINT), add(lines))
        session.obey("hello")
        assert len(session.conversation.turns) == len((tmp_path / "talk.jsonl").read_text().splitlines()) == 1


def test_a_question_that_is_too_long_is_told_and_the_session_goes_on(places):
    with session_of(places) as session:
        session.obey("x" * 500)
        text = " ".join(said(session).split())
        assert text.count("the context of 128 less 1 for max_tokens leaves 127") == 2
        assert not session.conversation.turns
        session.obey("hello")
        assert len(session.conversation.turns) == 1


def test_lines_of_a_pipe_are_answered_plainly(places):
    command = [sys.executable, "-m", "rlhf_kit", "chat", places[1], "--max_completion_length", "12"]
    lines = "hello\n/nxt\n/quit\nnever\n"
    done = subprocess.run(command, input=lines.encode() + b"\xff", capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    with session_of(places[1:]) as session:
        session.obey("hello")
        assert text.startswith(said(session)) and "Did you mean '/next'" in text and "\x1b" not in text


@contextmanager
def at_a_terminal(*argv):
    """(what waits for a pattern in the output, what types): `rlhf-kit chat` at a terminal of its own."""
    process, master = pty.fork()
    if not process:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background of a shell
        os.environ.update(TERM="xterm", COLUMNS="100", LINES="30", OMP_NUM_THREADS="1")
        os.execv(sys.executable, [sys.executable, "-m", "rlhf_kit", "chat", *argv])
    seen = ""

    def wait(pattern: str) -> None:
        nonlocal seen
        until = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, seen)):
            assert time.monotonic() < until, seen
            if select.select([master], [], [], 1)[0]:
                seen += os.read(master, 65536).decode(errors="replace")
        seen = seen[found.end() :]

    try:
        yield wait, lambda text: os.write(master, text.encode()), process
    finally:
        os.close(master)
        with_status(process)


def with_status(process) -> int | None:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    except ChildProcessError:
        return None


@pytest.fixture
def endless(tiny_config, tokenizer, tmp_path):
    """A model that takes minutes to end an answer."""
    tiny_config.n_positions, tiny_config.eos_token_id = 60_000, None
    model = GPT2LMHeadModel(tiny_config)
    model.lm_head.weight.data[tokenizer.eos_token_id] = 0
    model.save_pretrained(tmp_path / "endless")
    tokenizer.save_pretrained(tmp_path / "endless")
    return str(tmp_path / "endless")


def test_at_a_terminal_one_ctrl_c_stops_the_answer_and_another_ends_the_session(endless):
    with at_a_terminal(endless, "--temperature", "0", "--max_completion_length", "50000") as (wait, type_in, process):
        wait("seed 0]")
        type_in("hello\n")
        wait(r"endless: \x1b\[0m[^\x1b]")  # a token
        type_in("\x03")
        wait("stopped")
        wait("seed 0]")
        type_in("/seed 3\n")
        wait("seed 3]")
        type_in("\x03")
        wait("Interrupted.")
        assert with_status(process) == 130


def test_at_a_terminal_ctrl_d_ends_it(places):
    with at_a_terminal(*places) as (wait, type_in, process):
        wait("continues text")
        wait("seed 0]")
        until = time.monotonic() + PATIENCE
        ended = 0
        while not ended and time.monotonic() < until:  # one that comes before readline has the terminal is lost
            type_in("\x04")
            time.sleep(0.5)
            ended, status = os.waitpid(process, os.WNOHANG)
        assert ended and os.waitstatus_to_exitcode(status) == 0


def test_sigterm_ends_it_while_it_answers(endless):
    with at_a_terminal(endless, "--temperature", "0", "--max_completion_length", "50000") as (wait, type_in, process):
        wait("seed 0]")
        type_in("hello\n")
        wait("endless: ")
        os.kill(process, signal.SIGTERM)
        wait("Stopped by SIGTERM")
        assert with_status(process) == 143


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "MODEL... is missing"),
        (["{sft}"] * 2, "two are called 'sft'"),
        (["a=m", "b=m", "c=m", "d=m", "e=m"], "5 models were given"),
        (["{sft}", "{sft}/nowhere"], "nowhere"),
        (["{sft}", "--temperature", "-1"], "must not be negative"),
        (["{sft}", "--output_file", "{sft}/config.json"], "config.json"),
    ],
)
def test_what_is_wrong_is_one_message_before_a_weight_is_loaded(argv, message, places, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "Speakers", None)
    assert main(["chat", *(word.format(sft=places[1]) for word in argv)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
