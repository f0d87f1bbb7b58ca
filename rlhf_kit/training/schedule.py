"""Optimizer, schedule and checkpointing of activations as the options name them, tried before anything is loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.utils import is_liger_kernel_available

from rlhf_kit.errors import UserError
from rlhf_kit.options.bounds import range_faults
from rlhf_kit.training.reports import refuse_reports

LATER = ("model", "optim_target_modules")  # in what transformers says of optimizers that are made of a model (GaLore)


def refuse_unusable(args: TrainingArguments) -> None:
    """Raises UserError for reports that cannot be made, all numbers out of range, or else all `schedule_faults`."""
    refuse_reports(args)
    faults = range_faults(args) or schedule_faults(args)
    if faults:
        raise UserError(f"{'; '.join(faults)}.")


def schedule_faults(args: TrainingArguments) -> list[str]:
    """Why what trains could not be made as these options have it, and which of them nothing would read: one sentence
    each."""
    looks = (_saving_faults, _optimizer_faults, _schedule_faults, _checkpointing_faults, _kernel_faults)
    return [fault for look in looks for fault in look(args)]


def _saving_faults(args: TrainingArguments) -> Iterator[str]:
    if args.enable_jit_checkpoint:
        yield (
            "enable_jit_checkpoint saves at any moment, and what it saves counts as damaged. Leave it out: at SIGTERM "
            "a command of the kit saves by itself"
        )


def _optimizer_faults(args: TrainingArguments) -> Iterator[str]:
    name, options = args.optim.value, args.optim_args
    pieces = [piece.partition("=") for piece in (options or "").replace(" ", "").split(",")] if options else []
    whole = all(key and value and "=" not in value for key, _, value in pieces)
    if not whole or len({key for key, _, _ in pieces}) < len(pieces):
        yield f"optim_args {options!r} should read key=value, each key once, as in momentum=0.9,nesterov=true"
        return
    try:
        made, arguments = Trainer.get_optimizer_cls_and_kwargs(args)
        if isinstance(made, type) and issubclass(made, torch.optim.Optimizer):
            made([nn.Parameter(torch.zeros(2, 2))], **arguments)
    except Exception as error:  # what an optimizer's package raises is its own
        if isinstance(error, ValueError) and any(word in str(error) for word in LATER) and "install" not in str(error):
            return
        yield f"optim {name}" + (f" with optim_args {options}" if options else "") + f": {error}"
        return
    unread = [key for key, _, _ in pieces if _is_unread(args, key)]
    if unread:
        yield (
            f"optim_args: optim {name} does not support {', '.join(unread)}. Leave it out; betas, epsilon and decay "
            "are options of their own (adam_beta1, adam_beta2, adam_epsilon, weight_decay)"
        )
    if args.optim_target_modules:
        yield f"optim_target_modules: optim {name} does not support it; it is for GaLore and APOLLO"


def _is_unread(args: TrainingArguments, key: str) -> bool:
    """Whether the optimizer is made alike whatever `key` says."""
    reads = []
    for value in ("1", "0", "?"):
        tried = copy.copy(args)
        tried.optim_args = f"{key}={value}"
        try:
            reads.append(Trainer.get_optimizer_cls_and_kwargs(tried))
        except Exception:  # it was read, and means nothing
            return False
    return reads[0] == reads[1] == reads[2]


def _schedule_faults(args: TrainingArguments) -> Iterator[str]:
    kind, options = args.lr_scheduler_type, args.lr_scheduler_kwargs
    try:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
        get_scheduler(
            kind, optimizer, num_warmup_steps=1, num_training_steps=10_000, scheduler_specific_kwargs=options
        )
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
        yield f"lr_scheduler_type {kind.value} with lr_scheduler_kwargs {options}: {error}"


def _checkpointing_faults(args: TrainingArguments) -> Iterator[str]:
    """Of the options that transformers takes for itself, and of those that it hands on to torch's `checkpoint`."""
    options = args.activation_checkpointing_kwargs
    if not options:
        return
    name = f"activation_checkpointing_kwargs {options}"
    if not isinstance(options, dict):
        yield f'{name} should be a mapping such as {{"use_reentrant": false}}'
        return
    if not args.activation_checkpointing:
        yield f"{name} needs activation_checkpointing"
    every, rest = options.get("every_n_layers", 1), {k: v for k, v in options.items() if k != "every_n_layers"}
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        yield f"{name}: every_n_layers must be a whole number, at least 1"
    switches = ("offload", "use_reentrant", "preserve_rng_state", "debug", "early_stop")
    wrong = [key for key in switches if key in rest and not isinstance(rest[key], bool)]
    if wrong:
        yield f"{name}: {', '.join(wrong)} must be true or false"
        return
    rest.pop("offload", None)
    fault = _checkpoint_fault({"use_reentrant": False, **rest})
    if fault:
        yield f"{name}: {fault}"


def _checkpoint_fault(options: dict[str, Any]) -> str | None:
    with torch.random.fork_rng([]):
        try:
            checkpoint(_layer, torch.zeros(1, requires_grad=True), **options).sum().backward()
        except Exception as error:  # torch raises TypeError, ValueError and AssertionError
            return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def _layer(states: torch.Tensor) -> torch.Tensor:
    return states.sin()


def _kernel_faults(args: TrainingArguments) -> Iterator[str]:
    if args.use_liger_kernel and not is_liger_kernel_available():
        yield "use_liger_kernel needs a package that is not installed: pip install liger-kernel"
    if args.liger_kernel_config and not args.use_liger_kernel:
        yield "liger_kernel_config needs use_liger_kernel"
