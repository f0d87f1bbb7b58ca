"""A PPO trainer on a tiny random policy, one setting changed at a time."""

import pytest
from datasets import Dataset

from rlhf_kit.ppo import PPOConfig, PPOTrainer


def brief(prompts, completions, **columns) -> list[float]:
    """A reward that likes short answers."""
    return [-len(completion[0]["content"]) / 20 for completion in completions]


@pytest.fixture
def prompts() -> Dataset:
    rows = [{"prompt": [{"role": "user", "content": "hello " + "the cat " * (i % 5)}], "tag": i} for i in range(16)]
    return Dataset.from_list(rows)


@pytest.fixture
def make_trainer(policy, tokenizer, prompts, tmp_path):
    """make_trainer(reward_funcs=..., model=..., **PPOConfig fields and trainer arguments)."""

    def make(reward_funcs=brief, model=None, train_dataset=None, **settings) -> PPOTrainer:
        names = ("ref_model", "value_model", "peft_config", "eval_dataset", "callbacks", "reward_processing_classes")
        names += ("ptx_dataset", "reward_ensemble", "reward_ensemble_std_coef", "max_prompt_length", "keep_base")
        parts = {name: settings.pop(name) for name in names if name in settings}
        fields = {
            "output_dir": str(tmp_path / "run"),
            "rollout_batch_size": 8,
            "mini_batch_size": 4,
            "per_device_train_batch_size": 2,
            "num_ppo_epochs": 2,
            "total_episodes": 16,
            "max_completion_length": 10,
            "missing_eos_penalty": None,
            "learning_rate": 1e-3,
            "report_to": "none",
            "use_cpu": True,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        args = PPOConfig(**fields | settings)
        return PPOTrainer(
            policy if model is None else model,
            reward_funcs,
            args,
            prompts if train_dataset is None else train_dataset,
            processing_class=tokenizer,
            **parts,
        )

    return make
