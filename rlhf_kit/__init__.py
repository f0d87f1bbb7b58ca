"""rlhf_kit: the recipe behind ChatGPT for any Hugging Face causal LM, measured at every step."""

__version__ = "0.1.0"

_HOMES = {
    "DPOConfig": "rlhf_kit.methods.config",
    "DPOTrainer": "rlhf_kit.methods.dpo",
    "KTOConfig": "rlhf_kit.methods.config",
    "KTOTrainer": "rlhf_kit.methods.kto",
    "GRPOConfig": "rlhf_kit.methods.online_config",
    "GRPOTrainer": "rlhf_kit.methods.grpo",
    "RLOOConfig": "rlhf_kit.methods.online_config",
    "RLOOTrainer": "rlhf_kit.methods.rloo",
    "PPOConfig": "rlhf_kit.ppo",
    "PPOTrainer": "rlhf_kit.ppo",
    "RewardConfig": "rlhf_kit.reward",
    "RewardTrainer": "rlhf_kit.reward",
    "SFTTrainer": "rlhf_kit.sft",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    """The trainers, imported when first asked for: `rlhf-kit --help` needs none of them, and torch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rlhf_kit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
