"""Models that answer by a span: loading, with or without a trained head."""

from __future__ import annotations

import inspect

import torch
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase

import rlhf_kit.models.qanet  # noqa: F401  registers QANet with AutoConfig and AutoModelForQuestionAnswering
from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import DTYPES, check_vocabulary, load_config, load_tokenizer
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.weights import holds, load_weights, pinned

HEAD = "ForQuestionAnswering"


def load_reader(
    name: str,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    trained: bool = True,
    device_map: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with a question answering head in eval mode, and its tokenizer; an adapter is merged.

    Args:
        name: a folder or a hub id.
        trained: refuse a model that brings no such head. Without, it gets a new one, to be trained.
        device_map: as for `load_policy`; then `device` is not looked at.

    Raises:
        UserError: also when the tokenizer has tokens that the model lacks.
    """
    what = "a question answering model"
    name = pinned(what, name)
    config = load_config(name, what=what)
    is_adapter = holds(what, name, "adapter_config.json")
    if trained and not is_adapter and not any(HEAD in kind for kind in config.architectures or []):
        kind = (config.architectures or [config.model_type])[0]
        raise UserError(
            f"{name!r} is a {kind}, without a head that gives answers' first and last tokens. Train one with "
            "--train_dataset_name, or give the folder of one. 此模型沒有作答層，請加 --train_dataset_name 先微調。"
        )
    tokenizer = load_tokenizer(name, needs_eos=False)
    model = load_weights(
        AutoModelForQuestionAnswering, what, name, config, not trained, dtype=DTYPES[dtype], device_map=device_map
    )
    check_vocabulary(name, tokenizer, model)
    return (model if device_map else model.to(device)).eval(), tokenizer


def check_length(model: PreTrainedModel, max_length: int) -> None:
    """Raises UserError for windows that are longer than what the model reads."""
    limit = context_length(model.config)
    if limit is not None and max_length > limit:
        raise UserError(
            f"Windows of {max_length} tokens do not fit a model that reads {limit}: give --max_length {limit} or "
            f"less. 視窗長度不可超過 {limit}。"
        )


def reads_types(model: PreTrainedModel) -> bool:
    """Whether its forward takes `token_type_ids`."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "token_type_ids" in inspect.signature(base.forward).parameters
