"""Reward models from ranked answers: K answers to a prompt, best to worst, each forwarded once.

The loss is InstructGPT's (Ouyang et al. 2022, section 3.5): the mean of -log sigmoid(s_better - s_worse) over the
strictly ordered pairs of a prompt, then the mean over prompts. A pair (chosen, rejected) is a ranking of two; thumbs
up and down are trained with binary cross entropy. Ties are dropped.

Notation: G prompts ("lists") in a batch, N answers of all of them, T tokens of the longest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from rlhf_kit import ops
from rlhf_kit.data.chat import encode_completion, encode_prompt, set_chat_template
from rlhf_kit.errors import UserError
from rlhf_kit.models.adapters import wrap
from rlhf_kit.models.checkpoints import context_length, load_reward_model, load_tokenizer
from rlhf_kit.models.dropout import disable_dropout
from rlhf_kit.models.heads import fit_context, pad_right, sequence_scores, set_calibration, unwrapped

logger = logging.getLogger(__name__)


@dataclass
class RewardConfig(TrainingArguments):
    """How to train a reward model. Batch sizes count prompts: all answers of a prompt are in one forward.

    The defaults make an optimizer step of 64 prompts on one device, as in InstructGPT.
    """

    learning_rate: float = field(
        default=1e-5, metadata={"help": "Peak learning rate (InstructGPT: 9e-6, appendix C.2)."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Decay (InstructGPT: cosine, appendix C.2)."})
    warmup_steps: float = field(
        default=0.03, metadata={"help": "Steps of warm-up, or below 1 their share (PPO-max, arXiv:2307.04964: 3 %)."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Adam's beta2 (InstructGPT, appendix C)."})
    num_train_epochs: float = field(
        default=1.0, metadata={"help": "Passes over the data; more overfit (InstructGPT, appendix C.2)."}
    )
    per_device_train_batch_size: int = field(
        default=8, metadata={"help": "Prompts a forward, with all their answers."}
    )
    gradient_accumulation_steps: int = field(
        default=8, metadata={"help": "Forwards an optimizer step; 8 x 8 = InstructGPT's 64 prompts."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Optimizer steps between logs."})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest prompt + answer in tokens; None: the model's context. A longer one loses the beginning "
            "of its prompt; an answer that is longer by itself is dropped."
        },
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Train without the model's own dropout (as TRL)."})
    center_rewards_coefficient: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the squared sum of a pair's two rewards, which holds rewards near 0 "
            "(Eisenstein et al. 2023, arXiv:2312.09244, eq. 2: 0.01); None: off."
        },
    )
    calibrate: bool = field(
        default=True,
        metadata={
            "help": "After training, scale scores to mean 0, std 1 on the training answers (Ziegler et al. 2019)."
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The answers and ranks are needed."})

    def __post_init__(self):
        super().__post_init__()
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"RewardConfig: max_length={self.max_length} must be at least 1.")


# ------------------------------------------------------------------------------------------
# Data


def _encode_ranking(row: dict, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> dict:
    prompt = encode_prompt(tokenizer, row["prompt"])
    rows, ranks, cut = [], [], 0
    for completion, rank in zip(row["completions"], row["ranks"], strict=True):
        answer = encode_completion(tokenizer, completion, eos=False)
        ids = fit_context(prompt, answer, limit)
        if ids is not None:
            rows.append(ids)
            ranks.append(rank)
            cut += len(ids) < len(prompt) + len(answer)
    too_long = len(row["completions"]) - len(rows)
    fault = ""
    if len(rows) < 2:
        fault = "fewer than two answers"
    elif len({tuple(ids) for ids in rows}) == 1:
        fault = "identical answers"
    elif len(set(ranks)) == 1:
        fault = "all answers tied"
    return {
        "input_ids": rows,
        "ranks": ranks,
        "margin": float(row.get("margin") or 0.0),
        "length": max(map(len, rows), default=0),
        "prompts_cut": cut,
        "too_long": too_long,
        "fault": fault,
    }


def _encode_thumb(row: dict, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> dict:
    prompt = encode_prompt(tokenizer, row["prompt"])
    answer = encode_completion(tokenizer, row["completion"], eos=False)
    ids = fit_context(prompt, answer, limit)
    return {
        "input_ids": [ids or []],
        "thumb": bool(row["label"]),
        "length": len(ids or []),
        "prompts_cut": int(ids is not None and len(ids) < len(prompt) + len(answer)),
        "too_long": int(ids is None),
        "fault": "" if ids else "no answer",
    }


def encode_comparisons(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[Dataset, dict[str, int]]:
    """Canonical rows (`data.loading`) as token ids, and counts of what was cut or dropped.

    Rankings (`prompt`, `completions`, `ranks`, `margin`) and thumbs (`prompt`, `completion`, `label`) both become
    `input_ids` (answers x tokens), without the final EOS. A list is dropped when fewer than two different answers are
    left or all are tied.

    Raises:
        UserError: for other columns, or when nothing is left.
    """
    columns = set(dataset.column_names)
    if {"prompt", "completions", "ranks"} <= columns:
        encode = _encode_ranking
    elif {"prompt", "completion", "label"} <= columns:
        encode = _encode_thumb
    else:
        raise UserError(
            f"The dataset has the columns {', '.join(sorted(columns))}; needed are prompt, completions, ranks "
            "(rankings) or prompt, completion, label (thumbs). `rlhf_kit.data.loading.load` reads pairs and files "
            "into these."
        )
    if len(dataset) and not isinstance(dataset[0]["prompt"], str):
        set_chat_template(tokenizer)
    encoded = dataset.map(
        encode,
        fn_kwargs={"tokenizer": tokenizer, "limit": max_length},
        remove_columns=dataset.column_names,
        desc="Tokenizing comparisons",
    )
    faults = list(encoded["fault"])
    counts = {
        "lists": len(encoded),
        "prompts cut at the beginning": sum(encoded["prompts_cut"]),
        "answers longer than the context": sum(encoded["too_long"]),
        **{f"lists dropped: {fault}": faults.count(fault) for fault in sorted(set(faults) - {""})},
    }
    kept = [row for row, fault in enumerate(faults) if not fault]
    if not kept:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"No comparison is left to learn from ({told}; max_length {max_length}).")
    return encoded.select(kept).remove_columns(["prompts_cut", "too_long", "fault"]), counts


@dataclass
class ComparisonCollator:
    """Lists as one flat batch: input_ids (N, T) padded on the right, lengths (N,), groups (N,) = which list;
    ranks (N,) and margins (N,) for rankings, thumbs (N,) bool otherwise."""

    pad_token_id: int

    def __call__(self, lists: list[dict]) -> dict[str, Tensor]:
        sizes = torch.tensor([len(item["input_ids"]) for item in lists])
        input_ids, lengths = pad_right([ids for item in lists for ids in item["input_ids"]], self.pad_token_id)
        groups = torch.arange(len(lists)).repeat_interleave(sizes)
        batch = {"input_ids": input_ids, "lengths": lengths, "groups": groups}
        if "thumb" in lists[0]:
            return {**batch, "thumbs": torch.tensor([item["thumb"] for item in lists])}
        margins = torch.tensor([item["margin"] for item in lists], dtype=torch.float32)
        ranks = torch.tensor([rank for item in lists for rank in item["ranks"]])
        return {**batch, "ranks": ranks, "margins": margins[groups]}


# ------------------------------------------------------------------------------------------
# Losses and measures, one number a list. Every list that `encode_comparisons` keeps has an ordered pair.


def list_losses(scores: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Ranking or thumbs loss of each list. (N,) -> (G,)."""
    if "thumbs" in batch:
        return torch.stack([ops.thumbs_loss(*pair) for pair in zip(scores, batch["thumbs"], strict=True)])
    return ops.ranking_losses(scores, batch["groups"], batch["ranks"], batch["margins"])


def centering(scores: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Mean of (s_better + s_worse)^2 over a list's ordered pairs, then over lists; of s^2 for thumbs. (N,) -> ().

    Equals TRL's term for lists of two. Source: Eisenstein et al. 2023, arXiv:2312.09244, eq. 2.
    """
    if "thumbs" in batch:
        return scores.square().mean()
    better, worse = ops.ordered_pairs(batch["groups"], batch["ranks"])
    return ops.mean_per_group((scores[better] + scores[worse]).square(), batch["groups"][better])[0].mean()


def list_measures(scores: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Columns: loss, accuracy, margin, and the count, mean and population variance of a list's scores. (N,) -> (G, 6).

    Accuracy is over strictly ordered pairs, an equal score counting 0.5; margin is s_better - s_worse in raw units.
    """
    groups = batch["groups"]
    if "thumbs" in batch:
        margin = torch.where(batch["thumbs"], scores, -scores)
        accuracy = (torch.sign(margin) + 1) / 2
    else:
        better, worse = ops.ordered_pairs(groups, batch["ranks"])
        accuracy, _ = ops.pair_accuracy(scores, groups, batch["ranks"])
        margin, _ = ops.mean_per_group(scores[better] - scores[worse], groups[better])
    mean, _ = ops.mean_per_group(scores, groups)
    variance, _ = ops.mean_per_group((scores - mean[groups]).square(), groups)
    count = torch.bincount(groups).to(scores.dtype)
    return torch.stack([list_losses(scores, batch), accuracy, margin, count, mean, variance], dim=1)


def summarize(measures: Tensor) -> dict[str, float]:
    """Means over lists of `list_measures` (G, 6), and mean and population std of all their scores."""
    loss, accuracy, margin, count, mean, variance = measures.double().unbind(1)
    overall = (count * mean).sum() / count.sum()
    spread = (count * (variance + (mean - overall).square())).sum() / count.sum()
    return {
        "loss": loss.mean().item(),
        "accuracy": accuracy.mean().item(),
        "margin": margin.mean().item(),
        "mean_reward": overall.item(),
        "std_reward": spread.sqrt().item(),
    }


def _metrics(prediction: EvalPrediction) -> dict[str, float]:
    return summarize(torch.as_tensor(prediction.predictions))


# ------------------------------------------------------------------------------------------
# The trainer


class RewardTrainer(Trainer):
    """Trains a sequence classifier with one label on rankings, pairs or thumbs.

    The saved model is a plain `AutoModelForSequenceClassification`; its calibration stands in the config
    (`models.heads.calibration`). Logs loss, accuracy, margin and mean_reward (raw scores); evaluation the same,
    exact over uneven batches and processes, its loss without the centring term.

    Args:
        model: hub id, folder, model or peft model; one label.
        train_dataset, eval_dataset: canonical rows of `data.loading` (`eval_dataset` may be a dict of them).
        processing_class: the tokenizer; None: the model's.
        peft_config: LoRA; targets, task type and head are inferred (`models.adapters.wrap`).
    """

    # The loss is already divided by all the lists of the optimizer step, those of other processes included.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: RewardConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        peft_config: LoraConfig | None = None,
    ):
        name = str(model) if not isinstance(model, nn.Module) else unwrapped(model).config._name_or_path
        args = args or RewardConfig(f"{name.rstrip('/').split('/')[-1]}-Reward")
        if args.n_gpu > 1:
            raise UserError(
                f"{args.n_gpu} GPUs are visible to one process, which would split a list's answers between them. "
                "Start with `accelerate launch`, or show one GPU with CUDA_VISIBLE_DEVICES."
            )
        self.tokenizer = processing_class or load_tokenizer(name)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model = self._one_score(model, args, peft_config)
        config = unwrapped(model).config
        self.limit = min((n for n in (args.max_length, context_length(config)) if n), default=None)
        self.data_counts: dict[str, dict[str, int]] = {}
        with args.main_process_first(desc="tokenizing the comparisons"):
            if train_dataset is not None:
                train_dataset = self._encoded(train_dataset, "train")
            if isinstance(eval_dataset, dict):
                eval_dataset = {key: self._encoded(rows, key) for key, rows in eval_dataset.items()}
            elif eval_dataset is not None:
                eval_dataset = self._encoded(eval_dataset, "eval")
        self._measures: list[Tensor] = []  # (G, 6) of each training forward since the last log
        super().__init__(
            model=model,
            args=args,
            data_collator=ComparisonCollator(self.tokenizer.pad_token_id),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self.tokenizer,
            compute_metrics=_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
        )

    def _one_score(self, model, args: RewardConfig, peft_config: LoraConfig | None) -> PreTrainedModel | PeftModel:
        if not isinstance(model, nn.Module):
            set_seed(args.seed)  # the head may be new
            model = load_reward_model(model, tokenizer=self.tokenizer)
        config = unwrapped(model).config
        if config.num_labels != 1:
            raise UserError(
                f"The model has {config.num_labels} labels; a reward model has one number an answer. "
                "Load it with num_labels=1."
            )
        # What plain transformers, which pools the last token that is not padding, needs to read the same token.
        config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        if args.disable_dropout:
            disable_dropout(model)
        return model if peft_config is None else wrap(model, peft_config)

    def _encoded(self, dataset: Dataset, name: str) -> Dataset:
        if "input_ids" in dataset.column_names:
            return dataset
        dataset, counts = encode_comparisons(dataset, self.tokenizer, self.limit)
        self.data_counts[name] = counts
        told = [f"{what} {count}" for what, count in counts.items() if count and what != "lists"]
        if told:
            logger.warning("%s: of %d lists: %s", name, counts["lists"], ", ".join(told))
        return dataset

    # -- training ----------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | None]:
        """The micro-batches of an optimizer step, and their lists over all processes, by which the loss is divided."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        lists = torch.stack([batch["groups"][-1] + 1 for batch in batches]).sum().to(device)
        return batches, self.accelerator.reduce(lists, "sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the lists of these `inputs`; over `num_items_in_batch` lists of the whole step if given."""
        scores = sequence_scores(model, inputs["input_ids"], inputs["lengths"])
        loss = list_losses(scores, inputs).mean()
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * centering(scores, inputs)
        if model.training:
            self._measures.append(list_measures(scores.detach(), inputs))
        if num_items_in_batch is not None:
            # Processes average their gradients, where the mean over all lists needs their sum.
            share = (inputs["groups"][-1] + 1) / num_items_in_batch
            loss = loss * share * self.accelerator.num_processes
        return (loss, {"scores": scores}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds accuracy, margin and mean_reward of all lists trained on since the last log."""
        if "loss" in logs and self._measures:
            measures = torch.cat(self._measures)  # (G, 6)
            self._measures.clear()
            count = measures[:, 3]
            sums = torch.stack(
                [torch.ones_like(count), measures[:, 1], measures[:, 2], count, count * measures[:, 4]], 1
            )
            lists, accuracy, margin, answers, rewards = self.accelerator.reduce(sums.sum(0), "sum").tolist()
            logs |= {"accuracy": accuracy / lists, "margin": margin / lists, "mean_reward": rewards / answers}
        super().log(logs, start_time)

    def train(self, *args, **kwargs):
        """Train, then calibrate (`args.calibrate`), so that every later save carries the calibration."""
        output = super().train(*args, **kwargs)
        if self.args.calibrate:
            self.calibrate()
        return output

    # -- evaluation --------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"):
        """Exact means over lists: {prefix}_loss, _accuracy, _margin, _mean_reward, _std_reward (raw scores)."""
        if isinstance(eval_dataset, Dataset):
            eval_dataset = self._encoded(eval_dataset, metric_key_prefix)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """One row of measures a list, so that gathering and dropping repeated lists stays exact. -> (G, 6), (G,)."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = sequence_scores(model, inputs["input_ids"], inputs["lengths"])
        measures = list_measures(scores, inputs)
        # The second is a stand-in: without labels transformers computes no metrics.
        return None, measures, measures[:, 0]

    def calibrate(self, dataset: Dataset | None = None) -> tuple[float, float]:
        """Set gain and bias so that scores have mean 0 and population std 1 over the answers of `dataset`.

        None: the training data. One forward an answer. -> (gain, bias), stored in the model's config.

        Raises:
            UserError: when all answers get the same score.

        Source: Ziegler et al. 2019, section 2.2.
        """
        dataset = self.train_dataset if dataset is None else self._encoded(dataset, "calibration")
        loader = self.get_test_dataloader(dataset)
        output = self.evaluation_loop(loader, "Calibration", metric_key_prefix="calibration")
        self.callback_handler.on_predict(self.args, self.state, self.control, output.metrics)  # closes progress bars
        mean, std = output.metrics["calibration_mean_reward"], output.metrics["calibration_std_reward"]
        if not (math.isfinite(mean) and std > 1e-6 * max(1.0, abs(mean))):
            raise UserError(
                f"The reward model gives every answer the same score (mean {mean:.6g}, std {std:.3g}): it learnt "
                "nothing that could be scaled. Look at the loss and the data, or set calibrate to false to keep it."
            )
        gain, bias = 1 / std, -mean / std
        set_calibration(unwrapped(self.model).config, gain, bias)
        return gain, bias

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel) and self.args.should_save:
            # peft saves no model config, and the calibration stands there.
            model.get_base_model().config.save_pretrained(output_dir or self.args.output_dir)
