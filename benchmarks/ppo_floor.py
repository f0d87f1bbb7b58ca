"""The least time that the phases of PPO could take: their matrix products alone, at the rate this machine does them.

Each rate is that of all products of one forward, on as many rows as the phase gives them and with every layer's own
weights, so that weights come from memory where they would. Attention, norms, sampling and Adam count as nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from ppo_work import EPOCHS, FORWARD, NEW_TOKENS, Shape, prompts_of

FORWARDS = {"training": 3, "training, weights frozen": 2}  # products as multiples of a forward's
DTYPE = torch.bfloat16


def trunk_flops(shape: Shape, tokens: float) -> float:
    return 2 * 12 * shape.layers * shape.width**2 * tokens


def head_flops(shape: Shape, positions: float) -> float:
    return 2 * shape.width * shape.vocabulary * positions


def work_of(shape: Shape, name: str) -> dict[str, list[tuple[str, str, int, float]]]:
    """Phase -> its products: (trunk or head, how, rows at a time, FLOPs)."""
    prompt = statistics.mean(map(len, prompts_of(shape)))
    length, n = prompt + NEW_TOKENS, shape.rollout
    trunks = 2 if "separate" in name else 1
    how = "training, weights frozen" if "lora" in name else "training"
    times = EPOCHS * FORWARDS[how]

    def forward(trunks: int, heads: int) -> list[tuple[str, str, int, float]]:
        found = [("trunk", "forward", int(FORWARD * length), trunks * trunk_flops(shape, n * length))]
        return found + [("head", "forward", FORWARD * NEW_TOKENS, heads * head_flops(shape, n * NEW_TOKENS))]

    return {
        "rollout": [
            ("trunk", "forward", int(n * prompt), trunk_flops(shape, n * prompt)),
            ("trunk", "forward", n, trunk_flops(shape, n * (NEW_TOKENS - 1))),
            ("head", "forward", n, head_flops(shape, n * NEW_TOKENS)),
        ],
        "policy": forward(trunks, 1),
        "reference": forward(1, 1),
        "update": [
            ("trunk", how, int(shape.micro * length), times * trunks * trunk_flops(shape, n * length)),
            ("head", how, shape.micro * NEW_TOKENS, times * head_flops(shape, n * NEW_TOKENS)),
        ],
    }


def _weights(shape: Shape, part: str) -> list[torch.Tensor]:
    d = shape.width
    sizes = [(d, shape.vocabulary)] if part == "head" else shape.layers * [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)]
    return [torch.randn(outputs, inputs, dtype=DTYPE) for inputs, outputs in sizes]


def _once(weights: list[torch.Tensor], rows: int, how: str) -> Callable[[], None]:
    """All products of a forward, or of a forward and a backward."""
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1], dtype=DTYPE) for w in weights}
    trained = how != "forward"
    wanted = [w.requires_grad_(how == "training") for w in weights]

    def run() -> None:
        for weight in wanted:
            x = inputs[weight.shape[1]].requires_grad_(trained)
            y = F.linear(x, weight)
            if trained:
                torch.autograd.grad(y, [x, weight] if weight.requires_grad else [x], torch.ones_like(y))

    return run


def rate(shape: Shape, part: str, how: str, rows: int, seconds: float = 1.0) -> float:
    """FLOPs a second, the median of as many passes as fit in `seconds`."""
    weights = _weights(shape, part)
    run = _once(weights, rows, how)
    run()
    taken, began = [], time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    flops = 2 * rows * sum(w.numel() for w in weights) * FORWARDS.get(how, 1)
    return flops / statistics.median(taken)


def rates(shape: Shape) -> dict:
    """Every rate that a system's floor asks for."""
    wanted = sorted(
        {
            (part, how, rows)
            for name in ("shared", "lora")
            for products in work_of(shape, name).values()
            for part, how, rows, _ in products
        }
    )
    return {"rates": [[*key, rate(shape, *key)] for key in wanted]}


def floors(shape: Shape, name: str, measured: list[list]) -> dict[str, float]:
    """Phase -> seconds."""
    known = {tuple(key): value for *key, value in measured}
    return {
        phase: sum(flops / known[part, how, rows] for part, how, rows, flops in products)
        for phase, products in work_of(shape, name).items()
    }
