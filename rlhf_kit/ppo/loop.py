"""How rollouts become the batches that transformers' Trainer asks for, where a run may pause, and what is trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from rlhf_kit.errors import UserError
from rlhf_kit.ppo.config import PPOConfig


class RolloutLoader:
    """The micro-batches of the whole run, lazily: a rollout is collected when its first micro-batch is asked for.

    It starts at the rollout that the trainer's state has reached, so that a resumed run goes on where it stopped.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        args = trainer.args
        self.rollouts = -(-args.max_steps // args.steps_per_rollout)
        self.batch_size = args.per_device_train_batch_size
        self.dataset = trainer.train_dataset

    def __len__(self) -> int:
        return self.trainer.args.max_steps * self.trainer.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        trainer = self.trainer
        done, inside = divmod(trainer.state.global_step, trainer.args.steps_per_rollout)
        if inside:
            raise UserError(
                f"The checkpoint of step {trainer.state.global_step} was saved inside a rollout of "
                f"{trainer.args.steps_per_rollout} optimizer steps, which is gone. Resume from one that is a multiple."
            )
        for index in range(done, self.rollouts):
            yield from trainer.rollout_batches(index)
            if trainer.control.should_training_stop:
                return


class RolloutBoundary(TrainerCallback):
    """Logging, saving and evaluating wait for the end of the rollout they fall in.

    Between rollouts a run is its policy, value, optimizer and counters; inside one it is a whole rollout more. So a
    run that ends inside one (`max_steps`) logs and evaluates there, and its last checkpoint is of the rollout before.
    An epoch is a pass over the prompts, though the loader gives the whole run as one.
    """

    WAITING = {"should_log": "logging_strategy", "should_save": "save_strategy", "should_evaluate": "eval_strategy"}

    def __init__(self, trainer):
        self.trainer = trainer
        self.asked: set[str] = set()
        self.saved = self.evaluated = 0  # steps of the last checkpoint and evaluation

    def on_train_begin(self, args, state, control, **kwargs):
        self.saved = self.evaluated = state.global_step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.before_step()

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step / args.steps_per_rollout * args.rollout_batch_size / len(self.trainer.prompts)
        self.asked |= {name for name in self.WAITING if getattr(control, name)}
        if self._passes(args, state.global_step) > self._passes(args, state.global_step - 1):
            self.asked |= {name for name, kind in self.WAITING.items() if getattr(args, kind) == "epoch"}
            self.asked -= {"should_evaluate"} if args.eval_delay > state.epoch else set()
        at_end = state.global_step % args.steps_per_rollout == 0 or state.global_step >= args.max_steps
        for name in self.WAITING:
            setattr(control, name, at_end and name in self.asked)
        if at_end:
            self.asked.clear()
        self.trainer.step_ended(rollout_ended=at_end)
        return control

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated = state.global_step

    def on_epoch_end(self, args, state, control, **kwargs):
        """The end of the run, where transformers asks again for what a pass ends with."""
        control.should_save &= state.global_step > self.saved
        control.should_evaluate &= state.global_step > self.evaluated
        return control

    def _passes(self, args, step: int) -> int:
        """Whole passes over the prompts in the rollouts that have ended at `step`."""
        return step // args.steps_per_rollout * args.rollout_batch_size // len(self.trainer.prompts)

    def stop(self, args, state, control) -> None:
        """End the run here, between two rollouts: what was not logged is, and there is a checkpoint to go on from."""
        control.should_training_stop = control.should_log = True
        by_time = args.save_strategy in (SaveStrategy.STEPS, SaveStrategy.EPOCH)
        control.should_save = by_time and state.global_step > self.saved


def parameter_groups(model: nn.Module, decayed: set[str], args: PPOConfig) -> list[dict]:
    """The optimizer's groups: value function (names that begin with `value_`) and policy, with weight decay or not."""
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith("value_"), name in decayed].append(parameter)
    rates = {False: args.learning_rate, True: args.value_learning_rate}
    return [
        {"params": group, "lr": rates[is_value], "weight_decay": args.weight_decay if decays else 0.0}
        for (is_value, decays), group in groups.items()
    ]
