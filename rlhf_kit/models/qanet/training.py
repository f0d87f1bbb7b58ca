"""How QANet is trained (Yu et al. 2018, arXiv:1804.09541, section 4.1): optimizer, schedule, averaged weights.

    trainer = finetune(model, tokenizer, questions, args, **qanet_trainer_parts(model))

with `ARGUMENTS` among the training arguments: clipping is the Trainer's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf_kit.errors import UserError

# The batch is the paper's, the clipping that of the reimplementation most used (localminimum/QANet).
ARGUMENTS = {"per_device_train_batch_size": 32, "max_grad_norm": 5.0}
LEARNING_RATE, WARMUP = 1e-3, 999
AVERAGE_DECAY = 0.9999


def learning_rate_factor(step: int) -> float:
    """Share of the learning rate after `step` optimizer steps: 0 at first, then min(1, ln(step + 1) / ln 999)."""
    return min(1.0, math.log(step + 1) / math.log(WARMUP))


def average_decay(step: int) -> float:
    """Weight of the old average at optimizer step 1, 2, ...: 0.9999, or less as long as there is little to average.

    min(decay, (1 + step) / (10 + step)), as TensorFlow's ExponentialMovingAverage with num_updates.
    """
    return min(AVERAGE_DECAY, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """After a step: move the average of each parameter towards it. It starts as what the first step left.

    The average is kept in the optimizer's state, so that a checkpoint has it, and a resumed run goes on with it.
    """
    for parameter, state in optimizer.state.items():
        if "average" in state:
            state["average"].lerp_(parameter, 1 - average_decay(int(state["step"])))
        else:
            state["average"] = parameter.detach().clone()


class AveragedWeights(TrainerCallback):
    """Puts the averaged weights in for an evaluation during training, and for good at its end.

    Checkpoints in between hold the raw weights, to go on with; `trainer.save_model()` after training the averaged
    ones. With several evaluation sets only the first is evaluated with averaged weights: Trainer tells no callback
    that an evaluation begins.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.exchanged = False

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, state in self.optimizer.state.items():
            raw = parameter.clone()
            parameter.copy_(state["average"])
            state["average"].copy_(raw)
        self.exchanged = not self.exchanged

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if args.load_best_model_at_end:
            raise UserError(
                "load_best_model_at_end loads a checkpoint's raw weights, where QANet evaluates averaged ones. "
                "Leave it out: training ends with the averaged weights."
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if control.should_evaluate and not self.exchanged:
            self._exchange()

    on_epoch_end = on_step_end

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.exchanged:
            self._exchange()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self._exchange()


def qanet_trainer_parts(model: nn.Module) -> dict[str, Any]:
    """Arguments of Trainer and of `finetune`: `optimizers` (Adam and its schedule) and `callbacks` (averaging).

    Adam with betas 0.8 and 0.999, epsilon 1e-7 and L2 regularisation 3e-7 of all trained parameters.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Adam's weight decay is added to the gradient, which is what the paper's L2 does; AdamW's is not.
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, betas=(0.8, 0.999), eps=1e-7, weight_decay=3e-7)
    optimizer.register_step_post_hook(update_average)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    return {"optimizers": (optimizer, schedule), "callbacks": [AveragedWeights(optimizer)]}
