"""The pages in Traditional Chinese say what the English ones say: same code, sections, figures and links."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {DOCS / path.name: path for path in sorted((DOCS / "zh-TW").glob("*.md"))}
PAGES[ROOT / "README.md"] = ROOT / "README.zh-TW.md"
NEEDED = {
    "chat.md",
    "compare-methods.md",
    "coqa.md",
    "data.md",
    "doctor.md",
    "eval-reward.md",
    "feedback.md",
    "files.md",
    "guarantees.md",
    "interchange.md",
    "methods.md",
    "next.md",
    "plan.md",
    "scale.md",
    "serve.md",
    "tour.md",
    "transfer.md",
    "ui.md",
}  # what a learner reads
MAINLAND = "數據 文件 默認 信息 軟件 程序 命令行 內存 字符 加載 運行 調用 支持 網絡 質量 視頻 緩存 點贊 自助法 數組"
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def texts(page: Path) -> tuple[str, str]:
    return tuple(path.read_text(encoding="utf-8") for path in (page, PAGES[page]))


def code_of(text: str) -> list[tuple[str, object]]:
    """Language and content of each block, without the comments where the language has some (a tree: behind a gap)."""
    return [(language, _without_comments(language, code)) for language, code in _BLOCK.findall(text)]


def _without_comments(language: str, code: str) -> object:
    if language == "python":
        return ast.dump(ast.parse(code))
    if language == "yaml":
        return yaml.safe_load(code)
    if language == "bash":
        return [line.partition("  #")[0].rstrip() for line in code.splitlines() if not line.startswith("#")]
    if language == "tree":
        return [re.match(r" *\S+(?: \S+)*", line)[0] for line in code.splitlines()]
    return code


def sections_of(text: str) -> list[tuple[int, str]]:
    """Level of each heading and the text below it, without blocks of code."""
    parts = re.split(r"^(#+) .*\n", _BLOCK.sub("", text), flags=re.MULTILINE)
    return [(len(marks), body) for marks, body in zip(parts[1::2], parts[2::2], strict=True)]


def numbers_of(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"\]\(.*?\)", "]", text)))


def tables_of(text: str) -> list[tuple[int, list[str], list[str]]]:
    """Of each line of a table: columns, numbers, code."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [(len(re.findall(r"(?<!\\)\|", row)), numbers_of(row), inline_code(row)) for row in rows]


def inline_code(text: str) -> list[str]:
    return sorted(set(re.findall(r"(?<!`)`([^`]+)`(?!`)", text)))


def targets_of(path: Path) -> set[str | Path]:
    links = re.findall(r"\]\(([^)#]+)", _BLOCK.sub("", path.read_text(encoding="utf-8")))
    return {link if link.startswith("https:") else (path.parent / link).resolve() for link in links}


def test_the_pages_that_a_learner_needs_are_there():
    assert {page.name for page in PAGES} >= NEEDED


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_both_pages_show_the_same_code(page):
    english, chinese = map(code_of, texts(page))
    assert english and chinese == english


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_both_pages_have_the_same_sections_names_and_figures(page):
    english, chinese = map(sections_of, texts(page))
    assert [level for level, _ in chinese] == [level for level, _ in english]
    for (_, original), (_, translated) in zip(english, chinese, strict=True):
        assert tables_of(translated) == tables_of(original)
        assert inline_code(translated) == inline_code(original)
        assert set(numbers_of(translated)) == set(numbers_of(original))
        assert translated.count("\n* ") == original.count("\n* ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_the_same_pages_in_chinese_where_there_are_such(page):
    english, chinese = targets_of(page), targets_of(PAGES[page])
    assert not [path for path in english | chinese if isinstance(path, Path) and not path.is_file()]
    assert PAGES[page] in english and page in chinese
    expected = {PAGES.get(target, target) for target in english - {PAGES[page]}}
    assert chinese - {page} == expected - {PAGES[page]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_chinese_is_taiwans(page):
    text = PAGES[page].read_text(encoding="utf-8")
    assert not [word for word in MAINLAND.split() if word in text]
    letters = set(re.findall(r"[\u4e00-\u9fff]", text))
    assert len(letters) > 100
    for letter in letters:
        letter.encode("big5")  # has no simplified letters
