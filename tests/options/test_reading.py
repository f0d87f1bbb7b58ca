"""One reader for command lines, YAMLs and mappings: strict, typed, all problems together."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rlhf_kit.errors import UserError
from rlhf_kit.options.reading import read_record


@dataclass
class Options:
    source: Path = field(default=None, metadata={"help": "What is read.", "positional": "IN", "required": True})
    model_name_or_path: list[str] = field(default_factory=list, metadata={"help": "Models.", "whole": True})
    dataset_name: str | None = None
    output_dir: Path | None = None
    dtype: str = field(default="float32", metadata={"choices": ("float32", "bfloat16")})
    limit: int | None = None
    threshold: float = 0.0
    sides: tuple[str, str] | None = None
    truth: list[str] = field(default_factory=list, metadata={"repeats": True})
    shots: list[int] = field(default_factory=list)
    json: bool = False
    target_format: str = field(default="ranked", metadata={"short": "to"})
    predictions: Path | None = field(default=None, metadata={"group": "answers"})
    human: bool = field(default=False, metadata={"group": "answers"})


def options(*argv, human=True):
    return read_record("score", Options, [*(["--human"] if human else []), *argv])


def refused(*argv, **more):
    with pytest.raises(UserError) as caught:
        options(*argv, **more)
    return str(caught.value)


def test_short_forms_dashes_and_words_by_place():
    record = options(
        "in.json", "--model", "a,b", "c d", "--data=x", "--output", "out", "--to", "trl", "--shots", "0,2"
    )
    assert record.source == Path("in.json") and record.output_dir == Path("out")
    assert record.model_name_or_path == ["a,b", "c d"]  # names of files may hold commas and spaces
    assert (record.dataset_name, record.target_format, record.shots) == ("x", "trl", [0, 2])
    assert options("in.json", "--model-name-or-path", "m").model_name_or_path == ["m"]
    assert options("in.json", "--models", "m", "--model", "n").model_name_or_path == ["n"]  # the later one
    assert options("--source", "in.json").source == Path("in.json")


def test_a_switch_and_a_repeated_option_leave_the_words_by_place_alone():
    assert options("--json", "in.json").source == Path("in.json")
    record = options("--truth", "a", "in.json", "--truth", "b,c")
    assert record.source == Path("in.json") and record.truth == ["a", "b,c"]
    assert options("--sides", "left", "right", "in.json").sides == ("left", "right")
    assert options("in.json", "--json", "--no_json").json is False


@pytest.mark.parametrize("text, value", [("-1.5", -1.5), ("-1e9", -1e9), ("-.5", -0.5)])
def test_negative_numbers_are_values(text, value):
    assert options("in.json", "--threshold", text).threshold == value
    assert options("in.json", f"--threshold={text}").threshold == value


def test_an_infinity_is_a_value_that_is_refused_by_name():
    assert '--threshold: got "-inf", needs a number.' in refused("in.json", "--threshold", "-inf")


def test_all_problems_are_reported_together(tmp_path):
    config = tmp_path / "options.yaml"
    config.write_text("limt: 3\nlimit: many\n")
    message = refused("--config", str(config), "--dtype", "float23", "--modle", "m", "--sides", "one", "--limit=0")
    for part in (
        f"{config}: limt: no such option. Did you mean 'limit'?",
        "--dtype: got 'float23', needs one of float32, bfloat16. Did you mean 'float32'?",
        "--modle: no such option. Did you mean 'model'?",
        '--sides: got "one", needs 2 values or none.',
        "--limit=0 must be at least 1",
        "IN is missing: What is read.",
    ):
        assert part in message
    assert message.startswith("6 problems")


def test_the_command_line_stands_above_the_yaml(tmp_path):
    config = tmp_path / "options.yaml"
    config.write_text("source: in.json\nlimit: 3\nmodel: [a, b]\nno-such: 1\n")
    with pytest.raises(UserError, match="no_such: no such option"):
        options("--config", str(config))
    config.write_text("source: in.json\nlimit: 3\nmodel: [a, b]\njson: yes\n")
    record = options("--config", str(config), "--limit", "5", "--model", "c")
    assert (record.limit, record.model_name_or_path, record.json) == (5, ["c"], True)


def test_two_spellings_of_one_option_in_a_yaml_are_refused(tmp_path):
    config = tmp_path / "options.yaml"
    config.write_text("data: a\ndataset_name: b\nsource: s\n")
    assert "dataset_name and" in refused("--config", str(config)) and "are the same option" in refused(
        "--config", str(config)
    )


def test_exactly_one_of_a_group():
    assert refused("in.json", human=False) == "give one of --predictions, --human."
    assert "exclude each other" in refused("in.json", "--predictions", "p.json")


def test_names_of_other_projects():
    assert "Here write --dtype." in refused("in.json", "--torch_dtype", "float32")
    assert "Here write name:config in --dataset_name." in refused("in.json", "--dataset_config", "en")


def test_a_mapping_is_read_by_the_same_rules():
    given = {"source": "in.json", "human": True, "data": "d", "limit": 2, "shots": [0, 1], "no-name": 1, "json": "x"}
    with pytest.raises(UserError) as caught:
        read_record("entry", Options, given)
    assert "no_name: no such option" in str(caught.value) and 'json: got "x", needs true or false' in str(caught.value)
    del given["no-name"], given["json"]
    record = read_record("entry", Options, given)
    assert (record.dataset_name, record.limit, record.shots) == ("d", 2, [0, 1])
