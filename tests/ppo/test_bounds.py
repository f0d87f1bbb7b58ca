"""Numbers out of range: refused by name, all of them together."""

import math
import re

import pytest

from rlhf_kit.errors import UserError
from rlhf_kit.ppo import PPOConfig
from rlhf_kit.ppo.config import REFUSED

OUT_OF_RANGE = {
    "gamma": [2, -0.1],
    "lam": [-1, 1.01],
    "cliprange": [-1, 0],
    "cliprange_value": [-0.2, 0.0],
    "rollout_batch_size": [0, -8],
    "mini_batch_size": [0, -4],
    "per_device_train_batch_size": [0, -1],
    "per_device_eval_batch_size": [0, -1],
    "generation_batch_size": [-1, 0],
    "ptx_batch_size": [0, -1],
    "ptx_max_length": [1, 0, -5],
    "kl_horizon": [0, -1],
    "kl_coef": [-0.1],
    "kl_target": [0, -6],
    "max_kl": [0.0, -1],
    "reward_clip": [0.0, -1],
    "missing_eos_penalty": [-1],
    "learning_rate": [-1e-5],
    "value_learning_rate": [-1e-5],
    "value_warmup_rollouts": [-1],
    "num_completions_to_print": [-1],
    "total_episodes": [0, -8],
    "max_completion_length": [0],
    "num_ppo_epochs": [0],
    "temperature": [0.0, -1],
    "ema_decay": [0.0, 1.0],
    "vf_coef": [-1],
    "entropy_coef": [-1],
    "ptx_coef": [-1],
    "weight_decay": [-0.1],
    "adam_beta1": [1.0, -0.1],
    "adam_beta2": [1.0],
    "adam_epsilon": [0.0],
    "max_grad_norm": [-1],
    "num_train_epochs": [0, -1],
    "max_steps": [0, -2],
    "gradient_accumulation_steps": [0],
    "logging_steps": [-5],
    "save_steps": [0, -1],
    "save_total_limit": [0, -1],
    "eval_steps": [-1],
    "eval_delay": [-1],
    "seed": [-1, 2**32],
}
FINE = {
    "gamma": [0, 1, 0.99],
    "lam": [0, 1],
    "cliprange": [0.2, 10],
    "reward_clip": [None, 5],
    "total_episodes": [None, 1],
    "generation_batch_size": [None, 1],
    "max_grad_norm": [0, 1],
    "max_steps": [-1, 4],
    "save_total_limit": [None, 1],
    "save_steps": [0.5, 10],
    "missing_eos_penalty": [None, 0],
    "ptx_max_length": [None, 2],
    "learning_rate": [0],
    "adam_beta1": [0],
    "ema_decay": [0.992],
    "kl_coef": [0],
}


def config(tmp_path, **options):
    return PPOConfig(str(tmp_path), use_cpu=True, report_to="none", **options)


@pytest.mark.parametrize("name,value", [(name, value) for name, values in OUT_OF_RANGE.items() for value in values])
def test_numbers_out_of_range_are_refused(tmp_path, name, value):
    with pytest.raises(UserError, match=f"^PPOConfig: {name}={value} must "):
        config(tmp_path, **{name: value})


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_what_is_no_number_is_refused(tmp_path, name):
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(UserError, match=f"{name}={value} must be finite"):
            config(tmp_path, **{name: value})


@pytest.mark.parametrize("name,value", [(name, value) for name, values in FINE.items() for value in values])
def test_the_ends_of_a_range_are_taken(tmp_path, name, value):
    assert getattr(config(tmp_path, **{name: value}), name) == value


def test_all_are_told_together_and_kinds_too(tmp_path):
    with pytest.raises(UserError) as error:
        config(
            tmp_path,
            gamma=2,
            cliprange=-1,
            generation_batch_size=-1,
            rollout_batch_size=8.5,
            lam=True,
            temperature="1",
        )
    for told in (
        "gamma=2 must lie between 0 and 1",
        "cliprange=-1 must be above 0",
        "generation_batch_size=-1 must be at least 1, or null for none",
        "rollout_batch_size=8.5 must be a whole number",
        "lam=True must be a number",
        "temperature=1 must be a number",
    ):
        assert told in str(error.value)
    with pytest.raises(UserError, match="reward_weights=.* must be finite numbers"):
        config(tmp_path, reward_weights=[1.0, math.nan])


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_ppo_would_not_obey_are_refused(tmp_path, name):
    values = {"label_smoothing_factor": 0.1, "neftune_noise_alpha": 0.1, "data_seed": 0}
    values["train_sampling_strategy"] = "group_by_length"
    with pytest.raises(UserError, match=f"{name}=.*: {re.escape(REFUSED[name][:20])}"):
        config(tmp_path, **{name: values.get(name, True)})


@pytest.mark.parametrize(
    "options,told",
    [
        ({"reward_weights": 0.5}, "reward_weights=0.5 must be a list of numbers"),
        ({"reward_weights": "12"}, "reward_weights='12' must be a list of numbers"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "kl_target=6.0 scales kl_coef, and 0 stays 0"),
        ({"rollout_batch_size": 8.0}, "rollout_batch_size=8.0 must be a whole number"),
        ({"whiten_advantages": "no"}, "whiten_advantages='no' must be true or false"),
        ({"use_cpu": "false"}, "use_cpu='false' must be true or false"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must not be negative"),
        ({"optim": "adam"}, "adam is not a valid OptimizerNames"),
    ],
)
def test_what_would_be_read_otherwise_than_it_is_meant_is_refused(tmp_path, options, told):
    with pytest.raises(UserError, match=f"^PPOConfig: {told}"):
        PPOConfig(str(tmp_path), **{"use_cpu": True, "report_to": "none"} | options)
