"""Files that are broken, endless or fill the memory, to every command that reads one: one message, exit status 2."""

import gzip
import os
from pathlib import Path

import pytest
from bad_places import ended, made

from rlhf_kit.cli import main
from rlhf_kit.errors import UserError
from rlhf_kit.inputs import DEEPEST, MOST_YAML, parse_json, parse_yaml, read_json, read_yaml

MANY = 100_000
JSON = {
    "deep lists": "[" * MANY + "]" * MANY,
    "deep objects": '{"a":' * MANY + "1" + "}" * MANY,
    "a list that Python itself still reads": "[" * 300 + "]" * 300,
    "a value of a row that is deep": '{"prompt": ' + "[" * 300 + "]" * 300 + "}",
    "an integer of thousands of digits": '{"data": ' + "9" * 10_000 + "}",
    "a key twice": '{"data": [1], "data": [2]}',
    "cut off": '{"data": [{"prompt": "a',
    "no JSON": "prompt: a",
    "a number": "1",
    "null": "null",
    "an empty list": "[]",
    "lists in a list": "[[1], [2]]",
    "an empty object": "{}",
    "nothing": "",
    "blanks": " \n\n ",
    "a long line": '{"x": "' + "x" * 5_000_000 + '"}',
    "lines of JSON": '{"a": 1}\n{"a": 2}\n',
    "bytes": b"\xff\x00\x81",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "gzip": gzip.compress(b"{}"),
}
YAML = {
    "deep lists": "a: " + "[" * MANY,
    "deep mappings": "a: " + "{a: " * MANY,
    "a deep list that is read": "a: " + "[" * 150 + "]" * 150,
    "anchors that explode": "a0: &a0 [x, x]\n"
    + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
    "merges that explode": "a0: &a0 {x: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 30)),
    "long text by anchors": "a: &a " + "x" * 100_000 + "\nb: [" + "*a, " * 1000 + "]\n",
    "an anchor within itself": "a: &a [*a]",
    "an alias of nothing": "a: *b",
    "a key twice": "seed: 1\nseed: 2\n",
    "a list as a key": "? [a]\n: 1\n",
    "a mapping as a key": "? {a: 1}\n: 1\n",
    "a tag of Python": "a: !!python/object/apply:os.system [true]",
    "a tag that does not fit": "seed: !!timestamp x\n",
    "a truth that is none": "seed: !!bool x\n",
    "two documents": "a: 1\n---\na: 2\n",
    "too long": "a: 1\n" * (MOST_YAML // 5 + 1),
    "a long line": "a: " + "x" * 5_000_000,
    "a control character": "a: \x01",
    "no YAML": "a: [",
    "a text": "word",
    "a list": "[1, 2]",
    "bytes": b"\xff\x00\x81",
    "UTF-16": "a: 1".encode("utf-16"),
}
PLACES = ("a pipe", "a device", "a folder", "nowhere", "a name too long", "under a file", "a loop of links")
COMMANDS = {  # what reads it, and the arguments; {} is the file
    "score": (".jsonl", "score --model ./m --data {}"),
    "score, a list": (".json", "score --model ./m --data {}"),
    "generate": (".jsonl", "generate ./m --data {}"),
    "convert": (".jsonl", "convert {} out.jsonl --from ranked"),
    "convert, a list": (".json", "convert {} out.jsonl --from hh-rlhf"),
    "references": (".json", "eval score squad --references {} --predictions good.json"),
    "predictions": (".json", "eval score squad --references squad.json --predictions {}"),
    "turns": (".json", "eval score coqa --references coqa.json --predictions {}"),
    "stories": (".json", "eval score coqa --references {} --predictions good.json"),
}
TABLES = {
    "sft": "sft --config {}",
    "ppo": "ppo --config {}",
    "suite": "eval suite --suite {} --models a=./m",
    "transfer": "eval transfer --table {} --output out",
}
SQUAD = '{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "q", "answers": [{"text": "a"}]}]}]}]}'
COQA = (
    '{"data": [{"id": "s", "source": "x", "story": "a", "questions": [{"turn_id": 1, "input_text": "?"}], '
    '"answers": [{"turn_id": 1, "input_text": "a", "span_text": "a", "span_start": 0, "span_end": 1}]}]}'
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder; a reader that does not end is stopped."""
    monkeypatch.chdir(tmp_path)
    Path("squad.json").write_text(SQUAD)
    Path("coqa.json").write_text(COQA)
    Path("m").mkdir()
    Path("m/config.json").write_text('{"model_type": "gpt2"}')
    Path("good.json").write_text('{"q": "a"}')
    with ended():
        yield


def refused(arguments: str, path: str, capsys) -> str:
    try:
        status = main([part.format(path) for part in arguments.split()])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2, said[:500]
    assert said.startswith("rlhf-kit ") and len(said) < 4000, said[:500]
    return said


@pytest.mark.parametrize("kind", JSON)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_json_file_is_one_message(command, kind, capsys):
    suffix, arguments = COMMANDS[command]
    content = JSON[kind]
    Path(f"bad{suffix}").write_bytes(content.encode() if isinstance(content, str) else content)
    assert "bad.json" in refused(arguments, f"bad{suffix}", capsys)


@pytest.mark.parametrize("kind", YAML)
@pytest.mark.parametrize("command", TABLES)
def test_a_bad_yaml_file_is_one_message(command, kind, capsys):
    content = YAML[kind]
    Path("bad.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    said = refused(TABLES[command], "bad.yaml", capsys)
    assert "bad.yaml" in said or kind == "long text by anchors"


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("command", [*COMMANDS, *TABLES])
def test_what_is_no_file_is_one_message(command, kind, capsys):
    suffix, arguments = COMMANDS[command] if command in COMMANDS else (".yaml", TABLES[command])
    refused(arguments, made(kind, suffix, "good.json"), capsys)


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json"])
@pytest.mark.parametrize("kind", [*JSON, *PLACES])
def test_a_bad_record_of_a_run_is_one_message_or_not_used(name, kind, capsys):
    os.mkdir("run")
    good = {"metrics.jsonl": '{"step": 1, "loss": 1.0}\n', "run.json": '{"config": {}}'}
    for other, content in good.items():
        Path("run", other).write_text(content)
    path = Path("run", name)
    if kind in JSON:
        content = JSON[kind]
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    elif kind not in ("nowhere", "a name too long", "under a file"):
        path.unlink()
        os.rename(made(kind, "", "good.json"), path) if kind != "a loop of links" else os.symlink(name, path)
    assert main(["doctor", "run"]) in (0, 1, 2)
    said = capsys.readouterr()
    assert len(said.err) + len(said.out) < 4000


@pytest.mark.parametrize("name", ["results.json", "items.jsonl"])
@pytest.mark.parametrize("kind", JSON)
def test_bad_results_are_one_message(name, kind, capsys):
    os.mkdir("run")
    Path("run/results.json").write_text('{"settings": {}, "groups": {}, "scores": {}, "reportable": true}')
    Path("run/items.jsonl").write_text("{}\n")
    content = JSON[kind]
    Path("run", name).write_bytes(content.encode() if isinstance(content, str) else content)
    refused("eval compare {} run", "run", capsys)


@pytest.mark.parametrize("parse, text", [(parse_json, "[{}]"), (parse_yaml, "a: [{}]")])
def test_what_is_within_the_bounds_is_read(parse, text):
    levels = DEEPEST - 2
    assert parse(text.format("[" * levels + "]" * levels))


@pytest.mark.parametrize("place", ["good.json", "good.json/out", "x" * 300, "new/" + "x" * 300, "/proc/out"])
@pytest.mark.parametrize(
    "command",
    [
        "demo --output_dir {}",
        "sft --config world/sft --model_name_or_path none --output_dir {}",
        "merge none --output_dir {}",
        "eval lambada --model none --data none.jsonl --output {}",
        "convert ranked.jsonl {}/out.jsonl --from ranked",
        "score --model none --data ranked.jsonl --output {}/out.jsonl",
        "generate ./m --data ranked.jsonl --output {}/out.jsonl",
        "chat ./m --output {}/out.jsonl",
    ],
)
def test_a_place_where_nothing_can_be_written_is_one_message(command, place, capsys):
    Path("ranked.jsonl").write_text('{"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2]}\n')
    refused(command, place, capsys)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "read, content, told",
    [
        (read_json, JSON["a value of a row that is deep"], "nested too deeply, in more than"),
        (read_json, JSON["a key twice"], "an object has `data` twice"),
        (read_yaml, YAML["anchors that explode"], "with its anchors written out"),
    ],
)
def test_the_bound_that_was_met_is_named(read, content, told):
    Path("bad").write_text(content)
    with pytest.raises(UserError, match=told):
        read(Path("bad"))


def test_a_device_is_named_before_it_is_read():
    with pytest.raises(UserError, match="/dev/null is a device; give a file."):
        read_json(Path("/dev/null"))
