"""What can be set of a reward model's training."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from rlhf_kit.errors import UserError, did_you_mean
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

    learning_rate: float = field(
        default=1e-5, metadata={"help": "Peak learning rate (InstructGPT: 9e-6, appendix C.2)."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Decay (InstructGPT: cosine, appendix C.2)."})
    warmup_steps: float = field(
        default=0.03,
        metadata={"help": "Warm-up: steps, or a share of all when below 1 (PPO-max, arXiv:2307.04964: 3 %)."},
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Adam's beta2 (InstructGPT, appendix C)."})
    num_train_epochs: float = field(
        default=1.0, metadata={"help": "Passes over the data; more overfit (InstructGPT, appendix C.2)."}
    )
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Prompts per forward, with all their answers."}
    )
    gradient_accumulation_steps: int = field(
        default=8, metadata={"help": "Forwards per optimizer step; 8 x 8 = InstructGPT's 64 prompts."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Optimizer steps between logs."})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest prompt + answer in tokens; None: the model's context. A longer one loses the beginning "
            "of its prompt; an answer that is longer by itself is dropped."
        },
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Train without the model's own dropout (as TRL)."})
    loss_type: str = field(
        default="pairwise",
        metadata={
            "help": "pairwise: every better answer against every worse one (InstructGPT); plackett_luce: the whole "
            "order, drawn from the best down; best_of: the best against all (Ziegler et al. 2019). Pairs are the same "
            "under each; thumbs are binary."
        },
    )
    tie_loss: str = field(
        default="drop",
        metadata={"help": "Tied answers under the pairwise loss: drop the pair, or half: pull their scores together."},
    )
    label_smoothing_factor: float = field(
        default=0.0,
        metadata={"help": "Chance that a labeler mixed up a pair or a thumb, below 0.5 (pairwise, thumbs)."},
    )
    shared_prefix: bool = field(
        default=False,
        metadata={
            "help": "Compute the prompt once for all its answers: one row with a tree-shaped attention mask. Same "
            "scores, less work when prompts are long. Causal models with sdpa or eager attention."
        },
    )
    on_bad_row: str = field(
        default="error",
        metadata={
            "help": "What to do with a faulty training list: error stops and names it, drop skips and counts it. "
            "Lists that teach nothing are left out."
        },
    )
    center_rewards_coefficient: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the squared sum of a pair's two rewards, which holds rewards near 0 "
            "(Eisenstein et al. 2023, arXiv:2312.09244, eq. 2: 0.01); None: off."
        },
    )
    calibrate: bool = field(
        default=True,
        metadata={
            "help": "After training, scale scores to mean 0, std 1 on the training answers (Ziegler et al. 2019)."
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The answers and ranks are needed."})

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
