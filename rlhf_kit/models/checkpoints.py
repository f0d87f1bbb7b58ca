"""Load tokenizers and models, with GPT-2's facts handled once: no pad token, bos == eos, 1,024 positions.

The vocabulary is never resized: padding borrows the end-of-text id, and every mask in the project comes from lengths,
never from token ids, so that borrowing is harmless.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Tokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from rlhf_kit.errors import UserError, did_you_mean

DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_tokenizer(name_or_path: str | os.PathLike, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder, padding on the right with a pad token that costs no vocabulary.

    A folder that holds only GPT-2's `vocab.json` and `merges.txt` is enough.
    """
    path = Path(name_or_path)
    if (path / "merges.txt").is_file() and not (path / "tokenizer_config.json").is_file():
        tokenizer = GPT2Tokenizer.from_pretrained(str(path))
    else:
        tokenizer = _load(
            AutoTokenizer.from_pretrained, "a tokenizer", name_or_path, trust_remote_code=trust_remote_code
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer of {str(name_or_path)!r} has no end-of-text token; an answer could never end. "
            "Set `eos_token` in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_policy(
    name_or_path: str | os.PathLike,
    *,
    config_overrides: dict | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """A causal language model: from a hub id or folder, or new when `config_overrides` is given.

    An adapter folder is loaded on its base model and merged. A new model takes its architecture from `name_or_path`
    (a model type such as "gpt2" needs no network) and its vocabulary and special tokens from `tokenizer`.

    Args:
        dtype: of the weights. "auto" is float32: master weights stay exact, autocast does the fast arithmetic.
    """
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if config_overrides is not None:
        config = new_config(name_or_path, config_overrides, tokenizer, trust_remote_code)
        return AutoModelForCausalLM.from_config(
            config, dtype=_dtype(dtype), trust_remote_code=trust_remote_code, **options
        )
    return _load_with_adapter(
        AutoModelForCausalLM,
        "a causal language model",
        name_or_path,
        dtype=_dtype(dtype),
        trust_remote_code=trust_remote_code,
        **options,
    )


def load_reward_model(
    name_or_path: str | os.PathLike,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """A model with one scalar output: a trained reward model, or a new head on a language model's trunk.

    Raises:
        UserError: when the model has a head of another size (a classifier with several labels).
    """
    config = load_config(name_or_path, trust_remote_code)
    if _is_classifier(config) and config.num_labels != 1:
        raise UserError(
            f"{str(name_or_path)!r} has {config.num_labels} labels; a reward model has one number a completion. "
            "Train one with `rlhf-kit reward`, or give a language model to start from."
        )
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    model = _load_with_adapter(
        AutoModelForSequenceClassification,
        "a reward model",
        name_or_path,
        num_labels=1,
        dtype=_dtype(dtype),
        trust_remote_code=trust_remote_code,
        **options,
    )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id if tokenizer is not None else model.config.eos_token_id
    return model


def load_config(name_or_path: str | os.PathLike, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a hub id, a model folder or an adapter folder (then its base model's)."""
    path = Path(name_or_path)
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        name_or_path = PeftConfig.from_pretrained(str(path)).base_model_name_or_path
    return _load(AutoConfig.from_pretrained, "a model", name_or_path, trust_remote_code=trust_remote_code)


def new_config(
    architecture: str | os.PathLike,
    overrides: dict,
    tokenizer: PreTrainedTokenizerBase | None,
    trust_remote_code: bool = False,
) -> PretrainedConfig:
    """Configuration of a model built from scratch: the architecture's defaults, the tokenizer's facts, the overrides.

    Raises:
        UserError: for a key the architecture does not have, with the nearest one it has.
    """
    if str(architecture) in CONFIG_MAPPING_NAMES:
        config = AutoConfig.for_model(str(architecture))
    else:
        config = load_config(architecture, trust_remote_code)
    facts = {}
    if tokenizer is not None:
        facts = {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
    unknown = [key for key in overrides if not hasattr(config, key)]
    if unknown:
        names = [name for name in config.to_dict() if not name.startswith("_")]
        hints = "; ".join(f"{key!r}.{did_you_mean(key, names)}" for key in unknown)
        raise UserError(f"config_overrides: a {config.model_type} configuration has no {hints}")
    values = {**config.to_diff_dict(), **facts, **overrides}
    values.pop("model_type", None)
    config = type(config)(**values)
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if heads and width and width % heads:
        raise UserError(f"config_overrides: the width ({width}) must be a multiple of the number of heads ({heads}).")
    return config


def context_length(config: PretrainedConfig) -> int | None:
    """Positions the model has, or None when it has no fixed number."""
    config = config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)


def training_precision(requested: str = "auto") -> dict[str, bool]:
    """`bf16` and `fp16` for TrainingArguments: what is asked for if the machine has it, bf16 on a GPU for "auto".

    Raises:
        UserError: when the machine cannot compute in the precision asked for.
    """
    cuda = torch.cuda.is_available()
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else _cpu_has_bf16()
    if requested == "auto":
        return {"bf16": cuda and has_bf16, "fp16": False}
    if requested == "bf16" and not has_bf16:
        raise UserError("This machine cannot compute in bf16. Leave out `bf16` to train in float32, or set `fp16`.")
    if requested == "fp16" and not cuda:
        raise UserError("fp16 needs a GPU. Leave out `fp16` to train in float32 on this CPU.")
    return {"bf16": requested == "bf16", "fp16": requested == "fp16"}


def _cpu_has_bf16() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not one of {', '.join(DTYPES)}.{did_you_mean(name, DTYPES)}")
    return DTYPES[name]


def _is_classifier(config: PretrainedConfig) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def _load_with_adapter(auto_class, what: str, name_or_path: str | os.PathLike, **options) -> PreTrainedModel:
    path = Path(name_or_path)
    if not (path / "adapter_config.json").is_file():
        return _load(auto_class.from_pretrained, what, name_or_path, **options)
    adapter = PeftConfig.from_pretrained(str(path))
    what = f"{what} (the base of the adapter {str(path)!r})"
    base = _load(auto_class.from_pretrained, what, adapter.base_model_name_or_path, **options)
    if auto_class is AutoModelForSequenceClassification and adapter.task_type == "CAUSAL_LM":
        adapter.task_type = None  # the trunk's adapters serve; generating does not
    merged = PeftModel.from_pretrained(base, str(path), config=adapter).merge_and_unload()
    if (path / "config.json").is_file():  # what the adapter's run wrote beside it: calibration, special tokens
        merged.config = AutoConfig.from_pretrained(str(path))
    return merged


def _load(load, what: str, name_or_path: str | os.PathLike, **options):
    """Call a `from_pretrained`, turning its tracebacks into one sentence."""
    path = Path(name_or_path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{str(path)!r} is a file; {what} is a folder or a hub id.")
    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "tokenizer.json", "vocab.json")):
        found = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
        raise UserError(f"{str(path)!r} holds no model: it has {found}, and {what} needs a config.json.")
    if not path.exists() and (path.is_absolute() or str(path).startswith((".", "~")) or str(path).count("/") > 1):
        near = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"There is no folder {str(path)!r}; {what} is needed.{did_you_mean(path.name, near)}")
    try:
        return load(str(name_or_path), **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "the folder" if path.is_dir() else "the hub"
        raise UserError(
            f"{what[0].upper()}{what[1:]} could not be loaded from {where} {str(name_or_path)!r}: {reason} "
            "Give the folder of a saved model, or a hub id this machine can reach."
        ) from error
