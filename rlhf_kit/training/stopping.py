"""SIGTERM in a training run: the step that it is in is done and saved, and a resumed run is the unbroken one.

A scheduler that wants the machine back sends SIGTERM and kills some time later. What reaches all processes, each at a
moment of its own, must end all of them after the same step: they tell one another after each.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from rlhf_kit.terminal.interrupts import Grace, Terminated, is_own_process


class StopAtSigterm(TrainerCallback):
    """Ends the run, asked by SIGTERM, at the next place where a checkpoint is one to go on from.

    What is due after that step, an evaluation say, is done first: a resumed run would not come to it again.

    Args:
        trainer: whose `can_pause` tells of such a place. It raises Terminated where `is_stopping`, when it is saved.
    """

    def __init__(self, trainer: Trainer, grace: Grace):
        self.trainer, self.grace = trainer, grace
        self.is_stopping = False
        self.saved = 0  # step of the last checkpoint

    def on_train_begin(self, args, state, control, **kwargs):
        self.saved = state.global_step

    def on_step_begin(self, args, state, control, **kwargs):
        self.grace.begin()  # up to here there is nothing to save

    def on_step_end(self, args, state, control, **kwargs):
        self.look(args, control)

    def on_save(self, args, state, control, **kwargs):
        self.saved = state.global_step
        self.look(args, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        if not self.is_stopping:
            return
        if state.epoch != int(state.epoch) and state.global_step < state.max_steps:  # no epoch has ended
            control.should_log = control.should_evaluate = False
        control.should_save = state.global_step > self.saved

    def look(self, args, control) -> bool:
        """Whether the run stops: one of the processes was asked to, and all can. All of them come here together."""
        if not self.is_stopping and self.trainer.can_pause and self._is_asked(args):
            self.is_stopping = control.should_training_stop = True
        return self.is_stopping

    def _is_asked(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            return self.grace.is_asked
        asked = torch.tensor(int(self.grace.is_asked), device=args.device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return bool(asked)


@contextmanager
def stopping_at_sigterm(trainer: Trainer, seconds: float) -> Iterator[None]:
    """Within, SIGTERM lets a run finish its step and save, for so many seconds. Raises Terminated when it is saved.

    Only in the process of a command, and where checkpoints are wanted that a run can go on from.
    """
    args = trainer.args
    if not is_own_process() or args.save_strategy == SaveStrategy.NO or args.save_only_model:
        yield
        return
    with Grace(seconds) as grace:
        trainer.sigterm = StopAtSigterm(trainer, grace)
        trainer.add_callback(trainer.sigterm)
        yield
        if grace.is_asked:  # after the last step
            raise Terminated


def draws_again(device: torch.device) -> Callable[[], None]:
    """What puts back, when it is called, all generators that code of a user's may have drawn from since."""
    module = None if device.type == "cpu" else torch.get_device_module(device)
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state(), module and module.get_rng_state()

    def put_back() -> None:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if module is not None:
            module.set_rng_state(states[3])

    return put_back
