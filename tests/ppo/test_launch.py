"""Ways to launch that would train something else than was asked for are refused before anything is loaded."""

import pytest
import trl
from transformers import TrainingArguments

from rlhf_kit.errors import UserError
from rlhf_kit.ppo import PPOConfig, PPOTrainer
from rlhf_kit.reward import RewardConfig, RewardTrainer
from rlhf_kit.sft import SFTTrainer
from rlhf_kit.stages import ppo as recipe
from rlhf_kit.training import Trainer
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


@pytest.mark.parametrize(
    "options,name",
    [
        ({"fsdp": "full_shard"}, "FSDP"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "DeepSpeed"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "DeepSpeed"),
    ],
    ids=str,
)
def test_sharded_weights_are_refused_with_what_works(tmp_path, options, name):
    with pytest.raises(UserError, match=f"PPO does not run under {name}: .*--multi_gpu.*LoRA"):
        PPOConfig(str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize("variable,name", [("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed")])
def test_an_accelerate_launch_with_shards_is_refused(tmp_path, monkeypatch, capsys, variable, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    with pytest.raises(UserError, match=f"PPO does not run under {name}"):
        PPOConfig(str(tmp_path), use_cpu=True)
    argv = ["--model_name_or_path", "no/model", "--reward_funcs", "no/reward", "--dataset_name", "no/data"]
    assert run_command(recipe, [*argv, "--output_dir", str(tmp_path / "out")]) == 2
    assert f"PPO does not run under {name}" in capsys.readouterr().err
