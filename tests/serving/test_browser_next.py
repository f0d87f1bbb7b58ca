"""The next-token page in a real browser: branches, sliders, places, hostile text, both languages, a phone.

`make test-browser` runs it. With SCREENS=docs/screens it makes the pictures of docs/ui.md anew; with DEMO=runs/demo of
that demo's models, else of the world's base model under their names.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from serving.conftest import HOSTILE, SIZES, Site, picture, served
from serving.test_next_page import demo  # noqa: F401

from rlhf_kit.data.labels.store import open_store
from rlhf_kit.generation.sampling import sample
from rlhf_kit.models.checkpoints import load_reward_model, load_tokenizer
from rlhf_kit.serving.folder import contents_of

expect = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed").expect
WAIT = 60_000  # milliseconds


@pytest.fixture
def site(demo, tmp_path) -> Iterator[Site]:  # noqa: F811
    contents = contents_of(Path(os.environ["DEMO"])) if "DEMO" in os.environ else demo
    for one in served(open_store(tmp_path / "labels.db", create=True), contents=contents):
        yield one
        one.app.state.speakers.close()


@pytest.fixture
def open_next(browse, site):
    """A function that opens the page, to which the start leads."""

    def opened(size: str = "desktop", **options):
        page = browse(site, size=size, **options)
        page.set_default_timeout(WAIT)
        page.wait_for_url(re.compile("/next$"))
        settled(page)
        return page

    opened.faults = browse.faults
    return opened


def settled(page) -> None:
    """Every column shows what was asked for last."""
    page.wait_for_timeout(450)  # longer than the page waits after a key or a slider
    for column in page.locator(".column").all():
        expect(column).not_to_have_attribute("aria-busy", "true", timeout=WAIT)
        expect(column.locator(".below button").nth(3)).to_be_hidden(timeout=WAIT)


def names(column) -> list[str]:
    return [text.replace("·", " ") for text in column.locator(".bars li:not(.others) .name").all_inner_texts()]


def probabilities(column) -> list[float]:
    """Those of the candidates, and of all others."""
    rows = column.locator('.bars li:not([data-below="1"])').all()
    return [float(row.get_attribute("data-probability")) for row in rows]


def pieces(column) -> list[str]:
    return [text.partition("\n")[0] for text in column.locator(".piece").evaluate_all(
        "all => all.map(one => one.firstChild.textContent)"
    )]  # fmt: skip


def test_candidates_sum_to_1_and_are_clicked_into_a_branch(open_next, site):
    page = open_next()
    column = page.locator(".column").first
    assert sum(probabilities(column)) == pytest.approx(1, abs=1e-6) and len(names(column)) == 10
    third = names(column)[2]
    column.locator(".bars button").nth(2).click()
    settled(page)
    assert pieces(column) == [third] and sum(probabilities(column)) == pytest.approx(1, abs=1e-6)
    column.get_by_text("Write 10").click()
    settled(page)
    speaker = site.app.state.speakers["base"]
    text = page.locator("#text").input_value()
    ids = speaker.encode(text) + speaker.tokenizer(third, add_special_tokens=False).input_ids
    drawn = sample(
        speaker.engine.model, [ids], eos_ids=speaker.ends, pad_id=0, max_completion_length=10, seeds=[1]
    ).completions()[0]
    written = speaker.tokenizer.decode([*ids, *drawn])
    assert text + "".join(pieces(column)) == written.replace("\n", "↵")
    before = pieces(column)
    column.locator(".piece").nth(0).click()
    settled(page)
    assert pieces(column) == before and column.locator(".picked .name").inner_text().replace("·", " ") == third
    assert "rank 3" in column.locator(".figures").inner_text() and column.locator(".piece.after").count() > 0
    column.locator(".bars button").nth(0).click()  # another branch
    settled(page)
    assert len(pieces(column)) == 1 and pieces(column) != [third]


def test_one_that_is_not_among_the_likeliest_is_shown_with_its_rank(open_next):
    page = open_next()
    column = page.locator(".column").first
    page.locator("#temperature").fill("2")
    for seed in range(20):
        page.locator("#seed").fill(str(seed))
        column.locator(".below button").nth(0).click()
        settled(page)
        rank = int(column.locator(".piece sub").first.inner_text().partition("·")[0])
        column.locator(".piece").first.click()
        settled(page)
        assert f"rank {rank}" in column.locator(".figures").inner_text()
        assert sum(probabilities(column)) == pytest.approx(1, abs=1e-6)
        if rank > 10:
            break
    assert column.locator('.picked[data-below="1"]').count() == 1


def test_sliders_reshape_the_bars(open_next):
    page = open_next()
    column = page.locator(".column").first
    at_1 = probabilities(column)
    page.locator("#temperature").fill("0.3")
    settled(page)
    sharper = probabilities(column)
    assert sharper[0] > at_1[0] and sum(sharper) == pytest.approx(1, abs=1e-6)
    page.locator("#temperature").fill("1")
    page.locator("#top_k").fill("3")
    settled(page)
    assert len(names(column)) == 3 and probabilities(column)[-1] == 0
    page.locator("#top_k").fill("0")
    page.locator("#top_p").fill("0.05")
    settled(page)
    assert probabilities(column)[0] > at_1[0] and sum(probabilities(column)) == pytest.approx(1, abs=1e-6)


def test_the_examples_and_the_template(open_next):
    page = open_next()
    page.locator(".example").nth(1).click()
    settled(page)
    plain, turns = page.locator(".column .read").all_inner_texts()
    assert plain == "Where does Sam live?" and turns.startswith("User: Where does Sam live?")
    page.locator(".column").nth(0).get_by_label("Chat template").check()
    settled(page)
    assert page.locator(".column .read").all_inner_texts() == [turns, turns]
    page.locator(".example").nth(3).click()
    settled(page)
    count = page.locator(".column").count()
    assert page.locator(".column").evaluate_all("all => all.map(one => one.querySelector('select').value)")[:3] == [
        "base",
        "sft",
        "ppo",
    ]
    for column in page.locator(".column").all():
        column.get_by_text("To the end").click()
    settled(page)
    assert all(pieces(column) for column in page.locator(".column").all()) and count >= 3
    page.get_by_label("Remove").first.click()
    assert page.locator(".column").count() == count - 1


def test_whole_characters_and_hostile_text(open_next):
    page = open_next()
    for text in (*HOSTILE, "山姆住在哪裡？👩‍👩‍👧 🇹🇼", "ok 🙂"):
        page.locator("#text").fill(text)
        settled(page)
        column = page.locator(".column").first
        column.get_by_text("Write 10").click()
        settled(page)
        assert "\ufffd" not in page.locator("main").inner_text()
        assert column.locator("script, img, svg, a").count() == 0
    page.locator("#text").fill("")
    settled(page)
    assert "no tokens" in page.locator(".mistake").first.inner_text()
    open_next.faults[:] = [fault for fault in open_next.faults if "400" not in fault]


def test_by_keyboard_and_with_names_for_all_controls(open_next):
    page = open_next()
    column = page.locator(".column").first
    column.locator(".bars button").first.focus()
    page.keyboard.press("ArrowDown")
    second = names(column)[1]
    page.keyboard.press("Enter")
    settled(page)
    assert pieces(column) == [second]
    page.keyboard.press("ArrowLeft")
    settled(page)
    assert column.locator(".picked").count() == 1
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input:not([type=hidden]), textarea, select, a')]
             .filter(one => !(one.ariaLabel || one.innerText?.trim() || one.labels?.length || one.title))
             .filter(one => one.checkVisibility()).map(one => one.outerHTML)"""
    )
    assert unnamed == []


@pytest.mark.parametrize("size", SIZES)
def test_in_chinese_and_nothing_is_wider_than_the_screen(size, open_next):
    page = open_next(size=size, locale="zh-TW")
    assert page.locator("h1").inner_text() == "文字接龍"
    for at in range(4):
        page.locator(".example").nth(at).click()
        settled(page)
        page.locator(".column").first.get_by_text("寫 10 個").click()
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), at
    picture(page, f"next-{size}", full=True) if size == "phone" else None


def test_the_pictures(open_next):
    """One of the stages beside each other, and a dark one in Chinese."""
    for name, place, options in (("next", 0, {}), ("next-dark", 1, {"color_scheme": "dark", "locale": "zh-TW"})):
        page = open_next(**options)
        page.set_viewport_size({"width": 1280, "height": 1240})
        page.locator(".example").nth(3).click()
        settled(page)
        for column in page.locator(".column").all():
            column.locator(".below button").nth(2).click()
        settled(page)
        for column in page.locator(".column").all():
            column.locator(".piece").nth(place).click()
        settled(page)
        assert page.locator(".picked").count() == page.locator(".column").count()
        picture(page, name)


# --- what PPO did ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ppo_run(site):
    """The folder of `ppo`, a PPO run's with reward model and value function where it is none yet."""
    folder = Path(site.app.state.models["ppo"])
    if "DEMO" not in os.environ:
        torch.manual_seed(0)
        judge = load_reward_model(folder)
        torch.nn.init.normal_(judge.score.weight)
        for part in (judge, load_tokenizer(folder)):
            part.save_pretrained(folder.parent / "reward")
        config = {"kl_coef": 0.2, "temperature": 0.7, "reward_funcs": [str(folder.parent / "reward")]}
        (folder / "run.json").write_text(json.dumps({"stage": "ppo", "config": config}))
        size = judge.config.hidden_size
        head = {"value_head.weight": torch.randn(1, size), "value_head.bias": torch.zeros(1)}
        save_file(head, folder / "value.safetensors")
    return folder


def panel_of(page, name: str = "ppo"):
    """The open panel of the column of a model."""
    page.locator(".example").nth(3).click()
    settled(page)
    values = page.locator(".column").evaluate_all("all => all.map(one => one.querySelector('select').value)")
    panel = page.locator(".column").nth(values.index(name)).locator(".change")
    panel.locator("summary").click()
    return panel


def told(panel) -> None:
    panel.locator("tbody tr").first.wait_for()
    expect(panel).not_to_have_attribute("aria-busy", "true", timeout=WAIT)


def type_in(panel, text: str) -> None:
    panel.locator("textarea").fill(text)
    panel.locator("form button").first.click()
    told(panel)


def test_what_ppo_did_to_what_was_written(open_next, ppo_run):
    page = open_next()
    panel = panel_of(page)
    expect(panel).to_contain_text("Write an answer above", timeout=WAIT)
    column = panel.locator("xpath=..")
    column.get_by_text("Write 10").click()
    settled(page)
    told(panel)
    tokens = panel.locator(".tokens .token").evaluate_all("all => all.map(one => one.firstChild.textContent)")
    assert "".join(tokens).strip() == "".join(pieces(column)).strip()
    assert panel.locator(".sum").inner_text().startswith("KL ")


def test_a_typed_answer_with_score_values_and_a_legend_without_colours(open_next, ppo_run):
    page = open_next()
    panel = panel_of(page)
    type_in(panel, "In Harbor Town.")
    rows = [row.locator("td").all_inner_texts() for row in panel.locator("tbody tr").all()]
    number = lambda text: float(text.replace("−", "-"))  # noqa: E731
    score = re.search(r"score ([+−][0-9.]+) \(by reward\)", panel.locator(".sum").inner_text())
    for *_, penalty, reward, value in rows[:-1]:
        assert penalty == reward and value
    *_, penalty, reward, _ = rows[-1]
    assert number(reward) == pytest.approx(number(penalty) + number(score[1]), abs=0.011)
    for measure, at in (("kl", 2), ("reward", 4), ("value", 5)):
        panel.get_by_label("shown").select_option(measure)
        marks = panel.locator(".tokens .token").evaluate_all(
            """all => all.map(one => [one.querySelector("sub").textContent, one.className.split(" ").pop(),
                 getComputedStyle(one).borderBottomStyle])"""
        )
        assert [mark[0] for mark in marks] == [row[at] for row in rows]
        for text, kind, line in marks:
            sign = {"+": ("more", "solid"), "−": ("less", "dashed")}.get(text[0], ("", "none"))
            assert (kind if kind != "token" else "", line) == sign
    legend = panel.locator(".legend")
    assert legend.locator(".token").all_inner_texts() == ["−", "+"] and "dashed" in legend.inner_text()
    panel.get_by_text("Back to the written one").click()
    expect(panel).to_contain_text("Write an answer above")


def test_what_is_typed_runs_nothing_and_what_is_missing_is_named_in_chinese(open_next, ppo_run):
    page = open_next(locale="zh-TW", size="phone")
    if "DEMO" not in os.environ:
        (ppo_run / "value.safetensors").unlink()
        record = json.loads((ppo_run / "run.json").read_text())
        record["config"]["reward_funcs"] = ["<img src=x onerror='window.hacked = 1'>/reward"]
        (ppo_run / "run.json").write_text(json.dumps(record))
    panel = panel_of(page)
    for text in HOSTILE:
        type_in(panel, text)
        assert panel.locator("script, img, svg, a").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if "DEMO" not in os.environ:
        reward, value = panel.locator(".mistake").all_inner_texts()
        assert "沒有獎勵模型 <img src=x" in reward and "value.safetensors：沒有價值" in value


def test_the_pictures_of_what_ppo_did(open_next, ppo_run):
    """In a column alone: of an answer that is wrong, and by reward, on a phone, in the dark and in Chinese."""
    dark = {"locale": "zh-TW", "size": "phone", "color_scheme": "dark"}
    for name, options, asked, typed, measure in (
        ("next-ppo", {}, "Where does Sam live?", "Sam lives in Lakeside.", "kl"),
        ("next-ppo-phone", dark, "山姆住在哪裡？", "山姆住在河口鎮。", "reward"),
    ):
        page = open_next(**options)
        panel = panel_of(page)
        for other in page.locator(".column").filter(has_not=page.locator(".change[open]")).all()[::-1]:
            other.get_by_role("button", name=re.compile("Remove|移除")).click()
        page.locator("#text").fill(asked)
        settled(page)
        panel = page.locator(".column .change")
        type_in(panel, typed)
        panel.locator("select").nth(1).select_option(measure)
        assert panel.locator(".tokens .token").count() == panel.locator("tbody tr").count()
        if "SCREENS" in os.environ:
            page.locator(".column").screenshot(path=Path(os.environ["SCREENS"]) / f"{name}.png")
