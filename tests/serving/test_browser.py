"""The pages in a real browser: ten lists by mouse and by keyboard, thumbs, both languages, a phone, hostile text.

`make test-browser` runs it. Without Chromium it is left out, and says so. With SCREENS=docs/screens it makes
the pictures of docs/feedback.md anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import friendly
from serving.conftest import SIZES, Site, picture, served

from rlhf_kit import world
from rlhf_kit.data.labels.reader import read_labels
from rlhf_kit.data.labels.store import Answer, open_store
from rlhf_kit.data.loading import load
from rlhf_kit.feedback.assignment import Policy, set_policy
from rlhf_kit.feedback.truth import compare_decision
from rlhf_kit.reward import RewardConfig, RewardTrainer
from rlhf_kit.serving.access import add_link


@pytest.fixture
def open_page(browse, site):
    """A function that opens a page signed in as somebody."""

    def opened(name: str = "amy", size: str = "desktop", at: Site = site, **options):
        page = browse(at, size=size, **options)
        page.fill("#name", name)
        page.press("#name", "Enter")
        page.wait_for_url(re.compile("/(rank|guidelines|thumbs)$"))
        return page

    opened.faults = browse.faults
    return opened


def shown(page) -> list[str]:
    """Ids of the answers, from the top."""
    return [card.get_attribute("data-answer") for card in page.locator("#answers > .card").all()]


def admins_progress(chromium, site):
    """The owner's page of progress, in a browser of their own."""
    page = chromium.new_context(viewport=SIZES["desktop"]).new_page()
    page.goto(f"http://127.0.0.1:{site.port}/join/{add_link(site.store, site.store.add_labeler('admin', 'admin'))}")
    page.click("button.primary")
    page.goto(f"http://127.0.0.1:{site.port}/progress")
    return page


def submit(page, press) -> None:
    """Review and submit, and wait for the next task."""
    uid = page.locator("#answers").get_attribute("data-uid")
    press()
    page.wait_for_function(
        "uid => !document.querySelector('#answers') || document.querySelector('#answers').dataset.uid !== uid", arg=uid
    )
    page.wait_for_load_state("load")  # a key that is pressed before its script runs is lost


def drag(page, card: int, to: int) -> None:
    """Drag a card by its grip to the place of another."""
    grip, target = (page.locator(".card").nth(card).locator(".grip"), page.locator(".card").nth(to))
    target.scroll_into_view_if_needed()
    start, end = grip.bounding_box(), target.bounding_box()
    x, below = start["x"] + start["width"] / 2, to > card
    page.mouse.move(x, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(x, end["y"] + end["height"] * (0.9 if below else 0.1), steps=12)
    page.mouse.up()


def test_ten_lists_by_mouse_and_by_keyboard_with_ties(open_page, site, policy, tokenizer, tmp_path):
    """And the owner's export, taken from the page, trains a reward model."""
    page = open_page()
    wanted = {}
    for number in range(10):
        page.set_viewport_size({"width": 1200, "height": 1600})
        ids = shown(page)
        if number % 2:  # by keyboard: the last becomes the first, the old first and second tie
            for _ in range(3):
                page.keyboard.press("j")
            for _ in range(3):
                page.keyboard.press("Alt+ArrowUp")
            page.keyboard.press("6")
            page.keyboard.press("j")
            page.keyboard.press("j")
            page.keyboard.press("=")
            assert shown(page) == [ids[3], ids[0], ids[1], ids[2]]
            wanted[frozenset(ids)] = {ids[3]: 1, ids[0]: 2, ids[1]: 2, ids[2]: 3}, {ids[3]: 6}
            page.keyboard.press("Enter")
            submit(page, lambda: page.keyboard.press("Enter"))
        else:  # by mouse: the first becomes the last, and ties with what is above it then
            drag(page, 0, 3)
            assert shown(page) == [*ids[1:], ids[0]]
            page.locator(".card").nth(3).locator(".tie").click()
            page.locator(".card").nth(0).locator(".rating label").nth(4).click()
            wanted[frozenset(ids)] = {ids[1]: 1, ids[2]: 2, ids[3]: 3, ids[0]: 3}, {ids[1]: 5}
            page.click("#review")
            submit(page, lambda: page.click("#submit"))
    decisions = site.store.decisions("ranking")
    assert len(decisions) == 10
    for each in decisions:
        ranks, ratings = wanted[frozenset(each.content["ranks"])]
        assert (each.content["ranks"], each.content["ratings"]) == (ranks, ratings)
    rows = read_labels(site.store.name, ("ranked",))
    assert len(rows) == 10 and {row["labeler"] for row in rows} == {"amy"}
    admin = open_page()
    admin.goto(f"http://127.0.0.1:{site.port}/join/{add_link(site.store, site.store.add_labeler('admin', 'admin'))}")
    admin.click("form.narrow button")
    admin.goto(f"http://127.0.0.1:{site.port}/progress")
    with admin.expect_download() as download:
        admin.click('.exports a[href="/export/ranked"]')
    exported = tmp_path / "exported.jsonl"
    download.value.save_as(exported)
    lines = [json.loads(line) for line in exported.read_text(encoding="utf-8").splitlines()]
    assert [line["ranks"] for line in lines] == [row["ranks"] for row in rows]
    args = RewardConfig(str(tmp_path / "reward"), num_train_epochs=1, per_device_train_batch_size=5, use_cpu=True,
                        report_to="none", save_strategy="no")  # fmt: skip
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    trainer = RewardTrainer(str(tmp_path / "policy"), args, load(exported, ("ranked",))[0], processing_class=tokenizer)
    trainer.train()
    assert trainer.data_counts["train"]["lists"] == 10 and trainer.state.epoch == 1


def test_undo_takes_back_one_step_at_a_time_and_then_the_last_task(open_page, site):
    page = open_page()
    ids = shown(page)
    page.keyboard.press("5")
    page.keyboard.press("Alt+ArrowDown")
    page.keyboard.press("=")
    assert page.locator(".card.tied").count() == 1
    page.keyboard.press("u")
    assert page.locator(".card.tied").count() == 0 and shown(page) == [ids[1], ids[0], ids[2], ids[3]]
    page.keyboard.press("u")
    assert shown(page) == ids and page.locator(".rating input:checked").count() == 1
    page.keyboard.press("u")
    assert page.locator(".rating input:checked").count() == 0
    page.keyboard.press("Alt+ArrowDown")
    page.keyboard.press("Enter")
    submit(page, lambda: page.keyboard.press("Enter"))
    page.keyboard.press("u")
    page.wait_for_url(re.compile(r"/rank/\d+$"))
    assert shown(page) == [ids[1], ids[0], ids[2], ids[3]]
    page.keyboard.press("Alt+ArrowDown")
    page.keyboard.press("Enter")
    submit(page, lambda: page.keyboard.press("Enter"))
    (decision,) = site.store.decisions("ranking")
    assert decision.content["ranks"] == dict(zip(ids, (1, 2, 3, 4), strict=True))


def test_an_untouched_order_and_a_contradicting_rating_are_warned_of(open_page):
    page = open_page()
    page.keyboard.press("Enter")
    assert page.locator("#untouched").is_visible() and not page.locator("#contradiction").is_visible()
    page.locator("#reviewing .cancel").click()
    page.locator(".card").nth(0).focus()
    page.keyboard.press("2")
    page.keyboard.press("j")
    page.keyboard.press("7")
    page.keyboard.press("Enter")
    assert page.locator("#contradiction").is_visible() and "(7)" in page.locator("#contradiction").inner_text()
    page.locator("#reviewing .cancel").click()
    page.click("#by-rating")
    page.keyboard.press("Escape")
    page.locator(".card").nth(0).focus()
    page.keyboard.press("Enter")
    assert not page.locator("#contradiction").is_visible() and not page.locator("#untouched").is_visible()


def test_remarks_comment_skip_and_not_rankable(open_page, site):
    page = open_page()
    first = page.locator(".card").nth(0)
    first.locator(".flags summary").click()
    first.locator('.flags input[value="hallucination"]').check()
    page.fill("#comment", "n s u 1 = are letters here")
    name = first.get_attribute("data-answer")
    page.locator(".card").nth(1).focus()
    submit(page, lambda: page.keyboard.press("n"))
    page.keyboard.press("s")
    page.fill("#reason", "not my language")
    submit(page, lambda: page.locator("#skipping .primary").click())
    unrankable, skipped = site.store.decisions("ranking")
    assert unrankable.kind == "unrankable"
    assert unrankable.content == {"flags": {name: ["hallucination"]}, "comment": "n s u 1 = are letters here"}
    assert (skipped.kind, skipped.content) == ("skipped", {"reason": "not my language"})


def test_thumbs_by_key_and_by_touch_in_chinese_on_a_phone(open_page, site):
    page = open_page(size="phone", locale="zh-TW")
    assert page.locator("html").get_attribute("lang") == "zh-Hant"
    page.click("text=讚／噓")
    submit(page, lambda: page.tap("#good"))
    submit(page, lambda: page.keyboard.press("n"))
    submit(page, lambda: page.keyboard.press("ArrowUp"))
    assert [each.content["label"] for each in site.store.decisions("thumbs")] == [True, False, True]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_screen(open_page, size):
    page = open_page(size=size)
    for path in ("/rank", "/progress", "/guidelines"):
        page.goto(page.url.split("/rank")[0].split("/progress")[0].split("/guidelines")[0] + path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path


def test_languages_and_themes_are_kept(open_page):
    page = open_page()
    page.click('button[lang="zh-Hant"]')
    assert page.locator("h1").inner_text() == "排序"
    page.click('button[name="theme"]')
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.reload()
    assert page.locator("h1").inner_text() == "排序" and page.locator("html").get_attribute("data-theme") == "dark"


def test_hostile_text_is_shown_and_runs_nothing(open_page, site):
    page = open_page()
    seen = ""
    for _ in range(6):
        seen += page.locator("#answers").inner_text()
        assert page.locator("#answers script, #answers img, #answers svg, #answers a[href^=javascript]").count() == 0
        page.keyboard.press("Alt+ArrowDown")
        page.keyboard.press("Enter")
        submit(page, lambda: page.keyboard.press("Enter"))
    assert "<script>window.hacked = 1</script>" in seen and "\\u202eevil" in seen and "onload=" in seen
    page.goto(f"http://127.0.0.1:{site.port}/progress")
    assert page.evaluate("window.hacked") is None


def test_a_server_that_is_away_for_a_moment_loses_nothing(open_page, site):
    page = open_page()
    page.keyboard.press("Alt+ArrowDown")
    ids = shown(page)
    page.context.set_offline(True)
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Not saved')")
    assert shown(page) == ids and not site.store.decisions()
    submit(page, lambda: page.context.set_offline(False))
    assert len(site.store.decisions()) == 1
    open_page.faults[:] = [fault for fault in open_page.faults if "ERR_INTERNET_DISCONNECTED" not in fault]


def test_every_control_has_a_name_and_the_focus_is_seen(open_page):
    page = open_page()
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input:not([type=hidden]), textarea, a, [tabindex="0"]')]
             .filter(one => !(one.ariaLabel || one.innerText?.trim() || one.labels?.length || one.title))
             .map(one => one.outerHTML)"""
    )
    assert unnamed == []
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.locator(".card").nth(1).focus()
    page.keyboard.press("Alt+ArrowUp")
    assert "1 / 4" in page.locator("#status").inner_text()  # said to a screen reader


def test_the_admin_sees_progress_and_exports(open_page, chromium, site):
    page = open_page()
    for _ in range(3):
        page.keyboard.press("Alt+ArrowDown")
        page.keyboard.press("Enter")
        submit(page, lambda: page.keyboard.press("Enter"))
    admin = admins_progress(chromium, site)
    assert "secret-model-0" in admin.locator("main").inner_text()
    with admin.expect_download() as download:
        admin.click("text=ranked")
    assert len(Path(download.value.path()).read_text().splitlines()) == 3
    admin.context.close()


@pytest.fixture
def telling_site(tmp_path) -> Iterator:
    """One that tells the truth, over a list of the world and one of another."""
    store = open_store(tmp_path / "telling.db", create=True)
    row = world.rows("ranked", "train", size=1)[0]
    for prompt, texts in ((row["prompt"], row["completions"]), ("None of the world's.", ["one", "two"])):
        store.add_task("ranking", prompt, [Answer(text) for text in texts])
    set_policy(store, Policy(overlap=0, gold=0, repeats=0))
    yield from served(store, reveal_truth=True)


def test_how_a_ranking_compares_with_the_truth_is_shown_once_it_is_kept(chromium, telling_site):
    page, store = chromium.new_context(viewport=SIZES["phone"]).new_page(), telling_site.store
    page.goto(f"http://127.0.0.1:{telling_site.port}/")
    page.fill("#name", "amy")
    page.press("#name", "Enter")
    page.wait_for_url(re.compile("/rank$"))  # and its scripts
    page.wait_for_selector("#answers")
    assert not page.locator("#truth").is_visible() and page.locator("#truth-text").text_content() == ""
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_selector("#truth[open]")
    (decision,) = store.decisions()
    assert page.locator("#truth-text").inner_text() == str(compare_decision(store.task(1), decision.content))
    assert not page.locator("#reviewing").is_visible()
    submit(page, lambda: page.keyboard.press("Enter"))  # Next
    page.keyboard.press("Enter")
    submit(page, lambda: page.keyboard.press("Enter"))  # of another world: nothing is told
    assert "Nothing is left" in page.locator("main").inner_text() and len(store.decisions()) == 2
    page.context.close()


@pytest.fixture
def friendly_site(tmp_path) -> Iterator[Site]:
    """The one of the pictures: eight lists that amy and bob have both ranked."""
    store = open_store(tmp_path / "friendly.db", create=True)
    friendly.fill(store)
    yield from served(store)


def test_the_pictures_of_the_documents_show_what_they_say(open_page, chromium, friendly_site):
    """Of 48 pairs amy and bob order 38 alike; a list's tau-b is 1 - 2 * (0, 1, 2 or 2 of 6)."""
    for prompt, texts in (friendly.ENGLISH, friendly.CHINESE):
        friendly.ask(friendly_site.store, prompt, texts)
    amy, bob = open_page("amy", at=friendly_site), open_page("bob", at=friendly_site, color_scheme="dark")
    for page, ratings in ((amy, "6521"), (bob, "7311")):
        page.set_viewport_size({"width": 1000, "height": 1180})
        assert page.locator(".prompt").inner_text().endswith(friendly.ENGLISH[0])
        for text, rating in reversed(list(zip(friendly.ENGLISH[1], ratings, strict=True))):
            card = page.locator(".card", has_text=text)
            while shown(page)[0] != card.get_attribute("data-answer"):
                card.locator(".up").click()
            card.focus()
            page.keyboard.press(rating)
    bob.locator(".card").nth(3).locator(".tie").click()
    assert bob.locator(".rank").all_inner_texts() == ["1", "2", "3", "3"]
    picture(amy, "feedback-rank")
    picture(bob, "feedback-dark")
    submit(amy, lambda: (amy.click("#review"), amy.click("#submit")))
    phone = open_page("amy", size="phone", at=friendly_site, locale="zh-TW")
    assert phone.locator(".prompt").inner_text().endswith(friendly.CHINESE[0])
    worst, best = phone.locator(".rating").first.locator(":scope > span").all()
    assert worst.bounding_box()["y"] == best.bounding_box()["y"]  # both ends of the scale stand in its line
    picture(phone, "feedback-phone")
    admin = admins_progress(chromium, friendly_site)
    values = admin.locator(".figures dd").all_inner_texts()
    assert re.fullmatch(r"79\.2 % \[[\d., ]+\]", values[0]) and re.fullmatch(r"0\.583 \[[\d., ]+\]", values[2])
    assert all(
        re.fullmatch(r"-?\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\]", value.partition(" b")[0]) for value in values[2:]
    )
    sources = admin.locator("table").nth(1).locator("tbody tr").all_inner_texts()
    assert [row.split()[0] for row in sources] == [friendly.PPO, friendly.SFT] and all("[" in row for row in sources)
    picture(admin, "feedback-progress", full=True)
    admin.context.close()
