"""How much a run computes, and about how long that takes."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_kit.models.work import Products
from rlhf_kit.planning.batches import Amount, Batch
from rlhf_kit.planning.machines import Launch, Machine
from rlhf_kit.planning.records import Part, Roles, Shape, half_of
from rlhf_kit.stages.arguments import Settings

# Of a device's dense products in training and scoring: 38 to 43 % were had with Llama 3 405B on H100s (Dubey et al.
# 2024, arXiv:2407.21783, table 4) and 46 % with PaLM (arXiv:2204.02311, table 3), by code made for it; a plain loop of
# transformers has less, and a model of GPT-2's size less still.
UTILISATION = 0.3
# Of its memory's bandwidth, by which the sampling of a token is bound: every weight is read for it.
READING = 0.5


@dataclass(frozen=True)
class Work:
    """Of a whole run, over all devices: FLOPs by what they are for, and the hours; `sampling`: those that are bound by
    memory instead."""

    flops: dict[str, float]
    hours: float
    sampling: float

    @property
    def total(self) -> float:
        return sum(self.flops.values())


def products_of(part: Part, shape: Shape) -> Products:
    return Products(part.body, part.head, shape.layers, shape.hidden, part.trained / part.parameters)


def forward_flops(part: Part, shape: Shape, tokens: float, mean: float, predicted: float) -> float:
    """`mean`: tokens of a row, half of which a token attends to."""
    return products_of(part, shape).forward(tokens, tokens * mean / 2, predicted)


def training_flops(part: Part, shape: Shape, tokens: float, mean: float, predicted: float, recomputes: bool) -> float:
    """A forward and its backward."""
    backward = products_of(part, shape).backward(tokens, tokens * mean / 2, predicted, recomputes)
    return forward_flops(part, shape, tokens, mean, predicted) + backward


def work_of(
    settings: Settings, roles: Roles, batch: Batch, amount: Amount, launch: Launch, machine: Machine, used: float
) -> Work | None:
    """None where it is not known how many rows there are. `used`: the utilisation."""
    if amount.texts is None or amount.mean is None:
        return None
    args, shape = settings.training, roles.shape
    rate = used * (machine.half if half_of(settings) else machine.float32)
    recomputes = bool(args.activation_checkpointing or args.gradient_checkpointing)
    mean, tokens = amount.mean, amount.texts * amount.mean * amount.epochs
    if settings.stage != "ppo":
        share = 0 if settings.stage == "reward" else batch.predicted / (batch.rows * batch.width)
        predicted = tokens * share
        flops = {"training": training_flops(roles.policy, shape, tokens, mean, predicted, recomputes)}
        return Work(flops, _hours(sum(flops.values()), launch, rate), 0.0)
    predicted = float(amount.texts * batch.completion)
    policy = roles.policy
    flops = {"sampling": forward_flops(policy, shape, tokens, mean, predicted)}
    flops["reference"] = forward_flops(policy, shape, tokens, mean, predicted)
    elsewhere = args.generation_backend == "vllm"
    reads = elsewhere or half_of(settings) or roles.value is not None or args.bootstrap_truncated  # else exact already
    if reads:
        flops["values"] = sum(forward_flops(part, shape, tokens, mean, predicted) for part in roles.trained)
    flops["rewards"] = sum(forward_flops(part, shape, tokens, mean, 0) for part in roles.rewards)
    flops["training"] = args.num_ppo_epochs * sum(
        training_flops(part, shape, tokens, mean, predicted, recomputes) for part in roles.trained
    )
    rounds = amount.texts / launch.devices / batch.slots
    each_step = (policy.body + policy.head) * (2 if half_of(settings) else 4)
    each_step += roles.cached * batch.slots * mean * (2 if half_of(settings) else 4)
    bound = rounds * batch.completion * each_step / (READING * machine.bandwidth) / 3600
    computed = _hours(flops["sampling"], launch, rate)
    others = _hours(sum(flops.values()) - flops["sampling"], launch, rate)
    return Work(flops, others + max(bound, computed), max(bound, computed))


def _hours(flops: float, launch: Launch, rate: float) -> float:
    return flops / (launch.devices * rate) / 3600
