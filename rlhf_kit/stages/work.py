"""What a run has computed: counted while it trains, by the models it has, and told in `run.json`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object
from torch import nn

from rlhf_kit.models.work import Counts, counted
from rlhf_kit.training import Trainer


def models_of(trainer: Trainer) -> dict[str, nn.Module]:
    """By what they are to the run: `model` is trained. A reference that is the model without its adapter is none."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    models = {"model": getattr(model, "policy", model), "value_model": getattr(model, "value_trunk", None)}
    reference = getattr(trainer, "ref_model", None)
    models["reference"] = getattr(reference, "policy", reference)
    functions = trainer.rewards.models if hasattr(trainer, "rewards") else getattr(trainer, "reward_funcs", ())
    judges = [judge for judge in functions if isinstance(judge, nn.Module)]
    numbers = [""] if len(judges) == 1 else [f"_{number}" for number in range(1, len(judges) + 1)]
    models |= {f"reward_model{number}": judge for number, judge in zip(numbers, judges, strict=True)}
    return {name: model for name, model in models.items() if model is not None}


@contextmanager
def counting(trainer: Trainer) -> Iterator[None]:
    """Within, the trainer counts what its models compute; a resumed run goes on counting. Not of a compiled model."""
    if trainer.args.torch_compile:
        yield
        return
    trainer._work = {}
    with counted(models_of(trainer), trainer._work):
        yield


def work_of(trainer: Trainer) -> dict[str, Any] | None:
    """What all processes, which call this together, have counted: FLOPs, and by model its tokens and FLOPs. None where
    nothing was."""
    parts: list[Counts | None] = gather_object([trainer._work])
    if parts[0] is None:
        return None
    models = {
        name: {what: round(sum(part[name][what] for part in parts)) for what in counts}
        for name, counts in parts[0].items()
    }
    return {"flops": sum(count["forward"] + count["backward"] for count in models.values()), "models": models}
