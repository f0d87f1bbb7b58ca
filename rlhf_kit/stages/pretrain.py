"""Stage 0, next-token prediction (文字接龍): a causal language model on plain text, from scratch or continued.

Documents are packed into rows of `block_size` tokens; a document attends to itself only. Where a model would let
packed documents read each other, each has a row of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset
from peft import PeftModel
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast, TrainingArguments

from rlhf_kit.data.chat import encode_texts, start_ids
from rlhf_kit.data.loading import load
from rlhf_kit.data.packing import PackedCollator
from rlhf_kit.data.packs import Packed, pack
from rlhf_kit.data.rows import is_large
from rlhf_kit.data.store import token_key
from rlhf_kit.data.tokens import IDS, Lengths, Tokens, tokens_of
from rlhf_kit.data.workers import workers_for
from rlhf_kit.errors import UserError
from rlhf_kit.models import preflight
from rlhf_kit.models.adapters import trainable
from rlhf_kit.models.forward import context_length, context_of
from rlhf_kit.options import option
from rlhf_kit.stages import plan
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.loading import (
    check_model,
    check_settings,
    load_data,
    load_model,
    peft_config,
    refuse_no_text,
    tell_packing,
    tokenizer_or_new,
)
from rlhf_kit.stages.output import check_output
from rlhf_kit.stages.run import finish, held_out, run_stage, train
from rlhf_kit.training import Trainer
from rlhf_kit.training.engines import asked_engines

logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"


@dataclass
class PretrainConfig(TrainingArguments):
    """Defaults are GPT-3 Small's (Brown et al. 2020, arXiv:2005.14165, table 2.1 and appendix B)."""

    learning_rate: float = option(6e-4, "Peak learning rate: 6e-4 from scratch; about 5e-5 to continue a model.")
    lr_scheduler_type: str = option("cosine", "How the learning rate falls.")
    warmup_steps: float = option(0.01, "Warm-up: steps, or a share of all when below 1.")
    weight_decay: float = option(0.1, "AdamW's weight decay (not on biases and norms).")
    adam_beta2: float = option(0.95, "Adam's beta2.")
    num_train_epochs: float = option(1.0, "Passes over the text.")
    block_size: int | None = option(None, "Tokens per row. Default: the model's context, 1,024 at most.")
    dataset_num_proc: int | None = option(
        None, "Processes that tokenize; None: of large data one a processor, 8 at most."
    )
    train_tokenizer: int | None = option(
        None, "From scratch: first train a byte-level BPE of this many tokens on the training text."
    )


def run(settings: Settings) -> dict | plan.Reading:
    """Pre-train; returns the content of `run.json`, in a dry run what it would read."""
    output = check_output(settings)
    check_settings(settings)
    train_data, eval_data, notes = load_data(settings, ("text",), load)
    tokenizer = tokenizer_or_new(settings, train_data, notes, train_tokenizer)
    if settings.model.config_overrides is not None and settings.training.block_size:
        overrides = plan.parse_overrides(settings.model.config_overrides)
        context = context_of(plan.known_config(settings, tokenizer, notes), overrides, settings.training.block_size)
        settings.model.config_overrides += "".join(f",{name}={tokens}" for name, tokens in context.items())
    length = _block_size(settings, tokenizer, notes)
    both = (("training text", train_data), ("evaluation text", eval_data))
    texts = [text_tokens(data, tokenizer, name, settings.training.dataset_num_proc) for name, data in both]
    rows, held = (_rows(documents, tokenizer, length) for documents in texts)
    refuse_no_text(settings, tokenizer, {"dataset_name": (train_data, rows), "eval_dataset_name": (eval_data, held)})
    waste = tell_packing(settings, notes, len(rows), length, rows.tokens) if rows else {}
    if settings.run.dry_run:
        check_model(settings, tokenizer)
        return plan.Reading(notes, tokenizer, Lengths([len(row["input_ids"])] for row in rows or ()) or None)

    model = load_model(settings, tokenizer)
    model = trainable(model, peft_config(settings.model))
    short = preflight.short_texts(model, (row["input_ids"] for row in rows))
    how = arrange(model, short, settings)
    if how == "apart":
        rows, held = (_rows(documents, tokenizer, length, apart=True) for documents in texts)
    trainer = Trainer(
        model=model,
        args=settings.training,
        train_dataset=rows,
        eval_dataset=held or None,
        data_collator=PackedCollator(tokenizer.pad_token_id, how),
        processing_class=tokenizer,
    )
    preflight.check_loss(trainer, preflight.pretraining_batch(short, how))
    metrics = train(trainer, settings, output) | waste
    if eval_data is not None:
        metrics |= held_out(trainer)
    return finish(trainer, settings, output, metrics)


def train_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `size` tokens (GPT-2, section 2.2); `<|endoftext|>`, id 0, begins, ends and pads."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=size, special_tokens=[END_OF_TEXT], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,  # the wrapper has no public way to hand over what it wraps
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="right",
    )


def _block_size(settings: Settings, tokenizer: PreTrainedTokenizerBase | None, notes: plan.Notes) -> int:
    wanted = settings.training.block_size
    config = plan.known_config(settings, tokenizer, notes)
    limit = (context_length(config) if config is not None else None) or 1024
    if config is not None and wanted and context_length(config) and wanted > limit:
        name = settings.model.model_name_or_path
        raise UserError(f"--block_size {wanted} is more than the {limit} positions of {name!r}.")
    return wanted or min(limit, 1024)


def arrange(model: PreTrainedModel | PeftModel, texts: list[list[int]], settings: Settings) -> str:
    """How documents share rows: packed, or as this model keeps them apart."""
    if not asked_engines(settings.training):
        model.to(settings.training.device)  # where the trainer would put it; flash attention runs nowhere else
    preflight.check_texts(model, texts)
    how, fault = preflight.arrangement(model, texts)
    if fault:
        layouts = {
            "flattened": "a batch is one long row",
            "apart": "each document has a row of its own, which is slower",
        }
        logger.warning("%s, packed: %s; %s.", settings.model.model_name_or_path, fault, layouts[how])
    return how


def text_tokens(
    data: Dataset | None, tokenizer: PreTrainedTokenizerBase | None, name: str, workers: int | None = None
) -> Tokens | None:
    """The documents' ids, made by `workers_for(workers)` processes; None where no text or no tokenizer is known."""
    if data is None or tokenizer is None:
        return None

    def tokenize(_: dict) -> Iterator[dict]:
        ids_of_texts = encode_texts(tokenizer, data["text"], workers_for(workers, is_large(data)))
        return ({"input_ids": ids} for ids in ids_of_texts)

    key = partial(token_key, "texts", data, tokenizer) if is_large(data) else None
    return Tokens(tokens_of(key, name, {"input_ids": IDS}, tokenize)[0])


def _rows(
    documents: Tokens | None, tokenizer: PreTrainedTokenizerBase | None, length: int, apart: bool = False
) -> Packed | None:
    if documents is None:
        return None
    return pack(documents, length, tokenizer.eos_token_id, start_ids(tokenizer), apart)


def start(options: Sequence[str] | Mapping[str, Any]) -> None:
    """Run the stage with its options, of a command line or by name. Raises UserError."""
    run_stage("pretrain", PretrainConfig, run, options)
