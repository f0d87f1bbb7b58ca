"""The next-token page's answers: what they sum to, what is refused, what is hidden from text."""

import json

import pytest
from serving.conftest import HOSTILE, served

from rlhf_kit.data.chat import encode_completion, set_chat_template
from rlhf_kit.data.labels.store import open_store
from rlhf_kit.generation.engine import Busy, Closed
from rlhf_kit.generation.sampling import sample
from rlhf_kit.models.checkpoints import load_policy, load_tokenizer
from rlhf_kit.serving.chat_texts import CHAT
from rlhf_kit.serving.folder import Contents
from rlhf_kit.serving.next_words import cards
from rlhf_kit.serving.panel_texts import PANEL
from rlhf_kit.serving.texts import TEXTS
from rlhf_kit.stages.replay import WHY


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The world's base model under the names of the demo's stages; those behind `base` have the chat template."""
    folder = tmp_path_factory.mktemp("demo")
    tokenizer = load_tokenizer("rlhf_kit/world/base")
    for name in ("base", "sft", "ppo"):
        load_policy("rlhf_kit/world/base").save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        set_chat_template(tokenizer)
    return Contents(models={name: folder / name for name in ("base", "sft", "ppo")})


@pytest.fixture
def site(demo, tmp_path):
    for one in served(open_store(tmp_path / "labels.db", create=True), contents=demo):
        yield one
        one.app.state.speakers.close()


def looked(client, **sent):
    return client.json("/next/look", {"model": "base", "text": "Lakeside", "at": 0, **sent})


TEXT = ["Where does Sam live?", "山姆住在哪裡？", "👩‍👩‍👧 naïve 🇹🇼", "ok 🙂", "<script>window.hacked = 1</script>"]


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("shape", [{}, {"temperature": 0.5, "top_k": 20}, {"temperature": 2, "top_p": 0.7}])
def test_what_is_shown_sums_to_1_in_whole_characters(text, shape, site):
    client = site.client()
    for model, template in (("base", False), ("sft", True)):
        reply = looked(client, text=text, model=model, template=template, **shape)
        assert reply.status == 200
        seen = json.loads(reply.text)
        shown = [one["probability"] for one in seen["next"]["candidates"]]
        assert sum(shown) + seen["next"]["rest"] == pytest.approx(1, abs=1e-6)
        assert shown == sorted(shown, reverse=True) and text in seen["prompt"]
        assert "\ufffd" not in reply.text and "\\ufffd" not in reply.text


def test_what_is_written_is_what_sample_draws(site, demo):
    client, place = site.client(), demo.models["base"]
    branch = json.loads(looked(client).text)["next"]["candidates"][3]["ids"]
    sent = {"model": "base", "text": "Lakeside", "path": [branch], "max_tokens": 9, "seed": 5, "temperature": 0.9}
    reply = client.json("/next/write", sent)
    assert reply.headers["content-type"].startswith("application/x-ndjson")
    pieces = [json.loads(line) for line in reply.text.splitlines()]
    tokenizer, model = load_tokenizer(place), load_policy(place).eval()
    ids = [*tokenizer("Lakeside", add_special_tokens=False).input_ids, *branch]
    ends = site.app.state.speakers["base"].ends
    options = {"eos_ids": ends, "pad_id": 0, "max_completion_length": 9, "temperature": 0.9, "seeds": [5]}
    assert [token for piece in pieces for token in piece["ids"]] == sample(model, [ids], **options).completions()[0]
    assert all(0 < piece["probability"] <= 1 and min(piece["ranks"]) >= 1 for piece in pieces)


@pytest.mark.parametrize("fault", [Busy, Closed, RuntimeError])
def test_what_stops_a_text_is_told(site, fault, monkeypatch):
    def submit(*_):
        raise fault("no")

    monkeypatch.setattr(site.app.state.speakers["base"].engine, "submit", submit)
    reply = site.client().json("/next/write", {"model": "base", "text": "Lakeside", "max_tokens": 3})
    name = {Busy: "busy", Closed: "closing", RuntimeError: "failed"}[fault]
    assert reply.status == 200 and json.loads(reply.text) == {"error": " ".join(CHAT[name])}


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"model": "sfd"}, 400, "Did you mean 'sft'?"),
        ({"text": ""}, 400, "no tokens"),
        ({"text": 5}, 400, "`text`"),
        ({"path": [[]]}, 400, "`path`"),
        ({"path": [[-1]]}, 400, "vocabulary"),
        ({"at": 1}, 400, "`at`"),
        ({"count": 0}, 400, "`count`"),
        ({"temperature": 0}, 400, "temperature"),
        ({"temperature": "1"}, 400, "numbers"),
        ({"top_p": 7}, 400, "top_p"),
        ({"top_k": -1}, 400, "whole numbers"),
        ({"text": "Sam " * 2000}, 400, "the text has"),
    ],
)
def test_what_cannot_be_asked_is_told(sent, status, said, site):
    reply = looked(site.client(), **sent)
    assert reply.status == status and said in reply.text
    if "at" not in sent and "count" not in sent and sent.get("temperature") != 0:
        reply = site.client().json("/next/write", {"model": "base", "text": "Lakeside", **sent})
        assert reply.status == status


def test_controls_of_a_text_are_shown_by_their_numbers(site):
    assert "\\\\u202e" in looked(site.client(), text="evil \u202e txet").text


def test_who_is_let_in(site, demo, tmp_path):
    assert site.client().get("/next").status == 200
    assert site.client().json("/next/look", {}, **{"X-CSRF-Token": "wrong"}).status == 403
    for closed in served(open_store(tmp_path / "closed.db", create=True), by_name=False, contents=demo):
        assert closed.client().get("/next").status == 303 and looked(closed.client()).status == 403
        assert looked(closed.admin()).status == 200
        closed.app.state.speakers.close()
    for bare in served(open_store(tmp_path / "bare.db", create=True)):
        assert bare.client().get("/next").status == 404 and looked(bare.client()).status == 404


def test_the_page_begins_with_cards_for_the_models_there_are(site):
    page = site.client().get("/next").text
    assert page.count('class="example"') == 4 and "style=" not in page
    assert site.client().get("/").headers["location"] == "/next"
    four = cards(["runs/demo/ppo-no-kl", "runs/demo/base", "runs/demo/ppo", "runs/demo/sft"])
    assert [column.model.rpartition("/")[2] for column in four[3].columns] == ["base", "sft", "ppo", "ppo-no-kl"]
    assert [column.template for column in four[3].columns] == [False, True, True, True]
    (alone,) = {column.model for card in cards(["mine"]) for column in card.columns}
    assert alone == "mine" and len(cards(["mine"])) == 3
    assert all(english and chinese for english, chinese in [*TEXTS.values(), *PANEL.values(), *WHY.values()])


def test_what_ppo_did_is_told_by_token(site, demo):
    (demo.models["ppo"] / "run.json").write_text('{"stage": "ppo", "config": {"kl_coef": 0.2, "temperature": 0.7}}')
    client = site.client()
    branch = json.loads(looked(client, model="ppo", template=True).text)["next"]["candidates"][0]["ids"]
    sent = {"model": "ppo", "text": "Lakeside", "path": [branch], "reference": "sft"}
    seen = json.loads(client.json("/next/change", sent).text)
    assert [token["id"] for token in seen["tokens"]] == branch and seen["kl"] == pytest.approx(0, abs=1e-6)
    assert (seen["kl_coef"], seen["temperature"], seen["correct"], seen["score"]) == (0.2, 0.7, None, None)
    assert "reward_weights" in seen["missing"][0][0] and "沒有價值" in seen["missing"][1][1]
    assert "no model 'none'" in client.json("/next/change", sent | {"reference": "none"}).text


def test_a_typed_answer_and_one_of_a_conversation_have_the_tokens_that_ppo_gives_them(site):
    client, speaker = site.client(), site.app.state.speakers["ppo"]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where does Sam live?"}]
    sent = {"model": "ppo", "reference": "sft", "answer": HOSTILE[3]}
    for prompt, more in (({"text": turns[-1]["content"]}, {}), ({"turns": turns}, {"ended": False})):
        seen = json.loads(client.json("/next/change", sent | prompt | more).text)
        ids = encode_completion(speaker.tokenizer, HOSTILE[3], eos=not more)
        assert [token["id"] for token in seen["tokens"]] == ids and seen["correct"] is False
        assert not any("\u202e" in token["text"] for token in seen["tokens"])


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"answer": 5}, 400, "`answer`"),
        ({"answer": "a" * 20_001}, 400, "`answer`"),
        ({"path": [[10**6]]}, 400, "vocabulary"),
        ({"path": []}, 400, "at least 1"),
        ({"answer": "cat " * 2000}, 400, "all must fit"),
        ({"turns": []}, 400, "`turns`"),
        ({"turns": [{"role": "user", "content": "a" * 20_001}]}, 413, "Too long"),
        ({"text": None}, 400, "`text`"),
        ({"text": 5}, 400, "`text`"),
    ],
)
def test_what_cannot_be_asked_of_a_change_is_told(sent, status, said, site):
    whole = {"model": "ppo", "reference": "sft", "text": "Lakeside", "path": [[5]]} | sent
    reply = site.client().json("/next/change", whole)
    assert reply.status == status and said in reply.text
