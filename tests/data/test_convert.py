import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_kit.data.interchange import FORMATS, read
from rlhf_kit.data.labelers import METHODS
from tests.tiny_stages import run_command

FIXTURES = Path(__file__).parents[1] / "fixtures" / "interchange"


def test_a_file_is_converted_and_told(tmp_path, capsys):
    source, target = FIXTURES / "label-studio.json", tmp_path / "out.jsonl"
    assert run_command("convert", [str(source), str(target), "--from", "label-studio"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{source}: 4 rankings 筆排序 read (label-studio)",
        "  left out 略過 1: a cancelled annotation",
        "  left out 略過 1: several buckets whose names are not ranks",
        "  left out 略過 1: no annotation",
        "labelers 標註者: 2 ranked 1 of the prompts together; two of them agree on 100.0% of 2 comparisons 一致率",
        "  at most 100.0% can be reached against one labeler 準確率上限",
        f"{target}: 4 rankings 筆排序 written (ranked)",
    ]
    assert len(read(target, "ranked")[0]) == 4


def test_labelers_are_merged(tmp_path, capsys):
    source, target = FIXTURES / "argilla.json", tmp_path / "out.jsonl"
    assert (
        run_command("convert", [str(source), str(target), "--from", "argilla", "--to", "trl", "--merge", "mean-rank"])
        == 0
    )
    told = capsys.readouterr().out
    assert "agree on 66.7% of 3 comparisons" in told and "at most 78.9% can be reached" in told
    assert "merged 合併 (mean-rank): 2 rankings" in told
    assert "1 ranking 筆排序 written (trl)\n  left out 略過 1: all answers tie" in told
    pairs = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(pair["rejected"], pair["weight"]) for pair in pairs] == [("Precipitation ensues on saturation.", 0.5)] * 2


def test_labelers_who_agree_less_than_by_chance(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    ranking = {"prompt": "p", "completions": ["a", "b"]}
    rows = [{**ranking, "ranks": [1, 2], "labeler": "x"}, {**ranking, "ranks": [2, 1], "labeler": "y"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_command("convert", [str(source), str(tmp_path / "out.jsonl"), "--from", "ranked"]) == 0
    assert "below chance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{in}", "{in}", "--from", "trl"], "is the file of IN"),
        (["{in}", "{out}", "--from", "webgpt"], "holds no ranking in the format webgpt"),
        (["{in}", "{out}.txt", "--from", "trl"], "give a .jsonl or a .json file"),
        (["nowhere.jsonl", "{out}", "--from", "trl"], "nowhere.jsonl does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, capsys, arguments, message):
    names = {"in": tmp_path / "in.jsonl", "out": tmp_path / "out.jsonl"}
    shutil.copy(FIXTURES / "trl.jsonl", names["in"])
    assert run_command("convert", [argument.format(**names) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("rlhf-kit convert: ") and message in told.err
    assert told.err.count("\n") == 1 and not told.out
    assert list(tmp_path.iterdir()) == [names["in"]]
    assert names["in"].read_bytes() == (FIXTURES / "trl.jsonl").read_bytes()


def test_an_unknown_format_is_refused(capsys):
    assert run_command("convert", ["a", "b", "--from", "parquet"]) == 2
    assert "--source_format: got 'parquet', needs one of " in capsys.readouterr().err


def test_help_needs_neither_torch_nor_datasets():
    code = (
        "import sys\nfrom rlhf_kit.cli import main\n"
        "assert main(['convert', '--help']) == 0\n"
        "assert not {'torch', 'datasets', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "--merge" in done.stdout


def test_the_page_about_it_is_true(tmp_path, monkeypatch, capsys):
    """Its commands run in their order, and the first says what stands below it."""
    page = (Path(__file__).parents[2] / "docs" / "interchange.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^rlhf-kit convert (.*)$", page, re.MULTILINE)
    told = []
    for command in commands:
        arguments = command.split()
        if arguments[0] == "export.json":
            shutil.copy(FIXTURES / f"{arguments[arguments.index('--from') + 1]}.json", "export.json")
        assert run_command("convert", arguments) == 0
        told.append(capsys.readouterr().out)
    assert len(told) == 5 and f"```text\n{told[0]}```" in page
    assert set(re.findall(r"^\| `(\w[\w-]*)` \|", page, re.MULTILINE)) == {*FORMATS, *METHODS}
