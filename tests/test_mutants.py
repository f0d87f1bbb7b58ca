"""The rows of `tests/mutants.py` fit the code as it stands: each text is there, once, and each test exists."""

import re
from pathlib import Path

from mutants import mutants

ROOT = Path(__file__).parents[1]
RULE = re.compile(r"^\| .* \| `(tests/\S+)` \| `(test_\w+)` \|$", re.MULTILINE)


def test_each_text_stands_in_its_file_once():
    sources = {}
    for mutant in mutants():
        source = sources.setdefault(mutant.file, (ROOT / mutant.file).read_text(encoding="utf-8"))
        assert source.count(mutant.text) == 1, f"{mutant}: found {source.count(mutant.text)} times"
        assert mutant.text != mutant.broken


def test_each_test_exists():
    for mutant in mutants():
        file, _, name = mutant.test.partition("::")
        assert f"def {name.partition('[')[0].rpartition('::')[2]}(" in (ROOT / file).read_text(encoding="utf-8"), (
            mutant
        )


def test_no_row_stands_twice():
    assert len(set(mutants())) == len(mutants())


def test_every_guarantee_has_a_mutant():
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    rules = {f"{file}::{name}" for file, name in RULE.findall(page)}
    assert len(rules) > 15
    missing = rules - {mutant.test.partition("[")[0] for mutant in mutants()}
    assert not missing, f"no broken line turns these red: {sorted(missing)}"
