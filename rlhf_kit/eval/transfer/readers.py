"""The model of a row before it is fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit import world
from rlhf_kit.data.sources import WORLD
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.eval.extractive.models import load_reader
from rlhf_kit.eval.extractive.questions import Question
from rlhf_kit.eval.transfer.config import QANET, Row
from rlhf_kit.hashes import file_hash
from rlhf_kit.models import weights
from rlhf_kit.models.checkpoints import check_vocabulary, load_config, load_tokenizer, new_model
from rlhf_kit.models.identity import model_hash
from rlhf_kit.models.qanet import QANetConfig, QANetForQuestionAnswering, train_word_tokenizer
from rlhf_kit.models.qanet.training import ARGUMENTS, qanet_trainer_parts

VECTORS = "vectors"  # among a row's sizes


def checkpoint(model: str) -> str:
    """A folder for "world:NAME", any other name as it is."""
    kind, colon, name = model.partition(":")
    return str(world.BASE.parent / name) if colon and kind == WORLD else model


def missing(row: Row) -> bool:
    """Whether the row's checkpoint is one that comes with the kit, and this copy of the kit is without it."""
    return row.model.startswith(f"{WORLD}:") and not (Path(checkpoint(row.model)) / "config.json").is_file()


def pinned(row: Row) -> Row:
    """The row with the commit of a model of the hub. Raises UserError where the hub does not have it."""
    if row.model == QANET or checkpoint(row.model) != row.model:
        return row
    return replace(row, model=weights.pinned("a question answering model", row.model))


def check(row: Row, read_headers: bool = True) -> None:
    """Raises UserError for a model that by its files cannot be loaded, or sizes that QANet does not have.

    `read_headers`: of the weights too, for which a hub's model is fetched.
    """
    if row.model != QANET and (row.from_scratch or not read_headers):
        load_config(checkpoint(row.model), what="a question answering model")
        load_tokenizer(checkpoint(row.model), needs_eos=False)
        return
    if row.model != QANET:
        load_reader(checkpoint(row.model), trained=False, device_map="meta")
        return
    for name in row.sizes:
        if name not in (known := [VECTORS, *QANetConfig.__annotations__]):
            hint = did_you_mean(name, known)
            raise UserError(f"row {row.name}: sizes: QANet has no {name!r}.{hint}")
    vectors = row.sizes.get(VECTORS)
    if vectors is not None and not (isinstance(vectors, str) and Path(vectors).is_file()):
        raise UserError(f"row {row.name}: sizes: {vectors!r} is no file of word vectors.")
    try:
        QANetConfig(**{name: value for name, value in row.sizes.items() if name != VECTORS})
    except (UserError, StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"row {row.name}: sizes: {' '.join(str(error).split())}") from error


def row_hash(row: Row) -> str:
    """Of the model's files, or of those of QANet's word vectors."""
    if row.model != QANET:
        return model_hash(checkpoint(row.model))
    vectors = row.sizes.get(VECTORS)
    if not vectors:
        return QANET
    return file_hash(Path(vectors))[:16]


def new_reader(row: Row, questions: Sequence[Question]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """To be trained: pre-trained with a new head, or all new. QANet's words are those of the training questions."""
    if row.model == QANET:
        texts = [*dict.fromkeys(one.context for one in questions), *(one.question for one in questions)]
        tokenizer = train_word_tokenizer(texts)
        return QANetForQuestionAnswering.from_tokenizer(tokenizer, **row.sizes), tokenizer
    name = checkpoint(row.model)
    if row.from_scratch:
        config = load_config(name, what="a question answering model")
        it_makes, tokenizer = f"The config.json of {name!r} makes", load_tokenizer(name, needs_eos=False)
        model = new_model(AutoModelForQuestionAnswering, config, it_makes, dtype=torch.float32)  # it may say half
        check_vocabulary(name, tokenizer, model)
        return model, tokenizer
    return load_reader(name, trained=False)


def training_parts(row: Row, model: PreTrainedModel) -> dict[str, Any]:
    """What `finetune` gets besides: QANet brings its own optimizer."""
    return qanet_trainer_parts(model) if row.model == QANET else {}


def training_defaults(row: Row) -> dict[str, Any]:
    return dict(ARGUMENTS) if row.model == QANET else {}
