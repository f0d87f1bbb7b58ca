"""Reward models from 500 lists of the world, as lists and as shuffled pairs: held-out accuracy over the ceiling.

rlhf-kit demo --output_dir runs/demo
python benchmarks/reward_lists.py runs/demo
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from rlhf_kit import world
from rlhf_kit.processes import on_cpu, quiet
from rlhf_kit.reward import RewardConfig, RewardTrainer

LISTS, SEEDS = 500, (0, 1, 2)
WAYS = {  # whether as pairs, rows a step, passes
    "lists, 8 a step, 1 pass": (False, 8, 1),
    "lists, 8 a step, 3 passes": (False, 8, 3),
    "lists, 2 a step, 2 passes": (False, 2, 2),
    "the same lists as shuffled pairs, 75 a step, 1 pass": (True, 75, 1),
    "the same lists as shuffled pairs, 8 a step, 1 pass": (True, 8, 1),
}


def shuffled_pairs(lists: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Every better answer beside every worse one."""
    pairs = []
    for row in lists:
        ranked = sorted(zip(row["ranks"], row["completions"], strict=True), key=lambda one: one[0])
        pairs += [
            {"prompt": row["prompt"], "chosen": better, "rejected": worse}
            for (rank, better), (other, worse) in combinations(ranked, 2)
            if rank < other
        ]
    random.Random(seed).shuffle(pairs)
    return pairs


def accuracy(sft: Path, rows: list[dict[str, Any]], step: int, passes: int, seed: int) -> float:
    """Of a model trained on `rows`, on the held-out lists."""
    with tempfile.TemporaryDirectory() as folder:
        config = RewardConfig(
            folder, learning_rate=5e-4, per_device_train_batch_size=step, gradient_accumulation_steps=1,
            warmup_steps=0.05, num_train_epochs=passes, train_sampling_strategy="group_by_length", save_strategy="no",
            seed=seed, disable_tqdm=True, report_to="none", logging_strategy="no", use_cpu=on_cpu(), bf16=False,
        )  # fmt: skip
        trainer = RewardTrainer(str(sft), config, rows, world.rows("ranked", "test"))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer.evaluate()["eval_accuracy"]


def main(demo: Path) -> None:
    quiet()
    lists, ceiling = world.rows("ranked", "train")[:LISTS], world.accuracy_ceiling(world.rows("ranked", "test"))
    print(
        f"ceiling {ceiling:.3f}\n\n| | seed 0 | seed 1 | seed 2 | mean | seconds |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    for name, (as_pairs, step, passes) in WAYS.items():
        began = time.monotonic()
        rows = {seed: shuffled_pairs(lists, seed) if as_pairs else lists for seed in SEEDS}
        shares = [accuracy(demo / "sft", rows[seed], step, passes, seed) / ceiling for seed in SEEDS]
        figures = [*shares, sum(shares) / len(shares)]
        told = " | ".join(f"{figure:.3f}" for figure in figures)
        print(f"| {name} | {told} | {time.monotonic() - began:.0f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
