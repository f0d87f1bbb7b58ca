"""The Runs page in a real browser: it follows a PPO run from before its first step to its end, without a reload.

`make test-browser` runs it. With SCREENS=docs/screens it makes the pictures of docs/ui.md anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving.conftest import HOSTILE, SIZES, Site, picture, served
from serving.test_runs import HACKED, WEIGHTS, put_run
from stores import new_store
from test_doctor import logs

from rlhf_kit.report.doctor import REMEDIES
from rlhf_kit.serving.folder import contents_of
from tests.tiny_stages import PPO, QUIET

ROLLOUTS = 50


@pytest.fixture
def top(tmp_path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def runs_site(tmp_path, top) -> Iterator[Site]:
    yield from served(new_store(tmp_path), contents=contents_of(top))


@pytest.fixture
def training(policy, tokenizer, tmp_path, top) -> Iterator[subprocess.Popen]:
    """A PPO run of a model that nobody has trained: the doctor sees that its completions never end."""
    policy.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": [{"role": "user", "content": f"hello {number}"}]} for number in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed = {"tests.rewards:brief": "tests.rewards:brief_slowly", "8": str(4 * ROLLOUTS)}  # of 4 completions each
    slow = [changed.get(word, word) for word in PPO]
    options = ["--model_name_or_path", tmp_path / "model", "--dataset_name", tmp_path / "prompts.jsonl"]
    command = [sys.executable, "-m", "rlhf_kit", "ppo", *options, *QUIET, *slow, "--output_dir", top / "ppo"]
    run = subprocess.Popen([*map(str, command)], cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
    yield run
    run.kill()
    run.wait()


def test_a_run_is_followed_to_its_end_without_a_reload(browse, runs_site, training):
    page = browse(runs_site)
    assert "No run has begun here yet" in page.locator("#list").inner_text()
    page.evaluate("window.loaded_once = true")
    page.wait_for_selector("#list a", timeout=60_000)
    assert page.locator("#list .state").inner_text() == "running"
    assert page.evaluate("window.loaded_once")
    page.click("#list a")
    page.wait_for_selector("#curves svg")
    page.evaluate("window.loaded_once = true")
    charts, findings, steps = page.locator("#curves figure"), page.locator("#findings"), []
    end = time.monotonic() + 120
    while page.locator("#now .state").inner_text() != "ended" and time.monotonic() < end:
        label = page.locator('#curves svg[aria-label^="KL"] circle').count()
        steps += [label] if label not in steps[-1:] else []
        page.wait_for_timeout(200)
    assert len(steps) >= 3 and steps == sorted(steps), steps  # more points, again and again, while it trained
    page.wait_for_function(f"document.querySelector('#now').innerText.match(/Step\\s*{2 * ROLLOUTS}\\b/)")
    assert charts.count() >= 8 and page.locator('#curves svg[aria-label^="KL"] circle').count() == ROLLOUTS
    assert REMEDIES["never_ends"].title in findings.inner_text() and "serious" in findings.inner_text()
    assert page.evaluate("window.loaded_once") and training.wait(60) == 0


def test_the_pictures_of_the_documents(browse, runs_site, top):
    put_run(top / "ppo-no-kl", logs(rewards__truth=lambda t, n: 0.5 - 0.4 * t + 0.05 * n), WEIGHTS)
    page = browse(runs_site, "/runs/ppo-no-kl")
    page.set_viewport_size({"width": 1000, "height": 1000})
    page.wait_for_selector("#curves svg")
    picture(page, "ui-run")
    phone = browse(runs_site, "/runs/ppo-no-kl", size="phone", locale="zh-TW", color_scheme="dark")
    phone.wait_for_selector("#curves svg")
    assert "獎勵作弊" in phone.locator("#findings").inner_text()
    picture(phone, "ui-run-phone")


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_screen_and_no_name_runs(browse, runs_site, top, size):
    for text in HOSTILE:
        name = text.replace("/", "|")
        put_run(top / name, [row | {f"rewards/{name}": 1.0} for row in HACKED], {"stage": name, "config": {}})
    page = browse(runs_site, "/runs", size=size)
    addresses = [link.get_attribute("href") for link in page.locator("#list a").all()]
    assert len(addresses) == len(HOSTILE)
    for address in ["/runs", *addresses]:
        page.goto(f"http://127.0.0.1:{runs_site.port}{address}")
        page.wait_for_selector("#curves svg, #list a")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address
        assert page.evaluate("window.hacked") is None and page.locator("main img, main script").count() == 0


def test_charts_have_their_colours_in_both_themes(browse, runs_site, top):
    """The page forbids styles of its own: they come from a file."""
    put_run(top / "ppo", HACKED, WEIGHTS)
    colours = set()
    for scheme in ("light", "dark"):
        page = browse(runs_site, "/runs/ppo", color_scheme=scheme)
        page.wait_for_selector("#curves svg .curve")
        colours.add(page.evaluate("getComputedStyle(document.querySelector('#curves svg .curve')).stroke"))
    assert colours == {"rgb(0, 114, 178)", "rgb(86, 180, 233)"}  # --blue of charts.LIGHT and charts.DARK


def test_a_server_that_is_away_is_told_and_asked_again(browse, runs_site, top):
    put_run(top / "ppo", HACKED, WEIGHTS)
    page = browse(runs_site, "/runs/ppo")
    page.wait_for_selector("#curves svg")
    page.context.set_offline(True)
    page.evaluate("look()")
    page.wait_for_selector("#away:visible")
    page.context.set_offline(False)
    page.wait_for_selector("#away", state="hidden")
    browse.faults[:] = [fault for fault in browse.faults if "ERR_INTERNET_DISCONNECTED" not in fault]
