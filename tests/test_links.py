"""Pages of one run lead to each other, and nowhere else: a demo's, its suite's, its measurements'."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from transformers import GPT2LMHeadModel

from rlhf_kit import demo
from rlhf_kit.cli import main
from rlhf_kit.eval.suite.task import Suite
from rlhf_kit.pages.shell import REPORT, WHOLE, document, link_back, write_page
from rlhf_kit.report.page import write_report
from rlhf_kit.storage import RUN, Folder
from tests.test_escaping import Tags
from tests.tiny_stages import run_command


def links_of(folder: Path) -> dict[str, set[str]]:
    """Of each page below the folder the pages and files that it leads to, by their place in it; every one is there."""
    found = {}
    for page in sorted(folder.rglob("*.html")):
        targets = [page.parent / unquote(link) for link in Tags(page.read_text(encoding="utf-8")).links]
        assert all(target.is_file() for target in targets), (page, targets)
        name = page.relative_to(folder).as_posix()
        found[name] = {target.resolve().relative_to(folder.resolve()).as_posix() for target in targets}
    return found


@pytest.fixture
def story(tiny_config, tokenizer, tmp_path, monkeypatch):
    """The demo, whose stages are models nobody trained, and whose suite is short."""
    tiny_config.n_positions = 400
    torch.manual_seed(0)
    GPT2LMHeadModel(tiny_config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "the cat sat on the mat"}) + "\n")
    text = {"data": str(tmp_path / "text.jsonl")}
    sums = {"name": "sums", "command": "icl", "options": {"tasks": ["world-sums"], "shots": [0]}, "figure": "acc"}
    rows = [
        sums,
        {"name": "text", "command": "perplexity", "options": text, "figure": "bits_per_byte", "paired": "nll"},
    ]
    rows = [row | {"items": 1, "higher_is_better": True} for row in rows]
    (tmp_path / "s.yaml").write_text(json.dumps(rows))

    def stage(self, name, *_, **options):
        folder = self.folder / demo.FOLDERS.get(name, name)
        shutil.copytree(tmp_path / "model", folder, dirs_exist_ok=True)
        Folder(folder, RUN).settle(*(path.name for path in folder.iterdir()))

    run = demo.runner.run
    monkeypatch.setattr(demo.Demo, "stage", stage)
    monkeypatch.setattr(demo.Demo, "measure", lambda self: {"samples": [], "stages": {}})
    monkeypatch.setattr(demo, "show", lambda *_: None)

    def of_the_story(kind, options):
        return run(kind, replace(options, suite=tmp_path / "s.yaml") if kind is Suite else options)

    monkeypatch.setattr(demo.runner, "run", of_the_story)
    return tmp_path / "runs" / "demo"


def test_every_page_of_a_demo_leads_to_the_others(story, monkeypatch, capsys):
    monkeypatch.chdir(story.parents[1])
    assert run_command("demo", ["--output_dir", "runs/demo", "--pretrain"]) == 0
    suite, tasks = "suite/report.html", [f"suite/{name}/sums/report.html" for name in demo.SUITE]
    results = {f"suite/{name}/text/results.json" for name in demo.SUITE}
    assert links_of(story) == {
        REPORT: {suite},
        suite: {REPORT, *tasks, *results},
        **{task: {suite} for task in tasks},
    }
    before = links_of(story)
    models = [f"{name}=runs/demo/{name}" for name in demo.SUITE]
    assert main(["eval", "suite", "--models", *models, "--output", "runs/demo/suite"]) == 0
    assert links_of(story) == before  # each page is written anew


def test_a_suite_that_ends_early_is_not_led_to(story, tmp_path, capsys):
    (tmp_path / "text.jsonl").unlink()
    assert run_command("demo", ["--output_dir", str(story), "--pretrain"]) == 2
    assert links_of(story) == {REPORT: set(), "suite/base/sums/report.html": set()}
    write_report(story / REPORT, {}, {}, {"suite/base/sums/report.html": "a", "suite/report.html": "b"})
    assert links_of(story)[REPORT] == {"suite/base/sums/report.html"}


def test_a_page_is_led_back_once_and_only_where_it_is_ours(tmp_path):
    whole, part = tmp_path / REPORT, Folder(tmp_path / "a b" / "c", "eval icl")
    link_back(part.path / REPORT, part.by, whole)
    assert not part.path.exists()
    whole.touch()
    page = part.write(REPORT, document("", ["<h1>x</h1>"]))
    for _ in range(2):
        link_back(page, part.by, whole)
        assert page.read_text().count(f'href="../../{REPORT}">{WHOLE}') == 1 and not part.foreign([REPORT])
    assert links_of(tmp_path)[f"a b/c/{REPORT}"] == {REPORT}
    new, before = document("", ["new"]), page.read_text()
    write_page(part, REPORT, new)
    assert page.read_text() != before and page.read_text().partition(WHOLE)[0] == before.partition(WHOLE)[0]
    whole.unlink()
    assert write_page(part, REPORT, new).read_text() == new == write_page(part, "none.html", new).read_text()
    for command in ("eval suite", part.by):
        page.write_text(before := document("", ["mine"]))
        link_back(page, command, whole)
        assert page.read_text() == before
