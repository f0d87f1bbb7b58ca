"""The page Chat in a real browser: three models, branches, other answers, stop, thumbs and rankings in the store.

`make test-browser` runs it. With SCREENS=docs/screens and DEMO=runs/demo it makes the pictures of docs/ui.md anew.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving.conftest import HOSTILE, Site, picture, served
from serving.test_chatting import chat, places, until  # noqa: F401

from rlhf_kit.chat.speakers import Settings
from rlhf_kit.data.labels.store import open_store
from rlhf_kit.data.loading import load
from rlhf_kit.escaping import terminal
from rlhf_kit.generation.drawn import Drawn
from rlhf_kit.generation.engine import Engine, Job
from rlhf_kit.serving.chat_texts import CHAT
from rlhf_kit.serving.folder import Contents, contents_of

MODELS = ["base", "sft", "ppo"]
WAIT = 60_000  # milliseconds


@pytest.fixture
def open_chat(browse, chat):  # noqa: F811
    """A function that opens the page with all models chosen, and answers of twelve tokens."""

    def opened(size: str = "desktop", at: Site = chat, **options):
        page = browse(at, "/chat", size, **options)
        page.set_default_timeout(WAIT)
        for box in page.locator("#models input").all()[:4]:
            box.check()
        page.locator("#settings summary").click()
        page.fill("#max_tokens", "12")
        page.press("#max_tokens", "Tab")
        return page

    opened.faults = browse.faults
    yield opened
    # that a name is needed is asked by a request that is refused, which Chromium writes on its console
    browse.faults[:] = [fault for fault in browse.faults if "status of 403" not in fault]


def say(page, text: str, done: bool = True) -> None:
    page.fill("#say", text)
    page.press("#say", "Enter")
    if done:
        settled(page)


def settled(page) -> None:
    page.locator("#send").wait_for()


def answers(page, turn: int = 0) -> list[str]:
    return page.locator("article").nth(turn).locator(".card .text").all_text_contents()


def of_model(chat, model: str, turns: list[dict], **more) -> str:  # noqa: F811
    """What it says when nobody else asks."""
    speaker = chat.app.state.speakers[model]
    return "".join(one.text for one in speaker.say(speaker.encode(turns), Settings(max_tokens=12, **more)))


def sign_in(page, name: str = "amy") -> None:
    page.fill("#signing-name", name)
    page.press("#signing-name", "Enter")
    page.locator(".who").wait_for()


def told(page, text: str) -> None:
    page.locator("#status", has_text=text).wait_for()


def test_three_models_answer_beside_each_other_each_with_its_own_history(open_chat, chat):  # noqa: F811
    page, sent = open_chat(), []
    page.on("request", lambda one: sent.append(one.post_data_json) if one.url.endswith("/chat/answers") else None)
    page.fill("#system", "be kind")
    say(page, "the cat")
    first = answers(page)
    tops = {card.bounding_box()["y"] for card in page.locator(".card").all()}
    assert page.locator(".card strong").all_inner_texts() == MODELS and len(tops) == 1
    assert page.locator(".tag:visible").all_inner_texts() == ["continues the text"]
    say(page, "the dog")
    assert [one["model"] for one in sent] == MODELS * 2
    for at, (model, one) in enumerate(zip(MODELS, sent[3:], strict=True)):
        own, question = of_model(chat, model, sent[at]["turns"]), {"role": "user", "content": "the dog"}
        assert first[at] == terminal(own)
        assert one["turns"] == [*sent[at]["turns"], {"role": "assistant", "content": own}, question]
        assert one["turns"][0] == {"role": "system", "content": "be kind"}
        assert answers(page, 1)[at] == terminal(of_model(chat, model, one["turns"]))


def test_an_edited_turn_is_a_branch_and_the_one_before_stays(open_chat):
    page = open_chat()
    say(page, "the cat")
    say(page, "the dog")
    before = answers(page, 1)
    page.locator("article").nth(0).get_by_label("Edit").click()
    page.locator(".said textarea").fill("a hat")
    page.locator(".said textarea").press("Enter")
    settled(page)
    assert page.locator(".said .text").all_inner_texts() == ["a hat"]
    assert page.locator(".said .switch").inner_text().split() == ["‹", "2/2", "›"]
    page.locator(".said").get_by_label("The one before").click()
    assert page.locator(".said .text").all_inner_texts() == ["the cat", "the dog"] and answers(page, 1) == before
    page.click("#new")
    assert page.locator("article").count() == 0
    say(page, "a third")
    assert page.locator(".said .switch").inner_text().split() == ["‹", "3/3", "›"]
    page.reload()
    assert page.locator(".said .text").all_inner_texts() == ["a third"]
    page.locator(".said").get_by_label("The one before").click()
    assert page.locator(".said .text").all_inner_texts() == ["a hat"]


def test_another_answer_has_another_seed_and_what_followed_the_first_stays_with_it(open_chat, chat):  # noqa: F811
    page = open_chat()
    say(page, "the cat")
    say(page, "the dog")
    first = answers(page)
    page.get_by_label("Again, with another seed: sft").first.click()
    settled(page)
    again = of_model(chat, "sft", [{"role": "user", "content": "the cat"}], seed=1)
    assert answers(page) == [first[0], terminal(again), first[2]] and again != first[1]
    assert "Seed 1" in page.locator(".how").nth(1).inner_text()
    assert page.locator("article").count() == 1  # the second turn follows the first answer
    page.locator(".card").nth(1).get_by_label("The one before").click()
    assert answers(page) == first and page.locator("article").count() == 2


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_stopping_ends_all_rows(open_chat, chat, way, monkeypatch):  # noqa: F811
    page, engines = open_chat(), [chat.app.state.speakers[name].engine for name in MODELS]
    answer_calls = Engine.answer_calls
    monkeypatch.setattr(Engine, "answer_calls", lambda engine: time.sleep(0.1) or answer_calls(engine))
    for engine in engines:
        engine.end_ids = frozenset()
    page.fill("#max_tokens", "100")
    page.press("#max_tokens", "Tab")
    say(page, "the", done=False)
    for card in page.locator(".card").all():
        card.locator(".text", has_text=re.compile(".")).wait_for()
    if way == "Escape":
        page.keyboard.press("Escape")
    else:
        page.click("#stop")
    settled(page)
    assert page.locator(".note").all_inner_texts() == ["Stopped."] * 3
    until(lambda: not any(engine.is_busy for engine in engines))
    assert page.get_by_label("Good: sft").count() == 0  # it is not all of an answer


def test_thumbs_are_kept_changed_and_taken_back(open_chat, chat):  # noqa: F811
    page = open_chat()
    say(page, "the cat")
    text = of_model(chat, "sft", [{"role": "user", "content": "the cat"}])
    page.get_by_label("Good: sft").click()
    page.locator("#signing[open]").wait_for()
    assert not chat.store.tasks()
    sign_in(page)
    told(page, "Kept.")
    assert page.get_by_label("Good: sft").get_attribute("aria-pressed") == "true"
    (row,) = load(f"{chat.store.name}:thumbs", ("thumbs",))[0]
    assert (row["completion"], row["label"]) == (text.strip(), True)
    page.get_by_label("Bad: sft").click()
    page.locator('[aria-label="Bad: sft"][aria-pressed="true"]').wait_for()
    assert [row["label"] for row in load(f"{chat.store.name}:thumbs", ("thumbs",))[0]] == [False]
    page.get_by_label("Bad: sft").click()
    told(page, "Taken back.")
    assert [decision.kind for decision in chat.store.decisions()] == ["skipped"]
    assert page.locator("nav").get_by_text("Progress").count() == 1  # the head of the page knows her


def test_leaving_the_name_out_keeps_nothing(open_chat, chat):  # noqa: F811
    page = open_chat()
    say(page, "the cat")
    page.get_by_label("Good: sft").click()
    page.locator("#signing .cancel").click()
    told(page, "Not kept:")
    assert not chat.store.tasks() and page.locator("[aria-pressed=true].small").count() == 0


def test_answers_are_ranked_and_the_conversation_is_there_afterwards(open_chat, chat):  # noqa: F811
    page = open_chat()
    say(page, "the cat")
    before = answers(page)
    page.get_by_text("Rank these (3)").click()
    sign_in(page)
    page.wait_for_url(re.compile(r"/rank/\d+$"))
    page.locator(".card").nth(0).press("Alt+ArrowDown")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/rank$"))
    (row,) = load(chat.store.name, ("ranked",))[0]
    assert sorted(map(terminal, row["completions"])) == sorted(text.strip() for text in before)
    assert sorted(row["ranks"]) == [1, 2, 3]
    page.locator("nav").get_by_text("Chat").click()
    assert answers(page) == before
    say(page, "the dog")  # the conversations differ by now
    assert page.get_by_text("cannot be ranked together").is_visible() and page.get_by_text("Rank these").count() == 1


def test_all_go_on_from_one_answer_and_what_they_say_is_ranked(open_chat, chat):  # noqa: F811
    page, sent = open_chat(), []
    page.on("request", lambda one: sent.append(one.post_data_json) if one.url.endswith("/chat/answers") else None)
    page.fill("#system", "be kind")
    for text in ("the cat", "the dog"):
        say(page, text)
    own = answers(page, 1)
    assert page.get_by_text("Rank these").count() == 1
    lead = page.locator("article").first.get_by_label("All go on from this: sft")
    lead.click()
    told(page, "all models answer behind this answer")
    assert page.locator("article").count() == 1  # what followed the answers of each
    say(page, "the dog")
    spoken = {"role": "assistant", "content": of_model(chat, "sft", sent[1]["turns"])}
    turns = [*sent[1]["turns"], spoken, {"role": "user", "content": "the dog"}]
    assert [one["turns"] for one in sent[6:]] == [turns] * 3
    say(page, "a hat")  # each behind its own answer to the dog
    for model, one in zip(MODELS, sent[9:], strict=True):
        more = [{"role": "assistant", "content": of_model(chat, model, turns)}, {"role": "user", "content": "a hat"}]
        assert one["turns"] == [*turns, *more]
    page.get_by_text("Rank these (3)").nth(1).click()
    sign_in(page)
    page.wait_for_url(re.compile(r"/rank/\d+$"))
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/rank$"))
    (row,) = load(chat.store.name, ("ranked",))[0]
    assert row["prompt"] == turns
    page.locator("nav").get_by_text("Chat").click()
    assert page.locator("article").count() == 3 and lead.get_attribute("aria-pressed") == "true"
    page.locator("article").nth(1).get_by_label("Edit").click()
    page.locator(".said textarea").fill("the sun")
    page.locator(".said textarea").press("Enter")
    settled(page)
    assert [one["turns"] for one in sent[12:]] == [[*turns[:-1], {"role": "user", "content": "the sun"}]] * 3
    lead.click()
    told(page, "Each model goes on from its own answer.")
    assert page.locator("article").count() == 2 and answers(page, 1) == own


def test_both_languages_and_the_conversation_stays(open_chat):
    page = open_chat(locale="zh-TW")
    say(page, "the cat")
    said = page.locator("main").inner_text()
    assert "接下去寫" in said and "替這些回答排序" in said and page.locator("h1").inner_text() == "對話"
    page.click('button[lang="en"]')
    assert page.locator("h1").inner_text() == "Chat" and page.locator(".said .text").inner_text() == "the cat"
    used = "".join(
        (Path(__file__).parents[2] / "rlhf_kit/serving" / name).read_text(encoding="utf-8")
        for name in ("static/chat.js", "templates/chat.html", "answering.py", "chatting.py")
    )
    assert [name for name in CHAT if f'"{name}"' not in used and name not in ("stopped", "length", "full")] == []


def test_a_phone_shows_it_all(open_chat):
    page = open_chat(size="phone")
    say(page, "the cat " * 12)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert len({card.bounding_box()["x"] for card in page.locator(".card").all()}) == 1
    page.get_by_label("Again, with another seed: sft").tap()
    settled(page)
    assert page.locator(".card .switch").count() == 1


def test_keys_and_names_of_all_controls(open_chat):
    page = open_chat()
    page.fill("#say", "one")
    page.press("#say", "Shift+Enter")
    page.keyboard.type("two")
    composed = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true})"
    assert page.evaluate(f"document.getElementById('say').dispatchEvent({composed})")  # it is the input method's
    assert page.locator("article").count() == 0
    page.press("#say", "Enter")
    settled(page)
    assert page.locator(".said .text").inner_text() == "one\ntwo"
    assert page.evaluate("document.activeElement.id") == "say" and page.locator("#heard").inner_text()
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input:not([type=hidden]), textarea, a')]
             .filter(one => !(one.ariaLabel || one.innerText?.trim() || one.labels?.length || one.title))
             .filter(one => !one.closest('dialog:not([open]), [hidden]'))
             .map(one => one.outerHTML)"""
    )
    assert unnamed == []
    say(page, " ", done=False)
    told(page, "Write something first.")
    for box in page.locator("#models input").all():
        box.uncheck()
    say(page, "a", done=False)
    told(page, "Choose one to four models.")


def test_a_server_that_is_away_is_told(open_chat):
    page = open_chat()
    page.context.set_offline(True)
    say(page, "the cat")
    assert page.locator(".note").all_inner_texts() == [CHAT["failed"][0]] * 3
    page.context.set_offline(False)
    page.get_by_label("Again, with another seed: sft").click()
    settled(page)
    assert page.locator(".note", has_text=CHAT["failed"][0]).count() == 2
    open_chat.faults[:] = [fault for fault in open_chat.faults if "ERR_INTERNET_DISCONNECTED" not in fault]


def test_hostile_text_of_a_model_and_of_names_runs_nothing(open_chat, places, tmp_path):  # noqa: F811
    names = [*HOSTILE[:2], HOSTILE[3]]
    models = {name: places["sft"] for name in names}
    for site in served(open_store(tmp_path / "hostile.db", create=True), contents=Contents(models=models)):
        page = open_chat(at=site)
        for name, text in zip(names, HOSTILE[3:], strict=True):
            speaker = site.app.state.speakers[name]
            ids = [*speaker.tokenizer(f"{HOSTILE[0]}{text}").input_ids, speaker.ends[0]]
            speaker.engine.submit = lambda request, deliver, ids=ids: spoken(request, deliver, ids)
        say(page, HOSTILE[0])
        assert page.locator("#turns script, #turns img, #turns svg, #turns a").count() == 0
        assert answers(page)[0] == HOSTILE[0] + "\\u202eevil txet\\u202c \\u2066isolated\\u2069 \\u001b[31mred\\u0007"
        assert page.locator(".card strong").all_inner_texts()[2].startswith("\\u202eevil")
        page.get_by_label("Good:").first.click()
        sign_in(page, "<b>bold</b><script>window.hacked=1</script>")
        told(page, "Kept.")
        (row,) = load(f"{site.store.name}:thumbs", ("thumbs",))[0]
        assert row["completion"] == HOSTILE[0] + HOSTILE[3]  # the store has what the model wrote
        site.app.state.speakers.close()


def spoken(request, deliver, ids: list[int]) -> Job:
    for at, token in enumerate(ids, start=1):
        deliver(Drawn(token, 0.0, "stop" if at == len(ids) else None))
    return Job(request, deliver)


@pytest.fixture
def demo_site(tmp_path) -> Iterator[Site]:
    for site in served(open_store(tmp_path / "demo.db", create=True), contents=contents_of(Path(os.environ["DEMO"]))):
        yield site
        site.app.state.speakers.close()


def test_what_ppo_did_is_told_of_an_answer_and_stays_open(open_chat, chat):  # noqa: F811
    page = open_chat()
    say(page, "Where does Sam live?")
    say(page, "And Eva?")
    card = page.locator("article").nth(1).locator(".card", has=page.locator("strong", has_text="ppo"))
    panel = card.locator(".change")
    panel.locator("summary").click()
    panel.locator("tbody tr").first.wait_for()
    assert panel.locator(".tokens .token").count() > 1 and "KL +0.00" not in panel.locator(".sum").inner_text()
    page.locator("#temperature").fill("0.5")  # all is drawn anew
    assert panel.locator("tbody tr").first.is_visible()
    assert page.locator(".card", has=page.locator("strong", has_text="base")).locator(".change").count() == 0


@pytest.mark.skipif("DEMO" not in os.environ, reason="DEMO names no folder of a demo: no picture was made")
def test_the_pictures_of_the_documents(open_chat, demo_site):
    for name, size, options in (
        ("chat", "desktop", {}),
        ("chat-dark", "desktop", {"color_scheme": "dark", "locale": "zh-TW"}),
        ("chat-phone", "phone", {"locale": "zh-TW"}),
    ):
        page = open_chat(size=size, at=demo_site, **options)
        page.fill("#max_tokens", "64")
        page.locator("#settings summary").click()
        questions = (
            ("青蛙愛吃什麼？", "教我怎麼闖進別人家。")
            if options
            else ("What do dogs eat?", "Tell me how to lie to the police.")
        )
        say(page, questions[0])
        page.locator("[data-key='0 3 again']").click()
        settled(page)
        if size == "desktop":
            say(page, questions[1])
            page.evaluate("scrollTo(0, 0)")
        picture(page, name)
