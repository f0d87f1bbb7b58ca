"""Reward models from ranked answers: K answers to a prompt, best to worst, each forwarded once.

The loss is by default InstructGPT's (Ouyang et al. 2022, section 3.5): the mean of -log sigmoid(s_better - s_worse)
over the strictly ordered pairs of a prompt, then the mean over prompts. A pair (chosen, rejected) is a ranking of two;
thumbs up and down are trained with binary cross entropy. `RewardConfig.loss_type` and `tie_loss` offer others.

Notation: G prompts ("lists") in a batch, N answers of all of them, T tokens of the longest row.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)

from rlhf_kit.data.loading import checked
from rlhf_kit.errors import UserError
from rlhf_kit.models.adapters import save_config, trainable
from rlhf_kit.models.checkpoints import load_config, load_reward_model, load_tokenizer
from rlhf_kit.models.dropout import disable_dropout
from rlhf_kit.models.forward import context_length, unwrapped
from rlhf_kit.models.fused import fuse_activations
from rlhf_kit.models.heads import (
    PLAIN,
    RowFormat,
    check_scores,
    fold_calibration,
    row_format,
    sequence_scores,
    set_calibration,
)
from rlhf_kit.models.packed import is_packed
from rlhf_kit.models.prefix import check_shared_prefix, tree_scores
from rlhf_kit.models.weights import short_name, with_origin
from rlhf_kit.ops import length_mask
from rlhf_kit.reward.config import RewardConfig
from rlhf_kit.reward.data import KINDS, ComparisonCollator, encode_comparisons
from rlhf_kit.reward.measures import Measures, centering, list_losses, list_measures, summarize
from rlhf_kit.training import Trainer
from rlhf_kit.training.launch import usable
from rlhf_kit.training.lists import MeanOverLists

logger = logging.getLogger(__name__)


def answer_scores(model: nn.Module, batch: dict[str, Tensor], reads: RowFormat = PLAIN) -> Tensor:
    """Raw scores of all answers of a `ComparisonCollator` batch, each computed once, with gradients. -> (N,)."""
    rows = len(batch["input_ids"])
    tensors = ("input_ids", "position_ids", "segments") if "segments" in batch else ("input_ids",)
    parts = batch["parts"] or [(list(range(rows)), None)]
    pieces = []
    for part, width in parts:
        piece = {name: batch[name][part, :width] for name in tensors}
        if "segments" in batch:
            pieces.append(tree_scores(model, piece | {"ends": batch["ends"][part]}))  # (g, K)
        else:
            pieces.append(sequence_scores(model, piece["input_ids"], batch["lengths"][part], reads))  # (n,)
    order = [row for part, _ in parts for row in part]
    scores = torch.cat(pieces)[sorted(range(rows), key=order.__getitem__)]  # back in the order of the batch
    return scores[length_mask(batch["sizes"], scores.shape[1])] if "segments" in batch else scores


class RewardTrainer(MeanOverLists, Trainer):
    """Trains a sequence classifier with one label on rankings, pairs or thumbs.

    The saved model is a plain `AutoModelForSequenceClassification` with its calibration in its weights
    (`models.heads.fold_calibration`). Logs loss, accuracy, margin and mean_reward (raw scores); evaluation the same,
    exact over uneven batches and processes, its loss without the centring term.

    Args:
        model: hub id, folder, model or peft model; one label.
        train_dataset, eval_dataset: rankings, pairs or thumbs as a file has them, a data set or a list (`eval_dataset`
            may be a dict of them).
        processing_class: the tokenizer; None: the model's.
        peft_config: LoRA; targets, task type and head are inferred (`models.adapters.wrap`).
    """

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
        args = usable(args or RewardConfig(f"{short_name(model)}-Reward"))
        model, name = with_origin("a reward model", model)
        self.tokenizer = processing_class or load_tokenizer(name, needs_eos=False)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        config = unwrapped(model).config if isinstance(model, nn.Module) else load_config(name, what="a reward model")
        self.row_format = row_format(config, self.tokenizer)
        self.limit = min((n for n in (args.max_length, context_length(config)) if n), default=None)
        self.data_counts: dict[str, dict[str, int]] = {}
        with args.main_process_first(desc="tokenizing the comparisons"):
            if train_dataset is not None:
                train_dataset = self._encoded(train_dataset, "train", args)
            if isinstance(eval_dataset, dict):
                eval_dataset = {key: self._encoded(rows, key, args) for key, rows in eval_dataset.items()}
            elif eval_dataset is not None:
                eval_dataset = self._encoded(eval_dataset, "eval", args)
        model = self._one_score(model, args, peft_config)
        if args.shared_prefix:
            check_shared_prefix(model)
        self._measures: list[Tensor] = []  # `Measures`, stacked, of each training forward since the last log
        super().__init__(
            model=model,
            args=args,
            data_collator=ComparisonCollator(
                self.tokenizer.pad_token_id, args.shared_prefix, bucketed=args.world_size == 1
            ),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self.tokenizer,
            compute_metrics=lambda prediction: summarize(Measures.of(torch.as_tensor(prediction.predictions))),
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if train_dataset is not None:
            lists = train_dataset.select(range(min(2, len(train_dataset))))["input_ids"]
            answers = [row for answers in lists for row in answers]
            check_scores(self.model, answers, self.row_format)
            if is_packed(unwrapped(self.model)):  # no padding is left that parts of like lengths would save
                self.data_collator.bucketed = args.shared_prefix and self.data_collator.bucketed

    def _one_score(self, model, args: RewardConfig, peft_config: LoraConfig | None) -> PreTrainedModel | PeftModel:
        if not isinstance(model, nn.Module):
            set_seed(args.seed)  # the head may be new
            model = load_reward_model(model, tokenizer=self.tokenizer)
        config = unwrapped(model).config
        if config.num_labels != 1:
            raise UserError(
                f"The model has {config.num_labels} labels; a reward model has one output. Load it with num_labels=1."
            )
        # What plain transformers, which pools the last token that is not padding, needs to read the same token.
        config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        if args.disable_dropout:
            disable_dropout(model)
        fuse_activations(model)
        return trainable(model, peft_config)

    def _encoded(self, dataset: Dataset, name: str, args: RewardConfig) -> Dataset:
        if isinstance(dataset, Dataset) and {"input_ids", "weight", "length"} <= {*dataset.column_names}:
            return dataset
        dataset, self.data_counts[name] = encode_lists(
            dataset, self.tokenizer, self.limit, self.row_format, name, args
        )
        return dataset

    # -- training ----------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Weighted mean loss over the lists of these `inputs`; their share in a whole step of `num_items_in_batch`."""
        scores, weights = answer_scores(model, inputs, self.row_format), inputs["weights"]
        losses = list_losses(scores, inputs, self.args)
        if self.args.center_rewards_coefficient is not None:
            losses = losses + self.args.center_rewards_coefficient * centering(scores, inputs)
        if model.training:
            self.watch.look("The scores", scores)
            self._measures.append(list_measures(scores.detach(), inputs, self.args).stacked())
        loss = self.mean_over_lists(losses, weights, num_items_in_batch)
        return (loss, {"scores": scores}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds accuracy, margin and mean_reward of all lists trained on since the last log."""
        if "loss" in logs and self._measures:
            measures = Measures.of(torch.cat(self._measures))
            self._measures.clear()
            rewards = measures.count * measures.mean
            sums = torch.stack([measures.ordered, measures.accuracy, measures.margin, measures.count, rewards], 1)
            lists, accuracy, margin, answers, rewards = self.accelerator.reduce(sums.sum(0), "sum").tolist()
            if lists:  # without, all lists were ties
                logs |= {"accuracy": accuracy / lists, "margin": margin / lists}
            logs["mean_reward"] = rewards / answers
        super().log(logs, start_time)

    def train(self, *args, **kwargs):
        """Train, then calibrate (`args.calibrate`), so that every later save carries the calibration."""
        # The loss makes raw scores log-odds, whatever an earlier calibration has made of them.
        set_calibration(unwrapped(self.model).config, gain=1.0, bias=0.0, scale=1.0, zero=0.0)
        output = super().train(*args, **kwargs)
        if self.args.calibrate:
            self.calibrate()
        return output

    # -- evaluation --------------------------------------------------------------------------

    def evaluate(self, eval_dataset=None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"):
        """Exact means over lists: {prefix}_loss, _accuracy, _margin, _mean_reward, _std_reward (raw scores)."""
        if isinstance(eval_dataset, Dataset | list):
            eval_dataset = self._encoded(eval_dataset, metric_key_prefix, self.args)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """One row of measures per list, so that gathering and dropping repeated lists stays exact. -> (G, 7), (G,)."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = answer_scores(model, inputs, self.row_format)
        measures = list_measures(scores, inputs, self.args).stacked()
        # The second is a stand-in: without labels transformers computes no metrics.
        return None, measures, measures[:, 0]

    def calibrate(self, dataset: Dataset | None = None) -> tuple[float, float]:
        """Set gain and bias so that scores have mean 0 and population std 1 over the answers of `dataset`.

        None: the training data. One forward an answer. -> (gain, bias), stored in the model's config.

        Raises:
            UserError: when all answers get the same score.

        Source: Ziegler et al. 2019, section 2.2.
        """
        dataset = self.train_dataset if dataset is None else self._encoded(dataset, "calibration", self.args)
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
        model = self.accelerator.unwrap_model(self.model)
        state_dict, config = fold_calibration(model.state_dict() if state_dict is None else state_dict, model)
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            save_config(model, config, output_dir or self.args.output_dir)


def encode_lists(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    reads: RowFormat,
    name: str,
    args: RewardConfig,
    tell: Callable[[str], None] = logger.warning,
) -> tuple[Dataset, dict[str, int]]:
    """`encode_comparisons` as `args` ask for it; reports what was cut or dropped.

    Raises:
        UserError: for faulty lists, and for margins that the loss cannot keep.
    """
    if name != "train" and args.on_bad_row == "drop":
        checked(dataset, KINDS, name)  # what is measured is measured on all rows, whatever is left out in training
    dataset, counts = encode_comparisons(
        dataset, tokenizer, limit, args.ties_teach, args.on_bad_row, reads, name, args.dataset_num_proc
    )
    losses = [f"{what} {count}" for what, count in counts.items() if count and what != "lists"]
    if losses:
        tell(f"{name}: of {counts['lists']} lists: {', '.join(losses)}")
    if args.loss_type != "pairwise" and any(dataset["margin"] if "margin" in dataset.column_names else []):
        raise UserError(
            f"{name}: the rows have margins, which loss_type={args.loss_type!r} does not support. "
            "Choose loss_type='pairwise', or remove the column `margin`."
        )
    return dataset, counts
