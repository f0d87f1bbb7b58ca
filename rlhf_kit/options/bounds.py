"""Bounds of numbers that are set: one table for options of commands, fields of configs and arguments of functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple

MOST_WHOLE = 2**31 - 1  # what torch, tokenizers and operating systems count with
MOST_REAL = 3.4e38  # what float32 holds


class Bound(NamedTuple):
    """What a value must do, whether it does, whether it counts something, and what it may be at most."""

    rule: str
    holds: Callable[[float], bool]
    whole: bool = False
    most: float | None = None


def at_least(least: int, why: str = "", most: int = MOST_WHOLE) -> Bound:
    return Bound(f"be at least {least}{why}", lambda x: x >= least, whole=True, most=most)


COUNT = at_least(1)
COUNT_OR_0 = Bound("not be negative", lambda x: x >= 0, whole=True)
ABOVE_0 = Bound("be above 0", lambda x: x > 0)
NOT_NEGATIVE = Bound("not be negative", lambda x: x >= 0)
FINITE = Bound("be finite", lambda x: True)
A_SHARE = Bound("lie between 0 and 1", lambda x: 0 <= x <= 1)
BELOW_1 = Bound("be at least 0 and below 1", lambda x: 0 <= x < 1)
SEED = Bound("lie between 0 and 2**32 - 1", lambda x: 0 <= x < 2**32, whole=True, most=2**32)
STEPS = Bound(
    "be above 0: a whole number of steps, or, below 1, a share of all",
    lambda x: 0 < x < 1 or x >= 1 and x == int(x),
)

# By name; "Owner.name" where a class or function asks for more than the others that have the name.
BOUNDS: dict[str, Bound] = {
    # transformers' TrainingArguments and TRL's SFTConfig, which take them whatever they are
    "learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": BELOW_1,
    "adam_beta2": BELOW_1,
    "adam_epsilon": ABOVE_0,
    "max_grad_norm": NOT_NEGATIVE,
    "num_train_epochs": ABOVE_0,
    "max_steps": Bound("be at least 1, or -1 for none", lambda x: x >= 1 or x == -1, whole=True),
    "warmup_steps": NOT_NEGATIVE,
    "label_smoothing_factor": BELOW_1,
    "neftune_noise_alpha": NOT_NEGATIVE,
    "router_aux_loss_coef": NOT_NEGATIVE,
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "eval_accumulation_steps": COUNT,
    "torch_empty_cache_steps": COUNT,
    "logging_steps": STEPS,
    "save_steps": STEPS,
    "save_total_limit": COUNT,
    "eval_steps": STEPS,
    "eval_delay": NOT_NEGATIVE,
    "stop_within": ABOVE_0,
    "seed": SEED,
    "seeds": SEED,
    "data_seed": SEED,
    "dataloader_num_workers": COUNT_OR_0._replace(most=1024),  # each is a process
    "dataloader_prefetch_factor": COUNT,
    "dataset_num_proc": COUNT._replace(most=1024),
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
    "local_rank": at_least(-1),
    "max_length": COUNT,
    "pad_to_multiple_of": COUNT,
    # LoRA
    "lora_r": COUNT._replace(most=2**16),
    "r": COUNT._replace(most=2**16),
    "lora_alpha": ABOVE_0,
    "lora_dropout": BELOW_1,
    # Data
    "max_train_samples": COUNT,
    "max_eval_samples": COUNT,
    "max_prompt_length": COUNT,
    # Pre-training
    "block_size": at_least(2),
    "PretrainConfig.train_tokenizer": at_least(257, ": 256 bytes and the end of text", most=2**24),
    "MaskedConfig.train_tokenizer": at_least(10, most=2**24),
    "MaskedConfig.max_length": at_least(3, ": [CLS], a token and [SEP]"),
    "mlm_probability": BELOW_1,
    "muon_learning_rate": ABOVE_0,
    # Reward models
    "RewardConfig.label_smoothing_factor": Bound(
        "be at least 0 and below 0.5: at 0.5 the labels carry no information", lambda x: 0 <= x < 0.5
    ),
    "center_rewards_coefficient": NOT_NEGATIVE,
    "calibration_samples": COUNT._replace(most=2**24),
    "calibration_max_completion_length": COUNT,
    "reward_ensemble_std_coef": Bound("not be negative: disagreement would be rewarded", lambda x: x >= 0),
    "std_coef": Bound("not be negative: disagreement would be rewarded", lambda x: x >= 0),
    # PPO and sampling
    "value_learning_rate": NOT_NEGATIVE,
    "value_warmup_rollouts": COUNT_OR_0,
    "total_episodes": COUNT,
    "rollout_batch_size": COUNT._replace(most=2**24),
    "max_completion_length": COUNT,
    "PPOConfig.temperature": Bound("be above 0: PPO needs a distribution to sample from", lambda x: x > 0),
    "sample.temperature": NOT_NEGATIVE,
    "GenerateOptions.temperature": NOT_NEGATIVE,
    "ChatOptions.temperature": NOT_NEGATIVE,
    "next_token.temperature": ABOVE_0,
    "next_token.count": COUNT,
    "max_tokens": COUNT._replace(most=2**24),
    "top_logprobs": COUNT_OR_0,
    "top_k": COUNT_OR_0,
    "top_p": Bound("be above 0 and at most 1", lambda x: 0 < x <= 1),
    "best_of_n.temperature": Bound("be above 0: the n completions of a prompt would all be the same", lambda x: x > 0),
    "n": COUNT,
    "generation_batch_size": COUNT,
    "vllm_timeout": ABOVE_0,
    "vllm_probe_bound": ABOVE_0,
    "importance_cap": ABOVE_0,
    "reward_clip": ABOVE_0,
    "missing_eos_penalty": Bound("not be negative: not ending would be rewarded", lambda x: x >= 0),
    "kl_coef": NOT_NEGATIVE,
    "kl_target": ABOVE_0,
    "sharpening_coef": NOT_NEGATIVE,
    "kl_horizon": COUNT,
    "max_kl": ABOVE_0,
    "num_ppo_epochs": COUNT,
    "mini_batch_size": COUNT,
    "gamma": A_SHARE,
    "lam": A_SHARE,
    "cliprange": ABOVE_0,
    "cliprange_value": ABOVE_0,
    "vf_coef": NOT_NEGATIVE,
    "entropy_coef": NOT_NEGATIVE,
    "ptx_coef": NOT_NEGATIVE,
    "ptx_batch_size": COUNT,
    "ptx_max_length": at_least(2, ": a token, and one to predict"),
    "ema_decay": Bound("lie between 0 and 1, as 0.992", lambda x: 0 < x < 1),
    "num_completions_to_print": COUNT_OR_0,
    # DPO, KTO, RLOO and GRPO
    "num_generations": at_least(2),
    "num_generations_eval": COUNT,
    "steps_per_generation": COUNT,
    "num_iterations": COUNT,
    "RLOOConfig.temperature": ABOVE_0,
    "GRPOConfig.temperature": ABOVE_0,
    "epsilon": ABOVE_0,
    "epsilon_high": ABOVE_0,
    "delta": ABOVE_0,
    "entropy_coef_min": NOT_NEGATIVE,
    "entropy_coef_max": NOT_NEGATIVE,
    "entropy_coef_delta": NOT_NEGATIVE,
    "entropy_target": NOT_NEGATIVE,
    "sapo_temperature_neg": ABOVE_0,
    "sapo_temperature_pos": ABOVE_0,
    "vespo_k_pos": NOT_NEGATIVE,
    "vespo_k_neg": NOT_NEGATIVE,
    "vespo_lambda_pos": NOT_NEGATIVE,
    "vespo_lambda_neg": NOT_NEGATIVE,
    "top_entropy_quantile": Bound("be above 0 and at most 1", lambda x: 0 < x <= 1),
    "off_policy_mask_threshold": FINITE,
    "beta": NOT_NEGATIVE,
    "desirable_weight": NOT_NEGATIVE,
    "undesirable_weight": NOT_NEGATIVE,
    "label_smoothing": Bound(
        "be at least 0 and below 0.5: at 0.5 the labels carry no information", lambda x: 0 <= x < 0.5
    ),
    "f_alpha_divergence_coef": FINITE,
    "discopop_tau": ABOVE_0,
    "ld_alpha": A_SHARE,
    "loss_weights": FINITE,
    "precompute_ref_batch_size": COUNT,
    "ref_model_mixup_alpha": A_SHARE,
    "ref_model_sync_steps": COUNT,
    "tuning_trials": COUNT_OR_0,
    "max_heldout_prompts": COUNT,
    "CompareOptions.temperature": Bound("be above 0: all draws of a prompt would be the same", lambda x: x > 0),
    "DemoOptions.human": COUNT_OR_0._replace(most=100),  # a sitting
    "CollectOptions.k": at_least(1, most=26),
    "CollectOptions.minimum": COUNT,
    "CollectOptions.overlap_share": A_SHARE,
    "CollectOptions.temperatures": ABOVE_0,
    "UIOptions.port": at_least(0, most=65_535),
    "ServeOptions.port": at_least(0, most=65_535),
    "devices": COUNT._replace(most=2**16),
    "utilisation": Bound("lie above 0 and at most at 1", lambda x: 0 < x <= 1),
    "price": NOT_NEGATIVE,
    "PlanOptions.rows": COUNT,
    "row_tokens": Bound("be at least 1", lambda x: x >= 1),
    "slots": COUNT._replace(most=2**12),
    "max_waiting": COUNT,
    # Evaluations
    "batch_size": COUNT,
    "max_batch_tokens": COUNT,
    "limit": COUNT,
    "shots": COUNT_OR_0,
    "stride": COUNT,
    "overlap": COUNT_OR_0,
    "step": COUNT,
    "max_query_length": COUNT,
    "max_answer_length": COUNT,
    "n_best": COUNT,
    "null_score_diff_threshold": FINITE,
    "na_prob_thresh": FINITE,
    "epochs": ABOVE_0,
    "lora": COUNT._replace(most=2**16),
}


def bound_of(name: str, *owners: str) -> Bound | None:
    """The bound of a number, by the first of its owners that has one of its own."""
    named = (BOUNDS.get(f"{owner}.{name}") for owner in owners)
    return next(filter(None, named), BOUNDS.get(name))


def broken_rule(value: Any, bound: Bound) -> str | None:
    """What `value` must do and does not; a NaN, an infinity, a bool or a text never does."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return "be a number"
    if not isinstance(value, Integral) and not math.isfinite(value):
        return "be finite"
    if bound.whole and not isinstance(value, Integral):
        return "be a whole number"
    if not bound.holds(value):
        return bound.rule
    most = bound.most or (MOST_WHOLE if bound.whole else MOST_REAL)
    return f"be at most {most}" if abs(value) > most else None


def number_faults(owner: str, **values: float | None) -> list[str]:
    """What is wrong with arguments of the function `owner`, "name=value must ..." each; None passes."""
    faults = {name: broken_rule(value, bound_of(name, owner)) for name, value in values.items() if value is not None}
    return [f"{name}={values[name]} must {rule}" for name, rule in faults.items() if rule]


def range_faults(options: Any) -> list[str]:
    """What is wrong with the numbers of a dataclass `options`: "name=value must ...", one a fault.

    None passes where the field's type has it, and so does a text; none does for a bool: it would be true whatever it
    says.
    """
    faults, owners = [], [kind.__name__ for kind in type(options).__mro__]
    for item in dataclasses.fields(options):
        value, kind, bound = getattr(options, item.name), str(item.type), bound_of(item.name, *owners)
        if kind in ("bool", str(bool)) and isinstance(value, str):
            faults.append(f"{item.name}={value!r} must be true or false")
        optional = "None" in kind or "Optional" in kind
        if bound is None or value is None and optional or isinstance(value, str) and "str" in kind:
            continue
        rule = broken_rule(value, bound)
        if rule:
            faults.append(f"{item.name}={value} must {rule}" + (", or null for none" if optional else ""))
    return faults
