"""Supervised fine-tuning on demonstrations: TRL's trainer, with chat template, padding and end token for GPT-2.

The dialogue becomes token ids here (`data.chat`), so that the loss lies on the assistant's turns, each with its end of
text, whatever the tokenizer pads with: TRL keeps a dataset that already has `input_ids` and `labels` as it is.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed
from trl import SFTConfig

from rlhf_kit.data.chat import (
    IGNORED,
    encode_completion,
    encode_dialogue,
    encode_prompt,
    encoding,
    set_chat_template,
)
from rlhf_kit.data.loading import checked
from rlhf_kit.data.messages import is_learnt, learning_last
from rlhf_kit.data.refusals import UnstableTemplate
from rlhf_kit.data.rows import is_large
from rlhf_kit.data.store import token_key
from rlhf_kit.data.templates import warn_unread
from rlhf_kit.data.tokens import IDS, tokens_of
from rlhf_kit.data.workers import workers_for
from rlhf_kit.errors import UserError
from rlhf_kit.inputs import read_text
from rlhf_kit.models import preflight
from rlhf_kit.models.adapters import refuse_adapted_head, trainable
from rlhf_kit.models.checkpoints import load_config, load_policy, load_tokenizer, set_special_tokens
from rlhf_kit.models.forward import context_length, labelled_loss
from rlhf_kit.models.fused import fuse_activations
from rlhf_kit.models.weights import short_name, with_origin
from rlhf_kit.training.launch import usable
from rlhf_kit.training.on_trl import OnTRL

MOST_TEMPLATE = 2**20  # bytes of a chat template's file
logger = logging.getLogger(__name__)

# TRL's options that would undo what this trainer promises: (refused value, why and what to do).
REFUSED = {
    "completion_only_loss": (lambda v: v is False, "the loss covers the assistant's tokens only; leave it out"),
    "truncation_mode": (lambda v: v != "keep_start", "a dialogue is cut after its last turn that fits; leave it out"),
    "dataset_text_field": (lambda v: v != "text", "demonstrations are messages, or prompt + completion; use pretrain"),
    "packing_strategy": (lambda v: v == "wrapped", "it lets one dialogue attend to another; use bfd"),
    "padding_free": (bool, "give packing instead, which also holds max_length"),
    "eos_token": (lambda v: v is not None, "the tokenizer says what ends a text; set it there"),
    "pad_token": (lambda v: v is not None, "masks come from lengths, so padding needs no token of its own"),
    "dataset_kwargs": (bool, "the dataset is always prepared here; leave it out"),
    "model_init_kwargs": (bool, "give the model, or its dtype and attn_implementation"),
}


class SFTTrainer(OnTRL, trl.SFTTrainer):
    """Train a causal LM on demonstrations, with loss on every assistant turn and its EOS, and on nothing else.

    Args:
        model: hub id, folder, model or peft model.
        args: TRL's config; options that contradict the above are refused.
        train_dataset, eval_dataset: rows with `messages`, or `prompt` and `completion`, as a file has them, a data
            set or a list. `max_length` (the context at most) holds by whole turns: a dialogue is cut after its last
            answer that fits; one whose first answer does not fit is dropped and counted in `data_counts`.
        processing_class: the tokenizer; gets the plain-text chat template if it has none and the data are messages.
        peft_config: LoRA; targets and task are inferred (`models.adapters.wrap`).

    A model that is handed over keeps the attention it was trained with in memory (`packed_sdpa`); what is saved names
    none.

    Raises:
        UserError: for a refused option, or when no row is left.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: SFTConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: LoraConfig | None = None,
        **options: Any,
    ):
        args = usable(args or SFTConfig(f"{short_name(model)}-SFT"))
        model, name = with_origin("a causal language model", model)
        refuse_options(args)
        if options.get("formatting_func") is not None:
            raise UserError(
                "formatting_func makes plain text of a dialogue; give `messages` or `prompt` + `completion`."
            )
        tokenizer = processing_class or load_tokenizer(name, args.trust_remote_code)
        put_template(tokenizer, args)
        set_seed(args.seed)  # before adapters draw their weights
        config = load_config(model, args.trust_remote_code) if isinstance(model, str) else model.config
        self.limit = min((n for n in (args.max_length, context_length(config)) if n), default=None)
        self.workers = args.dataset_num_proc
        self.data_counts: dict[str, dict[str, int]] = {}
        with args.main_process_first(desc="tokenizing the demonstrations"):
            train_rows = self._encoded(train_dataset, tokenizer, "train")
            if isinstance(eval_dataset, dict):
                eval_rows = {key: self._encoded(rows, tokenizer, key) for key, rows in eval_dataset.items()}
            else:
                eval_rows = None if eval_dataset is None else self._encoded(eval_dataset, tokenizer, "eval")
        policy = load_policy(model, trust_remote_code=args.trust_remote_code) if isinstance(model, str) else model
        fuse_activations(policy)
        policy = trainable(policy, peft_config)
        refuse_adapted_head(policy, "SFT")
        set_special_tokens(policy, tokenizer)  # once its template is settled
        args.max_length = self.limit
        args.assistant_only_loss = False  # done: TRL would look for the messages that are no longer there
        super().__init__(
            model=policy,
            args=args,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            **options,
        )
        self._preflight(train_rows)

    def _preflight(self, rows: Dataset) -> None:
        """Refuse a model that computes something else in the batches of this run than of each dialogue alone."""
        texts = preflight.short_texts(self.model, (row["input_ids"] for row in rows))
        preflight.check_texts(self.model, texts)
        rows = [{"input_ids": ids, "labels": [IGNORED, *ids[1:]]} for ids in texts]
        if self.padding_free:
            both = {name: rows[0][name] + rows[1][name] for name in rows[0]}
            rows = [{**both, "seq_lengths": [*map(len, texts)]}, {**rows[1], "seq_lengths": [len(texts[1])]}]
            texts = [*texts, texts[1]]
        batch = preflight.Batch(texts, [len(row["input_ids"]) for row in rows], self.data_collator(rows))
        fault = preflight.agreed(lambda: preflight.fault(self.model, batch))
        if fault:
            raise UserError(f"{type(self.model).__name__}, packing: {fault}. Leave packing out.")
        if self.args.loss_type == "nll":
            plain = self._on_cpu and preflight.is_likelihood(self)
            whole = self.args.torch_compile or self.args.neftune_noise_alpha  # whose noise goes by the tokens of a row
            self._labelled_alone = plain and not whole and preflight.reads_labelled(self.model, batch)
            preflight.check_loss(self, batch)
            self._metrics["eval"].clear()

    @property
    def _on_cpu(self) -> bool:
        return self.args.device.type == "cpu"

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # TRL's LM head goes tile by tile, made for vocabularies of 100,000 on a GPU. On a CPU the tiles cost a third
        # of the step; the loss is the same number.
        if not self._on_cpu or self.args.loss_type != "nll":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._labelled_alone and not return_outputs:
            model = partial(labelled_loss, model)
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    def rows_of(self, dataset: Dataset | list) -> Dataset:
        """Demonstrations as tokens."""
        return self._encoded(dataset, self.processing_class, "eval")

    def _encoded(self, dataset: Dataset | None, tokenizer: PreTrainedTokenizerBase, split: str) -> Dataset:
        if dataset is None:
            raise UserError("train_dataset is missing; SFT needs demonstrations.")
        if isinstance(dataset, Dataset) and "input_ids" in dataset.column_names:
            return dataset
        rows, self.data_counts[split] = encode_demonstrations(dataset, tokenizer, self.limit, split, self.workers)
        return rows


def refuse_options(args: SFTConfig) -> None:
    """Raise UserError for options of TRL's that contradict this trainer, all of them at once."""
    faults = [
        f"{name}={getattr(args, name)!r}: {reason}"
        for name, (refused, reason) in REFUSED.items()
        if refused(getattr(args, name))
    ]
    if faults:
        raise UserError("SFT does not take " + "; ".join(faults) + ".")


def put_template(tokenizer: PreTrainedTokenizerBase, args: SFTConfig) -> None:
    """Give the tokenizer the chat template that is asked for."""
    if args.chat_template_path is not None:
        tokenizer.chat_template = read_template(args.chat_template_path)
        args.chat_template_path = None  # TRL would put it on again, and may add tokens to the vocabulary


def read_template(path: str) -> str:
    """A chat template from a .jinja file or from a tokenizer's folder or hub id."""
    if path.endswith((".jinja", ".j2")):
        try:
            return read_text(Path(path), MOST_TEMPLATE)
        except UserError as error:
            raise UserError(f"chat_template_path: {error}") from error
    template = load_tokenizer(path).chat_template
    if not template:
        raise UserError(f"chat_template_path {path!r}: this tokenizer has no chat template.")
    return template


def encode_demonstrations(
    dataset: Dataset | list[dict],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    name: str = "the dataset",
    workers: int | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """Rows as `input_ids` and `labels` of at most `limit` tokens, and how many rows were there, cut and dropped.

    Args:
        name: of the rows, in messages.
        workers: processes that tokenize (`data.workers.workers_for`).

    Raises:
        UserError: for rows that are no demonstrations, that the chat template refuses, or when nothing is left.
    """
    demonstrations, *_ = checked(dataset, ("demonstrations",), name)
    if "messages" in demonstrations[0] or tokenizer.chat_template:
        set_chat_template(tokenizer)

    def tokenize(about: dict) -> Iterator[dict[str, list[int]]]:
        counts, unread = Counter(rows=len(demonstrations), kept=0, cut=0, dropped=0), Counter()
        encode, count = partial(_encode_row, tokenizer=tokenizer, limit=limit), workers_for(workers, is_large(dataset))
        for encoded, was_cut in encoding(demonstrations, encode, name, unread, count):
            counts["kept" if encoded else "dropped"] += 1
            counts["cut"] += was_cut
            yield from ({"input_ids": ids, "labels": labels} for ids, labels in encoded)
        about |= {"counts": dict(counts), "unread": dict(unread)}

    key = partial(token_key, "demonstrations", dataset, tokenizer, limit) if is_large(dataset) else None
    rows, about = tokens_of(key, name, {"input_ids": IDS, "labels": IDS}, tokenize)
    counts = about["counts"]
    warn_unread(Counter(about["unread"]), len(demonstrations), name)
    if len(rows) > counts["kept"]:
        logger.warning(
            "%s: the chat template renders an answer differently once others follow, so each answer is a row of its "
            "own: "
            "%d of %d demonstrations.", name, len(rows), counts["kept"],
        )  # fmt: skip
    if not len(rows):
        raise UserError(
            f"None of the {len(demonstrations)} demonstrations fits max_length={limit} with its first answer. "
            "Raise --max_length (the model's context at most) or give shorter demonstrations."
        )
    if counts["cut"] or counts["dropped"]:
        logger.warning(
            "%s: of %d demonstrations %d were cut after the last answer that fits %s tokens and %d dropped, whose "
            "first answer does not fit.",
            name, counts["rows"], counts["cut"], limit, counts["dropped"],
        )  # fmt: skip
    return rows, counts


def _encode_row(
    row: Mapping, unread: Counter[str], tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> tuple[list[tuple[list[int], list[int]]], bool]:
    """([(input_ids, labels), ...], whether turns were cut off); `unread` counts what the chat template does not write.

    One row; none when no whole answer fits; one an answer where the template writes it otherwise once others follow.
    """
    if "messages" not in row:
        prompt = encode_prompt(tokenizer, row["prompt"])
        answer = encode_completion(tokenizer, row["completion"], eos=True)
        return _fitting([(prompt + answer, [IGNORED] * len(prompt) + answer)], limit), False
    messages, tools = row["messages"], row.get("tools")
    answers = [at for at, message in enumerate(messages) if is_learnt(message)]
    try:
        for last in dict.fromkeys([len(messages) - 1, *reversed(answers)]):
            whole = last == len(messages) - 1
            encoded = encode_dialogue(tokenizer, messages[: last + 1], tools, unread if whole else None)
            if fits := _fitting([encoded], limit):
                return fits, not whole
        return [], False
    except UnstableTemplate:
        each = [encode_dialogue(tokenizer, learning_last(messages[: at + 1]), tools) for at in answers]
        fits = _fitting(each, limit)
        return fits, 0 < len(fits) < len(each)


def _fitting(encoded: Sequence[tuple[list[int], list[int]]], limit: int | None) -> list[tuple[list[int], list[int]]]:
    """Those that fit and have something to learn."""
    return [
        (ids, labels)
        for ids, labels in encoded
        if (limit is None or len(ids) <= limit) and any(label != IGNORED for label in labels)
    ]
