"""What to change where a run does not fit: each change planned anew, the smallest sets that help first."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlhf_kit.planning.machines import Launch, fully_sharded
from rlhf_kit.stages.arguments import Settings

MOST = 3  # changes at once
TOLD = 5  # sets of them
DEVICES = (2, 4, 8)


@dataclass(frozen=True)
class Change:
    """`option`: as it is written; `kind`: of two changes of one kind only one is made."""

    kind: str
    option: str
    apply: Callable[[Settings, Launch], Launch]

    def __call__(self, settings: Settings, launch: Launch) -> tuple[Settings, Launch]:
        settings = copy.copy(settings)
        settings.model, settings.training = copy.copy(settings.model), copy.copy(settings.training)
        return settings, self.apply(settings, launch)


def changes(settings: Settings, launch: Launch) -> list[Change]:
    """Those that this run leaves room for, by what they cost: nothing first, then time, then another method."""
    args = settings.training
    found: list[Change] = []
    rows = args.per_device_train_batch_size
    least = rows
    while least is not None and least > 1:
        least //= 2
        found.append(_fewer_rows(settings.stage, least, rows // least if rows % least == 0 else None))
    if settings.stage == "ppo":
        slots = args.generation_batch_size or args.rollout_batch_size // launch.devices
        while slots > 8:
            slots //= 2
            found.append(_set("rollout", f"--generation_batch_size {slots}", generation_batch_size=slots))
    if not (args.activation_checkpointing or args.gradient_checkpointing):
        found.append(_set("checkpointing", "--activation_checkpointing", activation_checkpointing=True))
    if not settings.model.use_peft and settings.stage != "mlm" and settings.model.config_overrides is None:
        found.append(Change("lora", "--use_peft", _use_peft))
    if launch.devices == 1:
        found += [_shard(count) for count in DEVICES]
    return found


def sets_that_fit(found: list[Change], fits: Callable[[tuple[Change, ...]], bool]) -> Iterator[tuple[Change, ...]]:
    """The sets of the smallest size that help; of one kind the mildest change only."""
    for size in range(1, MOST + 1):
        told: list[tuple[Change, ...]] = []
        for chosen in itertools.combinations(found, size):
            kinds = [change.kind for change in chosen]
            if len({*kinds}) == size and kinds not in [[c.kind for c in one] for one in told] and fits(chosen):
                told.append(chosen)
                yield chosen
            if len(told) == TOLD:
                return
        if told:
            return


def _set(kind: str, option: str, **values) -> Change:
    def apply(settings: Settings, launch: Launch) -> Launch:
        for name, value in values.items():
            setattr(settings.training, name, value)
        return launch

    return Change(kind, option, apply)


def _fewer_rows(stage: str, rows: int, times: int | None) -> Change:
    option = f"--per_device_train_batch_size {rows}"

    def apply(settings: Settings, launch: Launch) -> Launch:
        settings.training.per_device_train_batch_size = rows
        if stage != "ppo" and times:
            settings.training.gradient_accumulation_steps *= times
        return launch

    more = "" if stage == "ppo" or not times else f" (and {times} times --gradient_accumulation_steps: the same step)"
    return Change("rows", option + more, apply)


def _use_peft(settings: Settings, launch: Launch) -> Launch:
    settings.model.use_peft = True
    return launch


def _shard(count: int) -> Change:
    return Change("shard", f"--accelerate fsdp2 --devices {count}", lambda settings, launch: fully_sharded(count, {}))
