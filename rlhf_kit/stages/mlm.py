"""Masked-language modelling (填空題): a BERT on plain text, from scratch or continued (Devlin et al. 2019, 3.1).

A document is one row, `[CLS] ... [SEP]`; a long one is cut into several. Which tokens are masked is drawn anew each
time a row is read. A row may name `spans` of its text that are always masked, and whole: its dates, names, whatever
can be found again elsewhere in it (salient span masking: Guu et al. 2020, REALM, section 3.4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, List, Value
from tokenizers import BertWordPieceTokenizer
from torch import nn
from transformers import (
    BatchEncoding,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from rlhf_kit.data.loading import load
from rlhf_kit.data.rows import AT_ONCE, is_large
from rlhf_kit.data.store import token_key
from rlhf_kit.data.tokens import IDS, Lengths, tokens_of
from rlhf_kit.data.workers import by_parts, workers_for
from rlhf_kit.errors import UserError
from rlhf_kit.launched import is_main_process
from rlhf_kit.models import preflight
from rlhf_kit.models.checkpoints import load_masked_lm
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.muon import muon_with_adamw
from rlhf_kit.options import option
from rlhf_kit.progress import Progress
from rlhf_kit.stages import plan
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.loading import (
    check_model,
    check_settings,
    load_data,
    load_model,
    refuse_no_text,
    tokenizer_or_new,
)
from rlhf_kit.stages.output import check_output
from rlhf_kit.stages.run import finish, held_out, run_stage, train
from rlhf_kit.training import Trainer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ALPHABET = 1000  # characters that a new vocabulary has at most, tokenizers' own default; rarer ones are [UNK]


@dataclass
class MaskedConfig(TrainingArguments):
    """Defaults are BERT's (Devlin et al. 2019, appendix A.2), for one machine."""

    learning_rate: float = option(1e-4, "Peak learning rate: 1e-4; 1e-3 for a tiny model.")
    warmup_steps: float = option(0.01, "Warm-up: steps, or a share of all when below 1.")
    weight_decay: float = option(0.01, "AdamW's weight decay (not on biases and norms).")
    num_train_epochs: float = option(1.0, "Passes over the text.")
    train_sampling_strategy: str = option("group_by_length", "group_by_length pads little; random is the other way.")
    mlm_probability: float = option(0.15, "Share of the tokens to predict, in addition to the `spans` of a row.")
    muon_learning_rate: float | None = option(
        None,
        "Train the hidden layers' matrices with Muon at this peak learning rate, 2e-3 say; embeddings, head, norms "
        "and biases stay with AdamW. Default: AdamW for all.",
    )
    sinusoidal_positions: bool = option(
        False,
        "From scratch: learned positions start as sinusoids (Vaswani et al. 2017, 3.5), not at random; attention to "
        "nearby tokens is then learned sooner.",
    )
    max_length: int | None = option(None, "Tokens per row. Default: the model's positions, 512 at most.")
    dataset_num_proc: int | None = option(
        None, "Processes that tokenize; None: of large data one a processor, 8 at most."
    )
    train_tokenizer: int | None = option(
        None, "From scratch: first train a cased WordPiece of this many tokens on the training text."
    )

    def __post_init__(self):
        super().__post_init__()
        faults = [] if self.muon_learning_rate is None else [*self._muon_faults()]
        if faults:
            raise UserError("; ".join(faults) + ".")

    def _muon_faults(self) -> Iterator[str]:
        if not hasattr(torch.optim, "Muon"):
            yield f"muon_learning_rate needs torch 2.9 or newer; this is {torch.__version__}"
        if self.optim_args or "adamw" not in getattr(self.optim, "value", self.optim):
            yield "muon_learning_rate selects its own optimizers, Muon and AdamW: leave out optim and optim_args"


def run(settings: Settings) -> dict | plan.Reading:
    """Pre-train; returns the content of `run.json`, in a dry run what it would read."""
    output = check_output(settings)
    check_settings(settings)
    if settings.model.use_peft:
        raise UserError("--use_peft adapts a trained model to a task; mlm trains all weights. Leave it out.")
    if settings.training.sinusoidal_positions and settings.model.config_overrides is None:
        raise UserError(
            "--sinusoidal_positions is how a new model (--config_overrides) starts; a trained one has its own."
        )
    train_data, eval_data, notes = load_data(settings, ("text",), load)
    tokenizer = _tokenizer(settings, train_data, notes)
    length = _length(settings, tokenizer, notes)
    rows, held = (
        [] if None in (data, tokenizer) else encode(data, tokenizer, length, name, settings.training.dataset_num_proc)
        for name, data in (("training text", train_data), ("evaluation text", eval_data))
    )
    refuse_no_text(settings, tokenizer, {"dataset_name": (train_data, rows), "eval_dataset_name": (eval_data, held)})
    if settings.training.mlm_probability == 0 and not all(any(row.get("hidden", ())) for row in [*rows, *held]):
        raise UserError("--mlm_probability 0 masks `spans` alone, and some rows have none. Give it a share.")
    if settings.run.dry_run:
        check_model(settings, tokenizer, load_masked)
        return plan.Reading(notes, tokenizer, Lengths([len(row["input_ids"])] for row in rows) or None)

    model = load_masked(settings, tokenizer)
    _check_padding(settings, model, tokenizer, rows, held)
    model.accepts_loss_kwargs = False  # BERT's loss is the mean of its batch, whatever Trainer tells it
    rate = settings.training.muon_learning_rate
    optimizer = muon_with_adamw(model, settings.training, rate) if rate else None  # None: Trainer's AdamW
    args = settings.training
    args.remove_unused_columns = False  # `hidden` and `draw` are the collator's
    collator = SpanMasking(tokenizer, mlm_probability=args.mlm_probability, seed=args.seed)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=numbered(rows),
        eval_dataset=numbered(held, training=False) if held else None,
        data_collator=collator,
        processing_class=tokenizer,
        optimizers=(optimizer, None),
        callbacks=[NewMasks(collator)],
    )
    metrics = train(trainer, settings, output)
    if eval_data is not None:
        metrics |= held_out(trainer)
    return finish(trainer, settings, output, metrics)


def load_masked(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model to train, from sinusoids where asked for."""
    model = load_model(settings, tokenizer, load_masked_lm)
    if settings.training.sinusoidal_positions:
        start_from_sinusoids(model)
    return model


def _check_padding(settings: Settings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *data) -> None:
    """ConvBERT, FNet, Funnel and others mix what stands side by side, whatever the mask says."""
    args = settings.training
    sizes = [args.per_device_train_batch_size, args.per_device_eval_batch_size][: len([*filter(None, data)])]
    if max(sizes) == 1:
        return
    texts = preflight.short_texts(model, (row["input_ids"] for row in data[0]))
    advice = " A row alone has none: give --per_device_train_batch_size 1 and --per_device_eval_batch_size 1."
    batch = preflight.Batch(texts, [*map(len, texts)], {**_padded(tokenizer, texts)})
    preflight.check_padding(model, batch, advice)


@torch.no_grad()
def start_from_sinusoids(model: PreTrainedModel) -> None:
    """Learned positions as sines and cosines of wavelengths 2 pi to 2000 pi, of twice the spread of new weights."""
    embeddings = [part for name, part in model.named_modules() if name.endswith("position_embeddings")]
    if not embeddings or not isinstance(embeddings[0], nn.Embedding):
        raise UserError(f"--sinusoidal_positions: a {model.config.model_type} has no learned positions. Leave it out.")
    count, width = embeddings[0].weight.shape
    half = torch.arange(width // 2) / (width // 2)
    angles = torch.arange(count)[:, None] / 1000**half
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    embeddings[0].weight[:, : waves.shape[1]] = 2 * model.config.initializer_range * waves


def _tokenizer(settings: Settings, train_data: Dataset | None, notes: plan.Notes) -> PreTrainedTokenizerBase | None:
    tokenizer = tokenizer_or_new(settings, train_data, notes, train_tokenizer)
    if tokenizer is not None and tokenizer.mask_token is None:
        raise UserError(
            f"The tokenizer of {settings.model.model_name_or_path!r} has no mask token, which mlm puts in "
            "place of the tokens to predict. Give a BERT; a GPT is trained with `rlhf-kit pretrain`."
        )
    if tokenizer is not None and not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not give the positions of its tokens in the text, so "
            "documents cannot be split. "
            "Give a fast tokenizer with --tokenizer_name_or_path."
        )
    return tokenizer


def train_tokenizer(texts: Sequence[str], size: int) -> BertTokenizer:
    """A cased WordPiece of `size` tokens, as multilingual BERT's: accents stay, Chinese is cut into characters.

    It is the same whenever it is trained on the same texts. The trainer numbers characters as its threads find them,
    and of pairs that are equally frequent it joins first what has the lower numbers: so they are numbered here.
    """
    pieces = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    words = Counter(
        word
        for text in texts
        for word, _ in pieces.pre_tokenizer.pre_tokenize_str(pieces.normalizer.normalize_str(text))
    )
    pieces.train_from_iterator(
        texts, vocab_size=size, min_frequency=2, show_progress=False,
        special_tokens=[*SPECIAL_TOKENS, *_characters(words)], limit_alphabet=0,
    )  # fmt: skip
    return BertTokenizer(vocab=pieces.get_vocab(), do_lower_case=False, strip_accents=False)


def _characters(words: Counter[str]) -> list[str]:
    """The most frequent characters of these words (and their counts), as they stand first and behind others (`##`)."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    kept = set(sorted(counts, key=lambda character: (-counts[character], character))[:ALPHABET])
    behind = kept & {character for word in words for character in word[1:]}
    return [*sorted(kept), *(f"##{character}" for character in sorted(behind))]


def _length(settings: Settings, tokenizer: PreTrainedTokenizerBase | None, notes: plan.Notes) -> int:
    wanted = settings.training.max_length
    config = plan.known_config(settings, tokenizer, notes)
    limit = (context_length(config) if config is not None else None) or 512
    if wanted and wanted > limit:
        raise UserError(f"--max_length {wanted} is more than the {limit} positions of the model.")
    return wanted or min(limit, 512)


def encode(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, name: str = "text", workers: int | None = None
) -> Dataset:
    """Rows of at most `length` tokens with their special tokens; documents without a token give none.

    `hidden` is True for each token that holds a character of its document's `spans`; of data without any it is empty.
    `workers`: processes that tokenize (`data.workers.workers_for`).
    """

    def tokenize(_: dict) -> Iterator[dict[str, list]]:
        count = workers_for(workers, is_large(documents))
        with Progress(len(documents), "documents tokenized", shown=is_main_process()) as progress:
            for rows in by_parts(partial(_rows, tokenizer=tokenizer, length=length), documents, count):
                yield from rows
                progress.reach(min(progress.done + AT_ONCE, len(documents)))

    key = partial(token_key, "masked", documents, tokenizer, length) if is_large(documents) else None
    return tokens_of(key, name, {"input_ids": IDS, "hidden": List(Value("bool"))}, tokenize)[0]


def _rows(documents: Mapping[str, list], tokenizer: PreTrainedTokenizerBase, length: int) -> list[dict[str, list]]:
    kept = [at for at, text in enumerate(documents["text"]) if text.strip()]
    has_spans = "spans" in documents
    encoded = tokenizer(
        [documents["text"][at] for at in kept], truncation=True, max_length=length,
        return_overflowing_tokens=True, return_offsets_mapping=has_spans, split_special_tokens=True,
        return_token_type_ids=False, return_attention_mask=False,
    )  # fmt: skip
    tokenizer.backend_tokenizer.no_truncation()  # it would be saved, and cut the texts of whoever loads it
    rows = [{"input_ids": ids, "hidden": []} for ids in encoded["input_ids"]]
    if has_spans:
        places = zip(encoded["offset_mapping"], encoded["overflow_to_sample_mapping"], strict=True)
        for row, (offsets, at) in zip(rows, places, strict=True):
            spans = documents["spans"][kept[at]] or []
            row["hidden"] = [
                start < end and any(start < after and first < end for first, after in spans) for start, end in offsets
            ]
    empty = tokenizer.num_special_tokens_to_add(pair=False)
    return [row for row in rows if len(row["input_ids"]) > empty]


def _padded(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> BatchEncoding:
    """Rows as the model gets them: padded on the right, whatever the tokenizer says: positions count from the left."""
    rows = [{"input_ids": ids} for ids in rows]
    return pad_without_fast_tokenizer_warning(tokenizer, rows, return_tensors="pt", padding_side="right")


class SpanMasking(DataCollatorForLanguageModeling):
    """BERT's masking (80 % [MASK], 10 % another token, 10 % as it was); the rows' `hidden` tokens are [MASK], all.

    What is drawn for a row depends on seed, pass and row alone (`draw`, as `numbered` counts them): not on batch,
    process, worker, or where a run was resumed.
    """

    def __post_init__(self):
        super().__post_init__()
        self.passes = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change

    def torch_call(self, examples: list[dict[str, list]]) -> dict[str, torch.Tensor]:
        masked = [self._masked(row, row.get("draw", at)) for at, row in enumerate(examples)]
        batch = _padded(self.tokenizer, [ids for ids, _ in masked])
        batch["labels"] = torch.full_like(batch["input_ids"], -100)
        for target, (_, labels) in zip(batch["labels"], masked, strict=True):
            target[: len(labels)] = torch.tensor(labels)
        return batch

    def _masked(self, row: dict[str, list], draw: int) -> tuple[list[int], list[int]]:
        """A row's tokens as the model sees them, and its labels: -100 where nothing is to be guessed."""
        ids = np.array(row["input_ids"])
        # An evaluation (draws below 0) asks the same each time.
        rng = np.random.default_rng([self.seed or 0, int(self.passes) if draw >= 0 else 0, draw % 2**64])
        chance, way = rng.random((2, len(ids)))
        words = rng.integers(len(self.tokenizer), size=len(ids))
        special = self.tokenizer.get_special_tokens_mask(row["input_ids"], already_has_special_tokens=True)
        chance[np.array(special, dtype=bool)] = 1
        guessed = chance < self.mlm_probability
        hidden = np.array(row.get("hidden") or np.zeros(len(ids)), dtype=bool)
        if self.mlm_probability and not (guessed | hidden).any():
            guessed[chance.argmin()] = True  # one at least, as BERT's own code has it: the mean of none is NaN
        shown = np.where(guessed & (way < 0.8), self.tokenizer.mask_token_id, ids)
        shown = np.where(guessed & (way >= 0.8) & (way < 0.9), words, shown)
        return (
            np.where(hidden, self.tokenizer.mask_token_id, shown).tolist(),
            np.where(guessed | hidden, ids, -100).tolist(),
        )


class NewMasks(TrainerCallback):
    """Tells the collator which pass over the text begins."""

    def __init__(self, collator: SpanMasking):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.passes.fill_(int(state.epoch or 0))


def numbered(rows: Dataset, training: bool = True) -> Dataset:
    """Rows with the number that their masks are drawn by: from 0 up in training, from -1 down in evaluation."""
    places = np.arange(len(rows))
    return rows.add_column("draw", places if training else -1 - places)


def start(options: Sequence[str] | Mapping[str, Any]) -> None:
    """Run the stage with its options, of a command line or by name. Raises UserError."""
    run_stage("mlm", MaskedConfig, run, options)
