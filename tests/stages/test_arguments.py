from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy
from trl import SFTConfig

from rlhf_kit.errors import UserError
from rlhf_kit.options.coercion import coerce, describe
from rlhf_kit.options.reading import config_file
from rlhf_kit.stages.arguments import parse
from rlhf_kit.stages.pretrain import PretrainConfig

NEEDED = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o"]


def settings(*argv, needed=NEEDED, cls=PretrainConfig, **options):
    return parse("pretrain", cls, [*needed, "--use_cpu", *argv], **options)


@pytest.mark.parametrize(
    "value, hint, expected",
    [
        ("2e-5", float, 2e-5),
        ("3", float, 3.0),
        ("1e3", int, 1000),
        ("-1", int, -1),
        ("yes", bool, True),
        ("off", bool, False),
        ("no", str, "no"),
        ("none", str | None, None),
        ("", int | None, None),
        ("5", int | str, 5),
        ("5x", int | str, "5x"),
        ("a,b", list[str], ["a", "b"]),
        ("1 2.5", list[float], [1.0, 2.5]),
        ("[1, 2]", list[int], [1, 2]),
        (["a", "b"], str | list[str], ["a", "b"]),
        ('{"a": 1e-5, "b": {"c": true}}', dict[str, Any], {"a": 1e-5, "b": {"c": True}}),
        ({"min_lr": "1e-6"}, dict | str | None, {"min_lr": 1e-6}),
        ("file.json", dict | str | None, "file.json"),
        ("bfloat16", Literal["auto", "bfloat16"], "bfloat16"),
        ("steps", IntervalStrategy | str, IntervalStrategy.STEPS),
    ],
)
def test_text_takes_the_declared_type(value, hint, expected):
    result = coerce(value, hint)
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    "value, hint, needed",
    [
        ("abc", float, "a number"),
        ("nan", float, "a number"),
        ("1.5", int, "a whole number"),
        (True, float, "a number"),
        ("maybe", bool, "true or false"),
        ("half", Literal["auto", "bfloat16"], "one of auto, bfloat16"),
        ("stepz", IntervalStrategy | str, "one of no, steps, epoch"),
        (["a"], float, "a number"),
        ("1,x", list[int], "a list"),
        ("word", dict[str, int], "a mapping"),
    ],
)
def test_a_bad_value_says_what_was_given_and_what_is_needed(value, hint, needed):
    with pytest.raises(ValueError, match=needed) as caught:
        coerce(value, hint)
    assert needed in describe(hint)
    assert str(value).strip("[]'") in str(caught.value).replace("true", "True")


def test_the_command_line_wins_over_yaml_and_yaml_over_the_default(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("learning_rate: 2e-5\nnum-train-epochs: 3\nsave_strategy: no\nseed: 7\n")
    read = settings("--config", str(config), "--learning-rate=1e-3")
    assert read.training.learning_rate == 1e-3
    assert read.training.num_train_epochs == 3.0
    assert read.training.save_strategy == "no"  # YAML 1.1 would call it False
    assert read.training.weight_decay == 0.1
    assert {"learning_rate", "seed"} <= read.given and "weight_decay" not in read.given


def test_switches_lists_and_negative_numbers():
    read = settings("--dry-run", "--no_remove_unused_columns", "--max_steps", "-1", "--lora_target_modules", "a", "b")
    assert read.run.dry_run is True
    assert read.training.remove_unused_columns is False
    assert read.training.max_steps == -1
    assert read.model.lora_target_modules == ["a", "b"]
    assert settings("--resume_from_checkpoint").training.resume_from_checkpoint is True
    assert settings("--resume_from_checkpoint", "x/checkpoint-3").training.resume_from_checkpoint == "x/checkpoint-3"


def test_a_name_that_two_records_share_reaches_both():
    read = settings("--trust_remote_code", cls=SFTConfig)
    assert read.model.trust_remote_code and read.training.trust_remote_code


def test_all_problems_are_told_at_once(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("learnin_rate: 1\nseed: x\n")
    with pytest.raises(UserError) as caught:
        settings(
            "--config", str(config), "--save_steps", "abc", "--log_level", "inf", "--eval_steps", "stray", needed=[]
        )
    message = str(caught.value)
    for part in (
        "run.yaml: learnin_rate: no such option. Did you mean 'learning_rate'?",
        'run.yaml: seed: got "x", needs a whole number.',
        '--save_steps: got "abc", needs a number.',
        "--log_level: got 'inf', needs one of",
        "Did you mean 'info'?",
        '--eval_steps: got "stray"',
        "--model_name_or_path is missing",
        "--dataset_name is missing",
        "--output_dir is missing",
    ):
        assert part in message
    assert message.startswith("8 problems")


def test_a_prefix_of_a_name_is_no_name():
    with pytest.raises(UserError, match="--dataset_nam: no such option. Did you mean 'dataset_name'"):
        settings("--dataset_nam", "x")


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\na: 2\n", "the key 'a' appears twice"),
        ("- a\n- b\n", "needs lines of `key: value`"),
        ("a: [1\n", "is not readable YAML"),
    ],
)
def test_faulty_yaml(tmp_path, text, message):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(UserError, match=message):
        settings("--config", str(config))


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--config", "world/sftt"], "no recipe of that name. Did you mean 'world/sft'"),
        (["--config"], "--config needs the path"),
        (["--learning_rate"], "--learning_rate needs a value: a number"),
        (["word"], '--use_cpu: got "word"'),
        (["--seed", "1", "2"], "'2' is not an option"),
        (["--block_size", "1"], "block_size=1 must be at least 2"),
    ],
)
def test_faulty_command_lines(argv, message):
    with pytest.raises(UserError, match=message):
        settings(*argv)


@pytest.mark.parametrize("name", ["world/sft", "world/sft.yaml", "recipes/world/sft.yaml"])
def test_a_recipe_is_found_by_name_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    found = Path(config_file(name))
    assert found.is_file() and found.parts[-3:] == ("recipes", "world", "sft.yaml")
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "sft.yaml").write_text("seed: 1\n")
    assert (config_file(name) == name) == (name == "world/sft.yaml")  # a file of the user's goes first


def test_a_renamed_option_says_what_to_write():
    with pytest.raises(UserError, match="--response_length: this option was renamed; write max_completion_length"):
        settings("--response_length", "5", renamed={"response_length": "max_completion_length"})


def test_what_a_config_refuses_itself_is_one_sentence():
    @dataclass
    class Picky(TrainingArguments):
        size: int = field(default=1, metadata={"help": "Size."})

        def __post_init__(self):
            super().__post_init__()
            if self.size < 1:
                raise UserError(f"size={self.size} must be at least 1.")

    with pytest.raises(UserError, match="^size=0 must be at least 1.$"):
        settings("--size", "0", cls=Picky)


def test_complete_fills_in_what_the_user_left_open():
    read = settings(complete=lambda values: {**values, "logging_steps": 3.0})
    assert read.training.logging_steps == 3.0 and "logging_steps" not in read.given
