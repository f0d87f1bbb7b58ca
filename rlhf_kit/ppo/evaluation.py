"""Evaluation: what the policy says to held-out prompts, beside what the reference says to them."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.errors import UserError

NAMES = ("reward", "reward_std", "kl", "kl_per_token", "entropy")
RENAMED = {"completions/length": "length", "completions/terminated": "terminated"}


def share_of(size: int, processes: int, index: int) -> range:
    """Places of `size` prompts that fall to process `index`, as even as can be.

    >>> [list(share_of(5, 2, index)) for index in range(2)]
    [[0, 1], [2, 3, 4]]
    """
    return range(size * index // processes, size * (index + 1) // processes)


def check_share(prompts: list[dict], processes: int) -> None:
    """Raises UserError where there are no prompts, or fewer than processes."""
    if not prompts:
        raise UserError("There is nothing to evaluate on; give an eval_dataset.")
    if len(prompts) < processes:
        raise UserError(f"eval_dataset has {len(prompts)} prompts for {processes} processes; each needs one at least.")


class Evaluation:
    """Samples prompts with the run's seed: the same draws whatever the number of processes."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.reference_scores: Tensor | None = None  # of the trainer's own prompts: the reference does not change

    def __call__(self, prompts: list[dict], cached: bool) -> dict[str, float]:
        """Reward, KL, length and more of the policy's completions, and how often they beat the reference's.

        `win_rate` is the share of prompts where the completion scores above that of the reference; a tie is half.

        Args:
            cached: these are the trainer's own prompts, on which the reference is asked but once.
        """
        trainer = self.trainer
        check_share(prompts, trainer.args.world_size)
        share = share_of(len(prompts), trainer.args.world_size, trainer.args.process_index)
        rows = prompts[share.start : share.stop]
        experience, metrics = trainer.collect(rows, self._generator(share.start), training=False)
        if not cached or self.reference_scores is None:
            reference = self.scores_of_reference(rows, share.start)
            self.reference_scores = reference if cached else self.reference_scores
        else:
            reference = self.reference_scores
        gap = (experience.scores - reference).sign()  # 1 won, -1 lost
        report = {name: metrics[name] for name in NAMES}
        report |= {name: value for name, value in metrics.items() if name.startswith("rewards/")}
        report |= {ours: metrics[name] for name, ours in RENAMED.items()}
        return report | {"win_rate": trainer.averages.mean((gap + 1) / 2)}

    @torch.no_grad()
    def scores_of_reference(self, rows: list[dict], first: int = 0) -> Tensor:
        """Scores of what the reference says to `rows`, the first of which is prompt number `first`. (B,)."""
        rollout = self.trainer.sample(rows, self._generator(first), reference=True)
        return self.trainer.shape_scores(self.trainer.score(rows, rollout)[0], rollout, training=False)

    def _generator(self, first: int) -> torch.Generator:
        """Draws for the prompts from number `first` on: those before it have had theirs."""
        args = self.trainer.args
        generator = torch.Generator().manual_seed(args.seed)
        torch.rand(first, args.max_completion_length, generator=generator)
        return generator
