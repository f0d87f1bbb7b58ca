"""One table of bounds: every number that can be set has one, and each way to set it asks for it."""

import dataclasses
import math
import re
import typing

import pytest
from peft import LoraConfig
from transformers import TrainingArguments
from trl import SFTConfig

from rlhf_kit.cli import main
from rlhf_kit.cli.commands import COMMANDS, STAGES
from rlhf_kit.errors import UserError
from rlhf_kit.eval.extractive.finetune import ExtractiveConfig
from rlhf_kit.models.adapters import trainable
from rlhf_kit.options.bounds import BOUNDS, bound_of, broken_rule, number_faults
from rlhf_kit.options.coercion import members
from rlhf_kit.options.declared import declared_fields, declared_in_source
from rlhf_kit.options.reading import read_cli
from rlhf_kit.ppo import PPOConfig
from rlhf_kit.reward import RewardConfig
from rlhf_kit.sft import SFTTrainer
from rlhf_kit.stages.arguments import DataArguments, ModelArguments, RunArguments, parse
from rlhf_kit.stages.calibration import CalibrationArguments
from rlhf_kit.stages.mlm import MaskedConfig
from rlhf_kit.stages.ppo import PPOArguments
from rlhf_kit.stages.pretrain import PretrainConfig
from rlhf_kit.training import Trainer
from tests.test_structure import FILES

CONFIGS = (SFTConfig, RewardConfig, PPOConfig, PretrainConfig, MaskedConfig, ExtractiveConfig)
RECORDS = (*CONFIGS, PPOArguments, CalibrationArguments, ModelArguments, DataArguments, RunArguments)
NUMBERS = [
    (record, item.name, hint)
    for record in RECORDS
    for item in dataclasses.fields(record)
    if {int, float} & {*typing.get_args(hint := typing.get_type_hints(record)[item.name]), hint}
]


@pytest.mark.parametrize("record", RECORDS)
def test_every_number_that_can_be_set_has_a_bound(record):
    for kind, name, hint in NUMBERS:
        if kind is record:
            bound = bound_of(name, *(base.__name__ for base in record.__mro__))
            assert bound is not None, f"{record.__name__}.{name} has no bound"
            if bound.whole:
                assert float not in {*typing.get_args(hint), hint}, f"{record.__name__}.{name} may be no whole number"


def test_every_default_is_within_its_bound():
    for record, name, _ in NUMBERS:
        value = next(item.default for item in dataclasses.fields(record) if item.name == name)
        if value is not None and not isinstance(value, str):
            bound = bound_of(name, *(base.__name__ for base in record.__mro__))
            assert broken_rule(value, bound) is None, f"{record.__name__}.{name}"


def test_no_command_reads_a_number_past_the_table():
    for module, path in FILES.items():
        assert not re.search(r"type=(int|float)\b", path.read_text()), module


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, 10**400, -(10**400), 1e300])
@pytest.mark.parametrize("name", BOUNDS)
def test_no_bound_lets_through_what_no_machine_counts_with(name, value):
    assert broken_rule(value, BOUNDS[name])


def test_an_owner_may_ask_for_more():
    assert number_faults("sample", temperature=0) == []
    told = "temperature=0 must be above 0: the n completions of a prompt would all be the same"
    assert number_faults("best_of_n", temperature=0, batch_size=None) == [told]
    assert bound_of("max_length", "MaskedConfig").rule.startswith("be at least 3")
    assert bound_of("max_length", "SFTConfig").rule == "be at least 1"


@pytest.mark.parametrize(
    "words,text,told",
    [
        ("eval coqa --limit", "0", "--limit=0 must be at least 1"),
        ("eval coqa --seed", "-1", "--seed=-1 must lie between 0 and 2**32 - 1"),
        ("eval transfer --seeds", "-1", "--seeds=-1 must lie between 0 and 2**32 - 1"),
        ("eval coqa --shots", "1.5", 'got "1.5", needs a whole number'),
        ("eval icl --shots", "1.5", 'got "1.5", needs a list of whole numbers'),
        ("eval extractive --num_train_epochs", "nan", 'got "nan", needs a number'),
        ("eval extractive --epochs", "0", "--num_train_epochs=0.0 must be above 0"),
        ("eval icl --limit", "9" * 30, "must be at most 2147483647"),
        ("score --std-coef", "x", 'got "x", needs a number'),
    ],
)
def test_an_option_of_a_command_asks_the_table(capsys, words, text, told):
    assert main([*words.split(), text]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [words for words in COMMANDS if words not in STAGES])
def test_every_number_of_a_command_has_a_bound(words):
    for name, option in declared_in_source([*COMMANDS[words].options.values()]).options.items():
        assert not {int, float} & {*members(option.type)} or bound_of(name, *option.owners), name


def test_what_begins_as_a_number_may_be_an_options_value(capsys):
    score = ["eval", "score", "squad2", "--references", "nowhere.json", "--predictions", "-1.json"]
    assert main([*score, "--na-prob-file", "-2.json", "--na-prob-thresh", "-1e9"]) == 2
    assert "nowhere.json" in capsys.readouterr().err  # the numbers and names were taken
    for typed in ("-x", "-info"):
        assert main([*score, "--na-prob-thresh", typed]) == 2
        assert f'--na_prob_thresh: got "{typed}", needs a number' in capsys.readouterr().err


def test_every_other_command_takes_a_negative_number_as_the_value(capsys):
    numbers = [
        (words, name)
        for words in COMMANDS.keys() - STAGES
        for name, option in declared_in_source([*COMMANDS[words].options.values()]).options.items()
        if {int, float} & {*members(option.type)}
    ]
    assert {"std_coef", "seed", "batch_size"} <= {name for _, name in numbers}
    for words, name in numbers:
        for text in ("-1e9", "-.5E+3", "-inf", "-Infinity", "-nan"):
            assert main([*words.split(), f"--{name}", text, "--no_such"]) == 2
            error = capsys.readouterr().err
            assert "no such option" in error and f"{name} needs a value" not in error
            accepted = text in ("-1e9", "-.5E+3") and name in ("null_score_diff_threshold", "na_prob_thresh")
            refusal = re.search(rf"--{name}(=-[\d.]+ must|: got \"{re.escape(text)}\")", error)
            assert bool(refusal) != accepted, (words, name, error)


@pytest.mark.parametrize("text", ["-1e9", "-.5E+3", "-inf", "-nan"])
def test_every_stage_reads_a_negative_number_in_any_form(text):
    problems, declared = [], declared_fields(RECORDS)
    for _, name, _ in NUMBERS:
        assert read_cli([f"--{name}", text], declared, problems) == (None, {name: text})
    assert not problems


def test_a_stage_tells_all_numbers_with_all_else_before_anything_is_read(tmp_path, capsys):
    path = tmp_path / "x.yaml"
    path.write_text("lora_r: 0\nmax_train_samples: -1\n")
    words = "--output_dir x --learning_rate -1 --seed -1 --max_prompt_length 0 --lora_dropout 1 --no_such 1".split()
    assert main(["ppo", "--config", str(path), *words]) == 2
    error = capsys.readouterr().err
    for told in (
        f"{path}: lora_r=0 must be at least 1.",
        f"{path}: max_train_samples=-1 must be at least 1, or null for none.",
        "--learning_rate=-1.0 must not be negative.",
        "--seed=-1 must lie between 0 and 2**32 - 1.",
        "--max_prompt_length=0 must be at least 1, or null for none.",
        "--lora_dropout=1.0 must be at least 0 and below 1.",
        "--no_such: no such option.",
    ):
        assert told in error


def test_a_stage_takes_the_bound_of_its_own_record():
    given = ["--model_name_or_path", "x", "--dataset_name", "x", "--output_dir", "x", "--use_cpu", "--max_length", "2"]
    assert parse("sft", SFTConfig, given).training.max_length == 2
    with pytest.raises(UserError, match=r"--max_length=2 must be at least 3: \[CLS\], a token and \[SEP\]"):
        parse("mlm", MaskedConfig, given)


@pytest.mark.parametrize("make", [SFTTrainer, Trainer])
def test_a_trainer_in_python_asks_the_table(tmp_path, policy, make):
    config = SFTConfig if make is SFTTrainer else TrainingArguments
    args = config(str(tmp_path), use_cpu=True, report_to="none")
    args.learning_rate, args.seed = -1.0, -1
    with pytest.raises(UserError, match="learning_rate=-1.0 must not be negative; seed=-1 must lie"):
        make(policy, args=args)


def test_a_reward_config_in_python_asks_the_table(tmp_path):
    with pytest.raises(UserError, match="max_length=0 must be at least 1, or null for none; center_rewards"):
        RewardConfig(str(tmp_path), max_length=0, center_rewards_coefficient=-1.0)


def test_lora_in_python_asks_the_table(policy):
    with pytest.raises(UserError, match="lora_dropout=1.0 must be at least 0 and below 1"):
        trainable(policy, LoraConfig(r=2, lora_dropout=1.0))
