"""PPO beside best-of-n by the same reward model, on demos of several seeds: truth, score and KL at equal prompts.

for seed in 0 1 2; do rlhf-kit demo --seed $seed --output_dir runs/demo-$seed; done
python benchmarks/best_of_n.py runs/demo-0 runs/demo-1 runs/demo-2
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from rlhf_kit import world
from rlhf_kit.comparison.records import TEMPERATURE
from rlhf_kit.models.checkpoints import load_policy, load_reward_model, load_tokenizer
from rlhf_kit.ppo.best_of_n import BestOfN, best_of_n

N = 16


def pool_of(demo: Path) -> BestOfN:
    """Sixteen completions of the SFT policy for each held-out prompt, chosen by the reward model, judged by truth."""
    return best_of_n(
        load_policy(demo / "sft"),
        load_tokenizer(demo / "sft"),
        [row["prompt"] for row in world.rows("prompts", "test")],
        load_reward_model(demo / "reward"),
        N,
        max_completion_length=40,
        temperature=TEMPERATURE,
        heldout_funcs=world.truth_reward,
        generator=torch.Generator().manual_seed(1),
    )


def main(demos: list[Path]) -> None:
    print("| demo | policy | truth | reward-model score | KL to SFT (nats) |\n| --- | --- | --- | --- | --- |")
    for demo in demos:
        for row in pool_of(demo).rows():
            if row["n"] in (1, 4, N):
                figures = f"{row['heldout']:.3f} | {row['score']:.2f} | {row['kl']:.2f}"
                print(f"| {demo.name} | best of {row['n']} | {figures} |")
        stages = json.loads((demo / "summary.json").read_text())["stages"]
        for name in ("ppo", "ppo_no_kl"):
            at = stages[name]
            print(f"| {demo.name} | {name} | {at['truth']:.3f} | {at['reward_model_score']:.2f} | {at['kl']:.2f} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(name) for name in sys.argv[1:]])
