"""Ranges of numeric options: one table, all faults told together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

Bound = tuple[str, Callable[[float], bool]]  # what a value must do, and whether it does

AT_LEAST_1: Bound = ("be at least 1", lambda x: x >= 1)
ABOVE_0: Bound = ("be above 0", lambda x: x > 0)
NOT_NEGATIVE: Bound = ("not be negative", lambda x: x >= 0)
A_SHARE: Bound = ("lie between 0 and 1", lambda x: 0 <= x <= 1)
BELOW_1: Bound = ("be at least 0 and below 1", lambda x: 0 <= x < 1)

# Options of transformers' TrainingArguments that it takes whatever they are.
TRAINING: dict[str, Bound] = {
    "learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": BELOW_1,
    "adam_beta2": BELOW_1,
    "adam_epsilon": ABOVE_0,
    "max_grad_norm": NOT_NEGATIVE,
    "num_train_epochs": ABOVE_0,
    "max_steps": ("be at least 1, or -1 for none", lambda x: x >= 1 or x == -1),
    "per_device_train_batch_size": AT_LEAST_1,
    "per_device_eval_batch_size": AT_LEAST_1,
    "gradient_accumulation_steps": AT_LEAST_1,
    "logging_steps": ABOVE_0,
    "save_steps": ABOVE_0,
    "save_total_limit": AT_LEAST_1,
    "eval_steps": ABOVE_0,
    "eval_delay": NOT_NEGATIVE,
    "seed": ("lie between 0 and 2**32 - 1", lambda x: 0 <= x < 2**32),
}


def range_faults(options: Any, bounds: Mapping[str, Bound]) -> list[str]:
    """What is wrong with the numbers of a dataclass `options`: "name=value must ...", one a fault.

    None passes where the field's type has it; a NaN, an infinity, a bool or a text never does. Nor does a text for
    a bool, which would be true whatever it says.
    """
    types = {item.name: str(item.type) for item in dataclasses.fields(options)}
    told = {name: getattr(options, name) for name, kind in types.items() if kind in ("bool", str(bool))}
    faults = [f"{name}={value!r} must be true or false" for name, value in told.items() if isinstance(value, str)]
    for name, (rule, holds) in bounds.items():
        value, kind = getattr(options, name), types[name]
        optional = "None" in kind or "Optional" in kind
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            rule, fine = "be a number", False
        elif not math.isfinite(value):
            rule, fine = "be finite", False
        elif "float" not in kind and not isinstance(value, int):
            rule, fine = "be a whole number", False
        else:
            fine = holds(value)
        if not fine:
            faults.append(f"{name}={value} must {rule}" + (", or null for none" if optional else ""))
    return faults
