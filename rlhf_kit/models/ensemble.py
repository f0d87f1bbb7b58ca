"""Several reward models as one: what they agree on is harder to exploit than what one of them believes.

Source: Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization", arXiv:2310.02743, section 3.
Limits: Eisenstein et al. 2023, arXiv:2312.09244: what all members believe wrongly stays exploitable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import Message
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.models.checkpoints import check_scorer, load_config, load_reward_model, load_tokenizer
from rlhf_kit.models.heads import check_head, score_texts
from rlhf_kit.models.weights import pinned
from rlhf_kit.options.bounds import number_faults

REDUCTIONS = ("mean", "min", "mean-std")


class Ensemble:
    """One score a completion from the calibrated scores of several reward models.

    Calibration is what makes their scores comparable: of two models that were never calibrated the one with the wider
    scores decides.

    Args:
        models: at least two, with one label each; the same data with other seeds, or other data.
        tokenizers: one a model.
        reduce: "mean", "min" (the paper's worst-case optimisation), or "mean-std": the mean less `std_coef` times the
            population standard deviation over the models (the paper's uncertainty-weighted optimisation takes the
            variance, which is in squared units of a score).
        std_coef: read by "mean-std" alone.
        batch_size: completions a forward.

    Raises:
        UserError: for fewer than two models, a model with several labels, an unknown reduction or coefficient.
    """

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        tokenizers: Sequence[PreTrainedTokenizerBase],
        reduce: str = "mean",
        std_coef: float = 1.0,
        batch_size: int = 16,
    ):
        if len(models) < 2:
            raise UserError(f"An ensemble of {len(models)} reward models: give at least two.")
        if len(tokenizers) != len(models):
            raise UserError(f"{len(models)} reward models and {len(tokenizers)} tokenizers: give one a model.")
        labels = [model.config.num_labels for model in models]
        if set(labels) != {1}:
            raise UserError(f"The models of the ensemble have {labels} labels; a reward model has 1.")
        for number, model in enumerate(models):
            check_head(model, model.config._name_or_path or str(number))
        if reduce not in REDUCTIONS:
            raise UserError(
                f"reduce={reduce!r} is not one of {', '.join(REDUCTIONS)}.{did_you_mean(reduce, REDUCTIONS)}"
            )
        if faults := number_faults("Ensemble", std_coef=std_coef, batch_size=batch_size):
            raise UserError(f"Ensemble: {'; '.join(faults)}.")
        self.models, self.tokenizers = list(models), list(tokenizers)
        self.reduce, self.std_coef, self.batch_size = reduce, std_coef, batch_size
        self.__name__ = f"ensemble-{reduce}"

    @classmethod
    def from_pretrained(cls, names: Sequence[str], device_map: str | None = None, **options) -> Ensemble:
        """The reward models of these hub ids or folders; `options` as above, `device_map` as for `load_policy`."""
        names = [pinned("a reward model", name) for name in names]
        for name in names:
            check_scorer(name, load_config(name, what="a reward model"))
        tokenizers = [load_tokenizer(name, needs_eos=False) for name in names]
        models = [
            load_reward_model(name, tokenizer=own, device_map=device_map)
            for name, own in zip(names, tokenizers, strict=True)
        ]
        return cls(models, tokenizers, **options)

    def to(self, device) -> Ensemble:
        for model in self.models:
            model.to(device)
        return self

    def member_scores(self, prompts: Sequence[str | Sequence[Message]], completions: Sequence[str]) -> Tensor:
        """Calibrated scores of N completions by each of M models. -> (M, N) float32, on the CPU."""
        return torch.stack(
            [
                score_texts(model, tokenizer, prompts, completions, self.batch_size)
                for model, tokenizer in zip(self.models, self.tokenizers, strict=True)
            ]
        )

    def __call__(self, prompts: Sequence[str | Sequence[Message]], completions: Sequence[str]) -> Tensor:
        """One score a completion. -> (N,) float32, on the CPU."""
        return self.combine(self.member_scores(prompts, completions))

    def combine(self, scores: Tensor) -> Tensor:
        """The members' scores as one. (M, N) -> (N,)."""
        if self.reduce == "min":
            return scores.amin(0)
        mean = scores.mean(0)
        return mean if self.reduce == "mean" else mean - self.std_coef * scores.std(0, correction=0)
