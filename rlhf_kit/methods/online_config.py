"""What can be set of RLOO and GRPO: TRL's options, with the kit's defaults and what contradicts the kit refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trl import GRPOConfig as TRLGRPOConfig
from trl import RLOOConfig as TRLRLOOConfig

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.methods.config import REFUSED, Refusals, refuse_out_of_range
from rlhf_kit.options import option
from rlhf_kit.training.launch import sharding_faults

SAMPLED_ALIKE = "a token would be drawn from another distribution than the one that its log-prob is of; leave it out"
NO_SERVER = "`generate` samples here; PPO samples by a vLLM server too"
OF_SAMPLING: Refusals = REFUSED | {
    "top_p": (lambda v: v != 1.0, SAMPLED_ALIKE),
    "top_k": (bool, SAMPLED_ALIKE),
    "min_p": (lambda v: v is not None, SAMPLED_ALIKE),
    "repetition_penalty": (lambda v: v != 1.0, SAMPLED_ALIKE),
    "generation_kwargs": (bool, SAMPLED_ALIKE),
    "chat_template_kwargs": (bool, "a prompt is written as in all other stages; leave it out"),
    "use_vllm": (bool, NO_SERVER),
    "use_transformers_continuous_batching": (bool, NO_SERVER),
    "log_multimodal": (lambda v: not v, "there are no images; leave it out"),
    "sync_ref_model": (bool, "the reference stays what it is; leave it out"),
    "train_sampling_strategy": (lambda v: v != "random", "shuffle_dataset says whether prompts are shuffled"),
    "dataloader_drop_last": (bool, "a generation goes on into the next pass, so none is short; leave it out"),
    "data_seed": (lambda v: v is not None, "`seed` draws the order of the prompts too; leave it out"),
}
OF_GRPO: Refusals = OF_SAMPLING | {
    "cast_lm_head_to_fp32": (bool, "the reference's head is not; leave it out"),
    "max_tool_calling_iterations": (lambda v: v is not None, "no tools are called here; leave it out"),
}
# What nothing reads but for some value of another option.
ONLY_RLOO: dict[str, tuple[str, Sequence]] = {
    **{name: ("log_completions", (True,)) for name in ("num_completions_to_print", "log_unique_prompts")},
    **{name: ("sync_ref_model", (True,)) for name in ("ref_model_mixup_alpha", "ref_model_sync_steps")},
    "transformers_continuous_batching_config": ("use_transformers_continuous_batching", (True,)),
}
VLLM = (
    "mode model_impl enable_sleep_mode structured_outputs_regex server_base_url server_host server_port "
    "server_timeout group_port gpu_memory_utilization max_model_length tensor_parallel_size"
).split()
ONLY_RLOO |= {f"vllm_{name}": ("use_vllm", (True,)) for name in VLLM}
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
CORRECTION = ("correction", "mode", "clip_max", "clip_min")
ONLY_GRPO = ONLY_RLOO | {
    **{f"vllm_importance_sampling_{name}": ("use_vllm", (True,)) for name in CORRECTION},
    **{
        f"entropy_{name}": ("use_adaptive_entropy", (True,))
        for name in ("coef_min", "coef_max", "coef_delta", "target")
    },
    **{f"sapo_temperature_{sign}": ("loss_type", ("sapo",)) for sign in ("neg", "pos")},
    **{f"vespo_{name}": ("loss_type", ("vespo",)) for name in ("k_pos", "lambda_pos", "k_neg", "lambda_neg")},
    "epsilon": ("loss_type", CLIPPED),
    "delta": ("loss_type", CLIPPED),
    "epsilon_high": ("loss_type", (*CLIPPED, "cispo")),
    "scale_rewards": ("multi_objective_aggregation", ("sum_then_normalize",)),
}
CHOICES = {
    "loss_type": (*CLIPPED, "cispo", "sapo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none"),
}


class Sampled:
    """What both configurations check, and how many steps they make."""

    def __post_init__(self):
        name = type(self).__name__
        if sharded := sharding_faults(self):
            raise UserError(f"{name} does not run under {'; nor under '.join(sharded)}.")
        if self.generation_batch_size is not None:
            raise UserError(
                f"{name}: generation_batch_size follows from the others; give steps_per_generation, the forwards of "
                "per_device_train_batch_size completions that a generation is enough for."
            )
        refuse_out_of_range(self)
        try:
            super().__post_init__()
        except (ValueError, TypeError) as error:  # its own ranges and kinds
            raise UserError(f"{name}: {error}") from error
        faults = [
            f"{option}={value!r} is not one of {', '.join(choices)}.{did_you_mean(value, choices)}"
            for option, choices in CHOICES.items()
            if (value := getattr(self, option, choices[0])) not in choices
        ]
        if faults:
            raise UserError(f"{name}: {' '.join(faults)}")

    def steps(self, prompts: int) -> int:
        """Optimizer steps of the whole run over so many prompts."""
        if self.max_steps > 0:
            return self.max_steps
        generations = max(1, prompts // (self.generation_batch_size // self.num_generations))
        forwards = generations * self.steps_per_generation * self.num_iterations
        return math.ceil(self.num_train_epochs * math.ceil(forwards / self.gradient_accumulation_steps))

    @property
    def steps_between_pauses(self) -> int:
        """Optimizer steps from one place to the next where a generation and a step end together."""
        parts = self.gradient_accumulation_steps
        return math.lcm(parts, self.steps_per_generation * self.num_iterations) // parts

    def check_eval_batches(self) -> None:
        """Raises UserError where an evaluation batch would cut through the completions of a prompt."""
        group, rows = self.num_generations_eval or self.num_generations, self.per_device_eval_batch_size
        if rows * max(1, self.world_size) % group:
            raise UserError(
                f"per_device_eval_batch_size={rows} must be a multiple of the {group} completions of a prompt "
                "(num_generations_eval, or num_generations)."
            )


@dataclass
class RLOOConfig(Sampled, TRLRLOOConfig):
    """How to train by RLOO. Batch sizes count completions: `num_generations` of each prompt."""

    learning_rate: float = option(1e-6, "Peak learning rate (TRL's).")
    beta: float = option(0.05, "Weight of the KL in a completion's reward (TRL's); 0: no reference is held.")
    num_generations: int = option(
        4, "Completions of a prompt, each the others' baseline (Ahmadian et al. 2024, section 4: 2 and 4)."
    )
    max_completion_length: int = option(53, "Longest completion, in tokens (as for PPO).")
    temperature: float = option(1.0, "Softmax temperature, when sampling and when scoring alike.")
    disable_dropout: bool = option(True, "No dropout: the policy that is scored is the one that sampled.")
    remove_unused_columns: bool = option(False, "Keep extra columns: they are passed to the reward functions.")
    dataset_num_proc: int | None = option(
        None, "Processes that tokenize; None: of large data one a processor, 8 at most."
    )


@dataclass
class GRPOConfig(Sampled, TRLGRPOConfig):
    """How to train by GRPO. Batch sizes count completions: `num_generations` of each prompt."""

    learning_rate: float = option(1e-6, "Peak learning rate (Shao et al. 2024, section 4.2: 1e-6).")
    beta: float = option(
        0.04, "Weight of the KL in the loss (Shao et al. 2024, section 4.2: 0.04); 0: no reference is held."
    )
    num_generations: int = option(8, "Completions of a prompt, the group (TRL's; Shao et al. 2024: 64).")
    max_completion_length: int = option(53, "Longest completion, in tokens (as for PPO).")
    temperature: float = option(1.0, "Softmax temperature, when sampling and when scoring alike.")
    loss_type: str = option(
        "grpo",
        "grpo: the mean over the tokens of each completion, then over completions (Shao et al. 2024, eq. 3); dapo, "
        "dr_grpo, bnpo, luspo, cispo, sapo, vespo: TRL's others.",
    )
    disable_dropout: bool = option(True, "No dropout: the policy that is scored is the one that sampled.")
    remove_unused_columns: bool = option(False, "Keep extra columns: they are passed to the reward functions.")
    dataset_num_proc: int | None = option(
        None, "Processes that tokenize; None: of large data one a processor, 8 at most."
    )
