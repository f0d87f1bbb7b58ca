"""The page Chat: what a stream is made of, what a client that leaves ends, who may write, what the store has then."""

import http.client
import json
import time
from collections.abc import Iterator

import pytest
from serving.conftest import Client, Site, served

from rlhf_kit.chat.speakers import Settings
from rlhf_kit.data.labels.importing import add_thumbs
from rlhf_kit.data.labels.reader import read_labels
from rlhf_kit.data.labels.store import open_store
from rlhf_kit.data.loading import load
from rlhf_kit.generation.drawn import Drawn
from rlhf_kit.generation.engine import Busy, Closed, Engine, Job
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.models.identity import model_hash
from rlhf_kit.serving.answering import line
from rlhf_kit.serving.chat_texts import CHAT
from rlhf_kit.serving.folder import Contents

DRAWN = {"max_tokens": 16, "temperature": 1.0, "top_k": 0, "seed": 3}


def turns(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


@pytest.fixture
def places(policy, tokenizer, tokenizer_folder, tmp_path):
    """A base model, and two that chat: the second is another model, by the sign of its embeddings."""
    policy.save_pretrained(tmp_path / "base")
    load_tokenizer(tokenizer_folder).save_pretrained(tmp_path / "base")
    for name in ("sft", "ppo"):
        policy.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        policy.get_input_embeddings().weight.data.mul_(-1)
    return {name: tmp_path / name for name in ("base", "sft", "ppo")}


@pytest.fixture
def chat(places, tmp_path) -> Iterator[Site]:
    for site in served(open_store(tmp_path / "labels.db", create=True), contents=Contents(models=places)):
        yield site
        site.app.state.speakers.close()


def ask(client: Client, model: str = "sft", said=("the cat",), **more) -> list[dict]:
    reply = client.json("/chat/answers", {"model": model, "turns": turns(*said), **DRAWN} | more)
    assert reply.status == 200, reply.text
    return [json.loads(line) for line in reply.text.splitlines()]


def text_of(lines: list[dict]) -> str:
    return "".join(line.get("text", "") for line in lines)


def proof(client: Client, model: str = "sft", said=("the cat",), **more) -> dict:
    """As the page asks for a task of an answer: its turns and its proof."""
    return {"turns": turns(*said), "proofs": [ask(client, model, said, **more)[-1]["proof"]]}


@pytest.mark.parametrize("model", ["base", "sft"])
def test_an_answer_comes_in_whole_characters_and_is_what_the_model_says(chat, model):
    lines = ask(chat.client(), model)
    speaker = chat.app.state.speakers[model]
    said = list(speaker.say(speaker.encode(turns("the cat")), Settings(**DRAWN)))
    assert lines[0] == {"chats": model == "sft"} and text_of(lines) == "".join(one.text for one in said)
    assert (lines[-1]["finish"], lines[-1]["tokens"]) == (said[-1].finish, len(said))
    assert len(lines) > 3 and not any("finish" in line for line in lines[:-1])


def test_characters_of_several_tokens_come_whole(chat, monkeypatch):
    speaker, text = chat.app.state.speakers["sft"], "蘋果 🍎 是\u202e紅的"
    ids = [*speaker.tokenizer(text).input_ids, speaker.ends[0]]
    assert len(ids) > len(text) + 1

    def submit(request, deliver):
        for at, token in enumerate(ids, start=1):
            deliver(Drawn(token, 0.0, "stop" if at == len(ids) else None))
        return Job(request, deliver)

    monkeypatch.setattr(speaker.engine, "submit", submit)
    lines = ask(chat.client())
    assert text_of(lines) == text and not any("\ufffd" in each.get("text", "") for each in lines)
    assert "".join(each.get("shown", each.get("text", "")) for each in lines) == text.replace("\u202e", "\\u202e")


def test_what_would_reorder_or_hide_text_is_shown_by_its_number():
    assert json.loads(line("a\u202eb")) == {"text": "a\u202eb", "shown": "a\\u202eb"}
    assert json.loads(line("蘋果")) == {"text": "蘋果"}


ENDLESS = {"model": "sft", **DRAWN, "max_tokens": 100}
STREAMS = {"/chat/answers": ENDLESS | {"turns": turns("the")}, "/next/write": ENDLESS | {"text": "the"}}


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("place", ["at work", "in line"])
def test_a_client_that_leaves_ends_its_row(path, place, chat, monkeypatch):
    """The engine has nothing to do, and the row did not come to its end."""
    speaker, client, jobs, going = chat.app.state.speakers["sft"], chat.client(), [], Engine.answer_calls
    submit, take = speaker.engine.submit, Engine.take
    monkeypatch.setattr(speaker.engine, "submit", lambda *given: jobs.append(submit(*given)) or jobs[-1])
    monkeypatch.setattr(Engine, "answer_calls", lambda engine: time.sleep(0.05) or going(engine))
    monkeypatch.setattr(speaker.engine, "end_ids", frozenset())
    if place == "in line":
        monkeypatch.setattr(Engine, "take", lambda engine, count: take(engine, 0))
    headers = {"Host": client.host, "Origin": f"http://{client.host}", "X-CSRF-Token": client.token(),
               "Cookie": f"session={client.cookies['session']}", "Content-Type": "application/json"}  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", chat.port, timeout=30)
    connection.request("POST", path, json.dumps(STREAMS[path]).encode(), headers)
    response = connection.getresponse()
    if place == "at work":
        lines = [json.loads(response.readline()) for _ in range(2)]
        assert "text" in lines[1] and (path == "/next/write" or lines[0] == {"chats": True})
    until(lambda: jobs)
    response.close()
    connection.close()
    until(lambda: jobs[0].is_cancelled)
    monkeypatch.setattr(Engine, "take", take)
    until(lambda: speaker.engine.going == 0 and not speaker.engine.is_busy)
    assert jobs[0].drawn < 100


def until(is_so) -> None:
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("not within a minute")


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"turns": []}, 400, "the last one of the user"),
        ({"turns": turns("a", "b")}, 400, "the last one of the user"),
        ({"turns": [{"role": "tool", "content": "a"}]}, 400, "the last one of the user"),
        ({"turns": turns(*["a"] * 101)}, 413, '"turns"'),
        ({"turns": turns("a" * 20_001)}, 413, '"long"'),
        ({"model": "another"}, 404, "no such model"),
        ({"max_tokens": 2049}, 400, "at most 2048"),
        ({"temperature": True}, 400, "numbers are needed"),
        ({"seed": "1"}, 400, "numbers are needed"),
    ],
)
def test_what_is_too_much_or_of_another_form_is_refused(chat, sent, status, said):
    reply = chat.client().json("/chat/answers", {"model": "sft", "turns": turns("a"), **DRAWN, **sent})
    assert reply.status == status and said in reply.text


@pytest.mark.parametrize("fault", [Busy, Closed, RuntimeError])
def test_what_stops_an_answer_is_told(chat, fault, monkeypatch):
    def submit(*_):
        raise fault("no")

    monkeypatch.setattr(chat.app.state.speakers["sft"].engine, "submit", submit)
    name = {Busy: "busy", Closed: "closing", RuntimeError: "failed"}[fault]
    assert ask(chat.client())[-1] == {"error": name} and name in CHAT


def test_numbers_that_the_sampler_refuses_are_told(chat):
    (line,) = [line for line in ask(chat.client(), temperature=-1.0) if "error" in line]
    assert line["error"] == "refused" and "temperature=-1.0 must" in line["detail"]


@pytest.mark.parametrize("drawn", [{"temperature": 0}, {"top_k": 1_000_000}, {"temperature": 2, "top_k": 1}])
def test_what_the_page_lets_one_set_is_taken(chat, drawn):
    last = ask(chat.client(), **drawn)[-1]
    assert last["finish"] in ("stop", "length"), last
    if drawn != {"top_k": 1_000_000}:  # the likeliest token, whatever the seed
        assert text_of(ask(chat.client(), **drawn)) == text_of(ask(chat.client(), **drawn, seed=99))


def test_a_full_context_is_told(chat):
    """Of 128 tokens: an answer is as long as there is room for; with none there is no answer."""
    client, speaker = chat.client(), chat.app.state.speakers["sft"]
    speaker.engine.end_ids = frozenset()
    words = "cat " * 110
    room = 128 - len(speaker.encode(turns(words)))
    assert 0 < room < 64
    last = ask(client, said=(words,), max_tokens=64)[-1]
    assert (last["finish"], last["tokens"]) == ("full", room)
    assert ask(client, said=("cat " * 200,))[0]["error"] == "full"


def test_turns_that_the_template_does_not_take_are_told(chat):
    chat.app.state.speakers["sft"].tokenizer.chat_template = "{{ raise_exception('no <b>turns</b>\u202e') }}"
    line = ask(chat.client())[-1]
    assert line["error"] == "refused" and "no <b>turns</b>" in line["detail"] and "\u202e" not in line["detail"]


# --- who may do what ---


def test_chatting_on_this_machine_needs_no_name_and_writing_does(chat):
    client = chat.client()
    page = client.get("/chat")
    assert page.status == 200 and "base" in page.text
    reply = client.json("/chat/tasks", {"kind": "thumbs", **proof(client)})
    assert (reply.status, json.loads(reply.text)) == (403, {"error": "name"}) and not chat.store.tasks()


def test_elsewhere_chatting_needs_a_sign_in(places, tmp_path):
    store = open_store(tmp_path / "labels.db", create=True)
    for site in served(store, hosts=["lab.example"], contents=Contents(models=places)):
        client = site.client()
        assert client.get("/chat").status == 303
        assert client.json("/chat/answers", {"model": "sft", "turns": turns("a"), **DRAWN}).status == 403
        assert text_of(ask(site.labeler("amy")))
        site.app.state.speakers.close()


@pytest.mark.parametrize("address", ["/chat/answers", "/chat/tasks"])
@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_request_without_the_sessions_token_does_nothing(chat, address, token):
    client = chat.labeler("amy")
    value = {"model": "sft", "kind": "thumbs", **DRAWN, **proof(client)}
    assert client.json(address, value, **{"X-CSRF-Token": token}).status == 403
    assert not chat.store.tasks()


# --- what the store has ---


def thumb(client: Client, label: bool | None, **task) -> None:
    reply = client.json("/chat/tasks", {"kind": "thumbs", **task})
    assert reply.status == 200, reply.text
    decided = {"kind": "skipped", "content": {}} if label is None else {"kind": "thumb", "content": {"label": label}}
    decision = {"uid": f"{time.monotonic_ns()}", "assignment": json.loads(reply.text)["assignment"], **decided}
    assert client.json("/decisions", {**decision, "seconds": 1}).status == 200


def test_a_thumb_is_kept_changed_and_taken_back(chat, places):
    amy = chat.labeler("amy")
    lines = ask(amy, said=("the cat", "sat", "on"), temperature=0.5)
    task = {"turns": turns("the cat", "sat", "on"), "proofs": [lines[-1]["proof"]]}
    thumb(amy, True, **task)
    (kept,) = chat.store.tasks("thumbs").values()
    assert kept.prompt == task["turns"] and kept.answers[0].text == text_of(lines).strip()
    (source,) = kept.answers[0].sources
    assert source.pop("settings")
    assert source == {"model": "sft", "model_hash": model_hash(str(places["sft"])), **DRAWN, "temperature": 0.5}
    name = f"{chat.store.name}:thumbs"
    assert load(name, ("thumbs",))[0][0]["label"] is True
    thumb(amy, False, **task)
    assert [row["label"] for row in read_labels(name, ("thumbs",))] == [False]
    thumb(amy, None, **task)
    (decision,) = chat.store.decisions("thumbs")
    assert decision.kind == "skipped" and len(chat.store.tasks()) == 1


def test_answers_of_several_models_are_ranked(chat):
    amy = chat.labeler("amy")
    both = [proof(amy, model, seed=at) for at, model in enumerate(("base", "sft", "ppo"))]
    task = {"kind": "ranking", "turns": turns("the cat"), "proofs": [one["proofs"][0] for one in both]}
    number = json.loads(amy.json("/chat/tasks", task).text)["assignment"]
    assert json.loads(amy.json("/chat/tasks", task).text)["assignment"] == number
    assert amy.json("/decisions", amy.decision(page=f"/rank/{number}")).status == 200
    (row,) = load(chat.store.name, ("ranked",))[0]
    assert len(row["completions"]) == 3 and sorted(row["ranks"]) == [1, 2, 3]
    best = row["completions"][row["ranks"].index(1)]
    assert row["prompt"] == turns("the cat")
    assert read_labels(chat.store.name, ("demonstrations",)) == [{"prompt": row["prompt"], "completion": best}]
    assert len(load(chat.store.name, ("demonstrations",))[0]) == len(load(chat.store.name, ("prompts",))[0]) == 1
    (kept,) = chat.store.tasks("ranking").values()
    assert [answer.sources[0]["model"] for answer in kept.answers] == ["base", "sft", "ppo"]
    assert chat.client().get(f"/rank/{number}").status == 303  # it is hers alone
    assert chat.labeler("bob").get(f"/rank/{number}").status == 404


def test_a_store_of_texts_and_of_turns_is_read(chat):
    """Thumbs on prompts of a file, which are texts, and on a conversation."""
    add_thumbs(chat.store, [{"prompt": "a text", "completion": "b", "label": True}])
    amy = chat.labeler("amy")
    thumb(amy, False, **proof(amy))
    assert sorted(load(f"{chat.store.name}:thumbs", ("thumbs",))[0]["label"]) == [False, True]


def test_only_what_a_model_gave_is_kept(chat):
    amy = chat.labeler("amy")
    real = proof(amy)
    for task in (
        {**real, "turns": turns("another question")},
        {**real, "proofs": ["made.up"]},
        {**real, "proofs": [7]},
        {**real, "proofs": []},
        {**real, "proofs": real["proofs"] * 13},
        {**real, "proofs": real["proofs"] * 2},
    ):
        assert amy.json("/chat/tasks", {"kind": "thumbs", **task}).status == 400
    assert amy.json("/chat/tasks", {"kind": "ranking", **real, "proofs": real["proofs"] * 2}).status == 409
    assert not chat.store.tasks()
