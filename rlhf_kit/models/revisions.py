"""What a measurement reads from the hub, by commit: results say what was measured, even if a branch moves later."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

from rlhf_kit.data import sources
from rlhf_kit.data.hub import is_local
from rlhf_kit.errors import HubUnreachableError
from rlhf_kit.models.weights import TRUSTS_CODE, pinned
from rlhf_kit.options.named import named_model, refuse_twice

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


def named_models(options: Any) -> dict[str, str]:
    """Folder or hub id by name of `options.models`, each `NAME=M` or `M`, those of the hub by commit. Raises
    UserError."""
    named = [named_model(text) for text in options.models]
    refuse_twice(name for name, _ in named)
    own = replace(options, models=[place for _, place in named])
    pin(own)
    return dict(zip((name for name, _ in named), own.models, strict=True))


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
