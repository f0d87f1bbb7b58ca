"""Ways to launch that would train something else than was asked for are refused before anything is loaded."""

import json
from types import SimpleNamespace

import pytest
import trl
from transformers import TrainingArguments

from rlhf_kit.errors import UserError
from rlhf_kit.ppo import PPOConfig, PPOTrainer
from rlhf_kit.reward import RewardConfig, RewardTrainer
from rlhf_kit.sft import SFTTrainer
from rlhf_kit.stages import ppo as recipe
from rlhf_kit.training import Trainer
from rlhf_kit.training.launch import sharding_faults
from tests.tiny_stages import run_command

TWO = "2 GPUs are visible to one process.*accelerate launch --num_processes 2.*CUDA_VISIBLE_DEVICES=0"


def two_gpus(args):
    args._n_gpu = 2
    return args


def test_data_parallel_is_refused_by_every_trainer(tmp_path, policy, prompts):
    """Before the model is looked for: there is none of that name."""
    options = {"use_cpu": True, "report_to": "none"}
    with pytest.raises(UserError, match=TWO):
        PPOTrainer("no/model", [], two_gpus(PPOConfig(str(tmp_path), **options)), prompts)
    with pytest.raises(UserError, match=TWO):
        SFTTrainer("no/model", two_gpus(trl.SFTConfig(str(tmp_path), bf16=False, **options)), prompts)
    with pytest.raises(UserError, match=TWO):
        RewardTrainer("no/model", two_gpus(RewardConfig(str(tmp_path), bf16=False, **options)), prompts)
    with pytest.raises(UserError, match=TWO):  # pretrain, mlm
        Trainer(policy, two_gpus(TrainingArguments(str(tmp_path), **options)))


def test_data_parallel_is_refused_by_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    argv = ["--model_name_or_path", "no/model", "--reward_funcs", "no/reward", "--dataset_name", "no/data"]
    assert run_command(recipe, [*argv, "--output_dir", str(tmp_path / "out")]) == 2
    assert "2 GPUs are visible to one process" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


STAGE_3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    "options,told",
    [
        (
            {"fsdp": True, "fsdp_config": {"fsdp_cpu_ram_efficient_loading": "true"}},
            "cpu_ram_efficient_loading: false",
        ),
        ({"fsdp": True, "fsdp_config": {"cpu_ram_efficient_loading": True}}, "cpu_ram_efficient_loading: false"),
        ({"fsdp": True, "ema_decay": 0.9}, "FSDP with ema_decay"),
        ({"deepspeed": STAGE_3}, "ZeRO stage 3.*Use zero2.*or fsdp2"),
        ({"deepspeed": STAGE_3, "value_warmup_rollouts": 1}, "ZeRO stage 3.*; nor under DeepSpeed with value_warmup"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}, "value_warmup_rollouts": 1}, "with value_warmup_rollouts"),
    ],
    ids=str,
)
def test_pieces_that_ppo_cannot_work_with_are_refused_with_what_works(tmp_path, options, told):
    with pytest.raises(UserError, match=f"PPO does not run under .*{told}"):
        PPOConfig(str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize(
    "variables,told",
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "only FSDP2 is supported"),  # accelerate's own default is FSDP 1
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "True"},
            "cpu_ram_efficient_loading: false",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO stage 3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "stage3.json"}, "ZeRO stage 3"),
    ],
    ids=str,
)
def test_an_accelerate_launch_with_such_pieces_is_refused(tmp_path, monkeypatch, capsys, variables, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage3.json").write_text(json.dumps(STAGE_3))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    argv = ["--model_name_or_path", "no/model", "--reward_funcs", "no/reward", "--dataset_name", "no/data"]
    assert run_command(recipe, [*argv, "--output_dir", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
        {"ACCELERATE_USE_DEEPSPEED": "true"},  # stage 2 by accelerate's default
    ],
    ids=str,
)
def test_pieces_that_ppo_works_with_are_not(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert sharding_faults(SimpleNamespace(fsdp=None, deepspeed=None)) == []


def test_a_configuration_of_deepspeed_that_cannot_be_read_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "none.json"))
    with pytest.raises(UserError, match="none.json' cannot be read"):
        PPOConfig(str(tmp_path), use_cpu=True)
