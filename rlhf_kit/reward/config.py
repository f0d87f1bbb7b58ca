"""What can be set of a reward model's training."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import TrainingArguments

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.options import option
from rlhf_kit.options.bounds import range_faults

CHOICES = {
    "loss_type": ("pairwise", "plackett_luce", "best_of"),
    "tie_loss": ("drop", "half"),
    "on_bad_row": ("error", "drop"),
}


@dataclass
class RewardConfig(TrainingArguments):
    """How to train a reward model. Batch sizes count prompts: all answers of a prompt are in one forward.

    The defaults make an optimizer step of 64 prompts on one device, as in InstructGPT.
    """

    learning_rate: float = option(1e-5, "Peak learning rate (InstructGPT: 9e-6, appendix C.2).")
    lr_scheduler_type: str = option("cosine", "Decay (InstructGPT: cosine, appendix C.2).")
    warmup_steps: float = option(
        0.03, "Warm-up: steps, or a share of all when below 1 (PPO-max, arXiv:2307.04964: 3 %)."
    )
    adam_beta2: float = option(0.95, "Adam's beta2 (InstructGPT, appendix C).")
    num_train_epochs: float = option(1.0, "Passes over the data; more overfit (InstructGPT, appendix C.2).")
    per_device_train_batch_size: int = option(8, "Prompts per forward, with all their answers.")
    gradient_accumulation_steps: int = option(8, "Forwards per optimizer step; 8 x 8 = InstructGPT's 64 prompts.")
    logging_steps: float = option(10, "Optimizer steps between logs.")
    max_length: int | None = option(
        None,
        "Longest prompt + answer in tokens; None: the model's context. A longer one loses the beginning of its "
        "prompt; an answer that is longer by itself is dropped.",
    )
    dataset_num_proc: int | None = option(
        None, "Processes that tokenize; None: of large data one a processor, 8 at most."
    )
    disable_dropout: bool = option(True, "Train without the model's own dropout (as TRL).")
    loss_type: str = option(
        "pairwise",
        "pairwise: every better answer against every worse one (InstructGPT); plackett_luce: the whole order, drawn "
        "from the best down; best_of: the best against all (Ziegler et al. 2019). Pairs are the same under each; "
        "thumbs are binary.",
    )
    tie_loss: str = option(
        "drop", "Tied answers under the pairwise loss: drop the pair, or half: pull their scores together."
    )
    label_smoothing_factor: float = option(
        0.0, "Chance that a labeler mixed up a pair or a thumb, below 0.5 (pairwise, thumbs)."
    )
    shared_prefix: bool = option(
        False,
        "Compute the prompt once for all its answers: one row with a tree-shaped attention mask. Same scores, less "
        "work when prompts are long. Causal models with sdpa or eager attention.",
    )
    on_bad_row: str = option(
        "error",
        "What to do with a faulty training list: error stops and names it, drop skips and counts it. Lists that "
        "teach nothing are left out.",
    )
    center_rewards_coefficient: float | None = option(
        None,
        "Weight of the squared sum of a pair's two rewards, which holds rewards near 0 (Eisenstein et al. 2023, "
        "arXiv:2312.09244, eq. 2: 0.01); None: off.",
    )
    calibrate: bool = option(
        True, "After training, scale scores to mean 0, std 1 on the training answers (Ziegler et al. 2019)."
    )
    remove_unused_columns: bool = option(False, "The answers and ranks are needed.")

    def __post_init__(self):
        if faults := range_faults(self):
            raise UserError(f"RewardConfig: {'; '.join(faults)}.")
        super().__post_init__()
        faults = [
            f"{name}={value!r} is not one of {', '.join(choices)}.{did_you_mean(value, choices)}"
            for name, choices in CHOICES.items()
            if (value := getattr(self, name)) not in choices
        ]
        if self.loss_type != "pairwise" and (self.label_smoothing_factor or self.tie_loss != "drop"):
            faults.append(
                f"label_smoothing_factor and tie_loss belong to loss_type='pairwise'; it is {self.loss_type!r}, which "
                "treats ties in its own way. Leave them out."
            )
        if faults:
            raise UserError("RewardConfig: " + " ".join(faults))

    @property
    def ties_teach(self) -> bool:
        """Whether there is something to learn from a list in which all answers tie."""
        return self.loss_type != "pairwise" or self.tie_loss == "half"
