"""What a measurement reads from the hub, by commit: results say what was measured, even if a branch moves later."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from rlhf_kit.data import sources
from rlhf_kit.data.hub import is_local
from rlhf_kit.errors import HubUnreachableError
from rlhf_kit.models.weights import TRUSTS_CODE, pinned

MODELS = ("models", "model_name_or_path")
DATA = ("dataset_name", "train_dataset_name", "demonstrations")


def pin(options: Any, baselines: Collection[str] = ()) -> None:
    """Give each name of the hub among the options the commit that it stands for now. Raises UserError.

    A name stays as it is where the hub cannot be asked: what loads it says so, after what else is wrong.
    Its models may run code of theirs where `trust_remote_code` says so.
    """
    if hasattr(options, "trust_remote_code"):
        TRUSTS_CODE.set(options.trust_remote_code)
    for name in MODELS:
        if hasattr(options, name):
            setattr(options, name, _each(getattr(options, name), partial(_model, baselines)))
    for name in DATA:
        if hasattr(options, name):
            setattr(options, name, _each(getattr(options, name), sources.pinned))


def _each(value: Any, pin_one: Callable[[str], str]) -> Any:
    """Of one name or several."""
    if isinstance(value, list):
        return [_each(one, pin_one) for one in value]
    try:
        return pin_one(value) if isinstance(value, str) else value
    except HubUnreachableError:
        return value


def _model(baselines: Collection[str], name: str) -> str:
    return name if name in baselines or is_local(name) else pinned("a model", name)
