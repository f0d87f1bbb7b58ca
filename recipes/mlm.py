"""Masked-language modelling (填空題): a BERT on plain text, from scratch or continued (Devlin et al. 2019, 3.1).

A document is one row, `[CLS] ... [SEP]`; a long one is cut into several. Which tokens are masked is drawn anew each
time a row is read.
"""

from __future__ import annotations

if __name__ == "__main__":  # as a script: go on as the installed module
    from rlhf_kit.recipes.script import launch

    launch("mlm")

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset
from tokenizers import BertWordPieceTokenizer
from transformers import (
    BertTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import context_length, load_masked_lm
from rlhf_kit.recipes import plan
from rlhf_kit.recipes.arguments import Settings
from rlhf_kit.recipes.models import check_settings, load_data, load_model, tokenizer_or_new
from rlhf_kit.recipes.output import check_output
from rlhf_kit.recipes.run import finish, held_out, run_stage, train


@dataclass
class MaskedConfig(TrainingArguments):
    """Defaults are BERT's (Devlin et al. 2019, appendix A.2), for one machine."""

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate: 1e-4; 1e-3 for a tiny model."})
    warmup_steps: float = field(default=0.01, metadata={"help": "Warm-up: steps, or a share of all when below 1."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay (not on biases and norms)."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the text."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "group_by_length pads little; random is the other way."}
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the tokens to be guessed."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a row. Default: the model's positions, 512 at most."}
    )
    train_tokenizer: int | None = field(
        default=None,
        metadata={"help": "From scratch: first train a cased WordPiece of this many tokens on the training text."},
    )

    def __post_init__(self):
        super().__post_init__()
        faults = []
        if not 0 < self.mlm_probability < 1:
            faults.append(f"mlm_probability={self.mlm_probability} must lie between 0 and 1")
        if self.max_length is not None and self.max_length < 3:
            faults.append(f"max_length={self.max_length} must be at least 3: [CLS], a token and [SEP]")
        if self.train_tokenizer is not None and self.train_tokenizer < 10:
            faults.append(f"train_tokenizer={self.train_tokenizer} must be at least 10")
        if faults:
            raise UserError("; ".join(faults) + ".")


def run(settings: Settings) -> dict:
    """Pre-train; returns what `run.json` holds."""
    output = check_output(settings)
    check_settings(settings)
    if settings.model.use_peft:
        raise UserError("--use_peft adapts a trained model to a task; mlm trains all weights. Leave it out.")
    train_data, eval_data, notes = load_data(settings, ("text",), load)
    tokenizer = _tokenizer(settings, train_data, notes)
    length = _length(settings, tokenizer, notes)
    rows = encode(train_data["text"], tokenizer, length) if train_data is not None and tokenizer is not None else []
    if settings.run.dry_run:
        tokens = sum(len(row["input_ids"]) for row in rows) if rows else None
        plan.show_plan(settings, len(rows) if rows else None, tokens, notes, tokenizer)
        return {}
    if not rows:
        raise UserError(f"{settings.data.dataset_name!r} has no text to train on: every document is empty.")

    eval_rows = encode(eval_data["text"], tokenizer, length) if eval_data is not None else None
    model = load_model(settings, tokenizer, load_masked_lm)
    model.accepts_loss_kwargs = False  # BERT's loss is the mean of its batch, whatever Trainer tells it
    trainer = Trainer(
        model=model,
        args=settings.training,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(eval_rows) if eval_rows is not None else None,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=settings.training.mlm_probability),
        processing_class=tokenizer,
    )
    metrics = train(trainer, settings, output)
    if eval_data is not None:
        metrics |= held_out(trainer)
    return finish(trainer, settings, output, metrics)


def _tokenizer(settings: Settings, train_data: Dataset | None, notes: list[str]) -> PreTrainedTokenizerBase | None:
    tokenizer = tokenizer_or_new(settings, train_data, notes, train_tokenizer)
    if tokenizer is not None and tokenizer.mask_token is None:
        raise UserError(
            f"The tokenizer of {settings.model.model_name_or_path!r} has no mask token, which mlm puts in "
            "the place of what is to be guessed. Give a BERT; a GPT goes on with `rlhf-kit pretrain`."
        )
    return tokenizer


def train_tokenizer(texts: Sequence[str], size: int) -> BertTokenizer:
    """A cased WordPiece of `size` tokens, as multilingual BERT's: accents stay, Chinese is cut into characters."""
    pieces = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    pieces.train_from_iterator(texts, vocab_size=size, min_frequency=2, show_progress=False)
    return BertTokenizer(vocab=pieces.get_vocab(), do_lower_case=False, strip_accents=False)


def _length(settings: Settings, tokenizer: PreTrainedTokenizerBase | None, notes: list[str]) -> int:
    wanted = settings.training.max_length
    config = plan.known_config(settings, tokenizer, notes)
    limit = (context_length(config) if config is not None else None) or 512
    if wanted and wanted > limit:
        raise UserError(f"--max_length {wanted} is more than the {limit} positions of the model.")
    return wanted or min(limit, 512)


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[dict[str, list[int]]]:
    """Rows of at most `length` tokens with their special tokens; empty documents give none."""
    encoded = tokenizer(
        [text for text in texts if text.strip()], truncation=True, max_length=length, return_overflowing_tokens=True,
        split_special_tokens=True, return_token_type_ids=False, return_attention_mask=False,
    )  # fmt: skip
    return [{"input_ids": ids} for ids in encoded["input_ids"]]


def main(argv: Sequence[str] | None = None) -> int:
    return run_stage("mlm", MaskedConfig, run, argv)
