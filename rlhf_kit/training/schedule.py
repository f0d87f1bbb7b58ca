"""Optimizer and learning-rate schedule as the options name them, tried before anything is loaded."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler


def schedule_faults(args: TrainingArguments) -> list[str]:
    """Why the optimizer or the schedule could not be made when training begins: one sentence each."""
    faults = []
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError) as error:
        if "install" in str(error):  # else of those that look at the model (GaLore), which there is not yet
            faults.append(f"optim {args.optim.value}: {error}")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    kind, options = args.lr_scheduler_type, args.lr_scheduler_kwargs
    try:
        get_scheduler(
            kind, optimizer, num_warmup_steps=1, num_training_steps=10_000, scheduler_specific_kwargs=options
        )
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        faults.append(f"lr_scheduler_type {kind.value} with lr_scheduler_kwargs {options}: {error}")
    return faults
