"""Load tokenizers and models, with GPT-2's facts handled once: no pad token, bos == eos, 1,024 positions.

The vocabulary is never resized: padding borrows the end-of-text id, and every mask in the project comes from lengths,
never from token ids, so that borrowing is harmless.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Tokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TokenizersBackend,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

from rlhf_kit.data.templates import turn_ends
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.models.forward import known_tokens
from rlhf_kit.models.weights import (
    REWARD_CONFIG,
    adapter_config,
    attempt,
    holds,
    is_classifier_config,
    load_weights,
    located,
    pinned,
    reason,
    unsound,
)

DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIZES = ("num_attention_heads", "num_key_value_heads", "hidden_size", "num_hidden_layers", "vocab_size")
MOST_LAYERS = 2**12  # all are built before a weight is read; the deepest published have a thousand


class PreTrainedTokenizerFast(TokenizersBackend):
    """What transformers 5 calls TokenizersBackend, saved by its older name: transformers 4, which llama.cpp's
    converter asks for, knows no other."""


def load_tokenizer(
    name_or_path: str | os.PathLike, trust_remote_code: bool = False, needs_eos: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder, padding on the right with a pad token that costs no vocabulary.

    A folder that holds only GPT-2's `vocab.json` and `merges.txt` is enough.

    Args:
        needs_eos: answers are generated, so they must be able to end. A reward model only reads: without this an
            encoder's tokenizer, which has a separator ([SEP]) and no end-of-text token, ends its turns with that.

    Raises:
        UserError: when there is no tokenizer, or none whose texts can end.
    """
    name_or_path = pinned("a tokenizer", name_or_path)
    path = attempt(Path, "a tokenizer", name_or_path)
    # With a config.json beside them the files may be another model's (OPT, RoBERTa), which transformers finds out.
    others = ("tokenizer_config.json", "tokenizer.json", "config.json")
    bare = (path / "merges.txt").is_file() and not any((path / name).is_file() for name in others)
    if bare:
        tokenizer = attempt(GPT2Tokenizer.from_pretrained, "a tokenizer", name_or_path)
    else:
        tokenizer = attempt(
            AutoTokenizer.from_pretrained, "a tokenizer", name_or_path, trust_remote_code=trust_remote_code
        )
    tokenizer.name_or_path = located(name_or_path)
    if not isinstance(tokenizer.model_max_length, int | float):
        length = tokenizer.model_max_length
        raise unsound("tokenizer_config.json", name_or_path, "model_max_length", length, "a number")
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):  # transformers makes an empty one from config.json alone
        raise UserError(
            f"{str(name_or_path)!r} holds no tokenizer: every token it gives is a special one. "
            "Save the tokenizer next to the model, or give the tokenizer's own folder."
        )
    if tokenizer.eos_token_id is None and not needs_eos:
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer of {str(name_or_path)!r} has no end-of-text token; an answer could never end. "
            "Set `eos_token` in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    if type(tokenizer) is TokenizersBackend:
        tokenizer.__class__ = PreTrainedTokenizerFast
    return tokenizer


def load_policy(name_or_path: str | os.PathLike, **options) -> PreTrainedModel:
    """A causal language model: from a hub id or folder, or new when `config_overrides` is given.

    An adapter is loaded on its base model (which may be an adapter itself) and merged. A new model takes its
    architecture from `name_or_path` (a model type such as "gpt2" needs no network) and its vocabulary and special
    tokens from `tokenizer`.

    Args:
        options: config_overrides (dict), tokenizer, dtype, trust_remote_code, attn_implementation, device_map. `dtype`
            is of the weights; "auto" is float32: master weights stay exact, autocast does the fast arithmetic. With
            the device_map "meta" its files are looked at and no weight is read.
    """
    return _language_model(AutoModelForCausalLM, "a causal language model", name_or_path, **options)


def load_masked_lm(name_or_path: str | os.PathLike, **options) -> PreTrainedModel:
    """A masked language model (BERT); all else as for `load_policy`."""
    return _language_model(AutoModelForMaskedLM, "a masked language model", name_or_path, **options)


def _language_model(
    auto_class,
    what: str,
    name_or_path: str | os.PathLike,
    *,
    config_overrides: dict | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    device_map: str | None = None,
) -> PreTrainedModel:
    options = {"dtype": _dtype(dtype), "trust_remote_code": trust_remote_code}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    if config_overrides is not None:
        config = new_config(name_or_path, config_overrides, tokenizer, trust_remote_code)
        it_makes = f"config_overrides: {config_overrides} make"
        return _every_token_learns(new_model(auto_class, config, it_makes, device_map, **options))
    name_or_path = pinned(what, name_or_path)
    config = load_config(name_or_path, trust_remote_code, what)
    if is_classifier_config(config):
        raise UserError(
            f"{str(name_or_path)!r} is a reward model or classifier: it gives scores, and {what} is needed. "
            "Give the model it was trained from, or one that `rlhf-kit sft` made."
        )
    model = load_weights(auto_class, what, name_or_path, config, device_map=device_map, **options)
    _check_ends(name_or_path, model)
    if tokenizer is not None:
        check_vocabulary(name_or_path, tokenizer, model)
    return _every_token_learns(model)


def new_model(
    auto_class, config: PretrainedConfig, it_makes: str, device_map: str | None = None, **options
) -> PreTrainedModel:
    """A model of this configuration, drawn at random. Raises UserError, which begins with `it_makes`."""
    try:
        with torch.device(device_map or "cpu"):
            return auto_class.from_config(config, **options)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{it_makes} no {config.model_type} model: {reason(error)}") from error


def load_reward_model(
    name_or_path: str | os.PathLike,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    device_map: str | None = None,
) -> PreTrainedModel:
    """A model with one scalar output: a trained reward model, or a new head on a language model's trunk.

    Raises:
        UserError: when the model has a head of another size (a classifier with several labels).
    """
    name_or_path = pinned("a reward model", name_or_path)
    config = load_config(name_or_path, trust_remote_code, "a reward model")
    has_head = is_classifier_config(config)
    if has_head and config.num_labels != 1:
        raise UserError(
            f"{str(name_or_path)!r} has {config.num_labels} labels; a reward model has one output. "
            "Train one with `rlhf-kit reward`, or give a language model to start from."
        )
    config.num_labels = 1
    options = {"dtype": _dtype(dtype), "trust_remote_code": trust_remote_code}
    if attn_implementation:
        options["attn_implementation"] = attn_implementation
    model = load_weights(
        AutoModelForSequenceClassification, "a reward model", name_or_path, config, not has_head,
        device_map=device_map, **options,
    )  # fmt: skip
    if tokenizer is not None:
        check_vocabulary(name_or_path, tokenizer, model)
    if model.config.pad_token_id is None:
        eos = model.config.eos_token_id
        eos = eos[0] if isinstance(eos, list | tuple) else eos  # Llama 3 has several
        model.config.pad_token_id = tokenizer.pad_token_id if tokenizer is not None else eos
    return _every_token_learns(model)


def _every_token_learns(model: PreTrainedModel) -> PreTrainedModel:
    """torch gives the embedding of the padding id no gradient, and padding here borrows the id of the end of text."""
    model.get_input_embeddings().padding_idx = None
    return model


def check_scorer(name_or_path: str | os.PathLike, config: PretrainedConfig) -> None:
    """Raises UserError where a new head would be all that gives scores, or where there is more than one label.

    Args:
        config: of `name_or_path`.
    """
    if not is_classifier_config(config):
        kind = (config.architectures or [config.model_type])[0]
        raise UserError(
            f"{str(name_or_path)!r} is not a reward model: it is a {kind}, without a head that gives scores. "
            "Train one with `rlhf-kit reward`, or give the folder of one."
        )
    if config.num_labels != 1:
        raise UserError(f"{str(name_or_path)!r} has {config.num_labels} labels; a reward model has one output.")


def _check_ends(name_or_path: str | os.PathLike, model: PreTrainedModel) -> None:
    """Raises UserError for ends of an answer that are no tokens: transformers takes those of generation_config.json as
    they are."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if not all(isinstance(end, int | None) for end in (ends if isinstance(ends, list | tuple) else [ends])):
        needed = "a number, or a list of numbers,"
        raise unsound("generation_config.json", name_or_path, "eos_token_id", ends, needed)


def check_vocabulary(
    name_or_path: str | os.PathLike, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    """Raises UserError where the tokenizer has tokens that the model does not know."""
    known = known_tokens(model)
    if len(tokenizer) > known:
        raise UserError(
            f"The tokenizer for {str(name_or_path)!r} has {len(tokenizer)} tokens and the model knows {known}: they "
            "do not belong together. Save the model's own tokenizer beside it."
        )


def load_config(
    name_or_path: str | os.PathLike, trust_remote_code: bool = False, what: str = "a model"
) -> PretrainedConfig:
    """The configuration of a hub id or folder; a reward adapter's own, else that of an adapter's base model.

    Args:
        what: is being loaded, for the error message.
    """
    name_or_path = pinned(what, name_or_path)
    adapter = adapter_config(what, name_or_path)
    read = AutoConfig.from_pretrained
    if adapter is not None and holds(what, name_or_path, REWARD_CONFIG):
        read = _read_reward_config
    elif adapter is not None and not holds(what, name_or_path, "config.json"):
        what = f"{what} (the base of the adapter {str(name_or_path)!r})"
        config = load_config(adapter.base_model_name_or_path, trust_remote_code, what)
        return _with_head(config) if adapter.task_type == "SEQ_CLS" else config
    config = attempt(read, what, name_or_path, trust_remote_code=trust_remote_code)
    kinds = config.architectures
    if kinds is not None and not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        raise unsound("config.json", name_or_path, "architectures", kinds, "a list of names")
    _check_sizes(f"The config.json of {str(name_or_path)!r} makes", config)
    config.name_or_path = located(name_or_path)
    return config


def _check_sizes(it_makes: str, config: PretrainedConfig) -> None:
    """Raises UserError for a model of no heads, no width, no layers or no tokens, or of layers without end."""
    config = config.get_text_config()
    sizes = {name: getattr(config, name, None) for name in SIZES}
    sizes = {name: size for name, size in sizes.items() if isinstance(size, int)}
    faults = [f"{name} is {size}; it must be at least 1" for name, size in sizes.items() if size < 1]
    if sizes.get("num_hidden_layers", 0) > MOST_LAYERS:
        faults.append(f"num_hidden_layers is {sizes['num_hidden_layers']}; it must be at most {MOST_LAYERS}")
    if faults:
        raise UserError(f"{it_makes} no {config.model_type} model: {', '.join(faults)}.")


def _read_reward_config(folder: str, **options) -> PretrainedConfig:
    return AutoConfig.from_pretrained(Path(folder) / REWARD_CONFIG, **options)


def _with_head(config: PretrainedConfig) -> PretrainedConfig:
    """The config of a base whose adapter, made elsewhere, brings a scalar head."""
    if not is_classifier_config(config):
        config.num_labels = 1
        config.architectures = [CLASSIFIERS.get(config.model_type, "ForSequenceClassification")]
    return config


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
        config, saved = AutoConfig.for_model(str(architecture)), {}  # what follows from other fields follows anew
    else:
        config = load_config(architecture, trust_remote_code)
        saved = config.to_diff_dict()
    facts = {}
    if tokenizer is not None:
        facts = {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        if getattr(config, "pad_token_id", None) is not None:  # that of another vocabulary
            facts["pad_token_id"] = tokenizer.pad_token_id
    names = {name for name in [*config.to_dict(), *config.attribute_map] if not name.startswith("_")} - {"model_type"}
    unknown = [key for key in overrides if key not in names]
    if unknown:
        hints = "; ".join(f"{key!r}.{did_you_mean(key, names)}" for key in unknown)
        raise UserError(f"config_overrides: a {config.model_type} configuration has no {hints}")
    values = {**saved, **facts, **overrides}
    values.pop("model_type", None)
    try:
        config = type(config)(**values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"config_overrides: {reason(error)}") from error
    _check_sizes(f"config_overrides: {overrides} make", config)
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if heads and width and width % heads:
        raise UserError(f"config_overrides: the width ({width}) must be a multiple of the number of heads ({heads}).")
    return config


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: the model's own list (Llama 3 and Gemma have several), the tokenizer's end
    of text and its chat template's end of a turn."""
    return sorted({*_own_ends(model, tokenizer), *turn_ends(tokenizer)})


def set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the model's configs, which are saved with it, end a completion where `end_ids` does and begin and pad as its
    tokenizer does. The model's own list of ends is extended; its padding token stays where the tokenizer has none."""
    check_vocabulary(model.config.name_or_path, tokenizer, model)
    ends = list(dict.fromkeys([*_own_ends(model, tokenizer), *turn_ends(tokenizer)]))
    config = model.config.get_text_config()
    own_pad = getattr(config, "pad_token_id", None)  # RWKV and CodeGen have none
    if tokenizer.pad_token_id == tokenizer.eos_token_id and own_pad in tokenizer.added_tokens_decoder:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(own_pad)  # the end of text was only borrowed
    for each in filter(None, (config, getattr(model, "generation_config", None))):
        has_list = each is not config or isinstance(each.eos_token_id, list)
        each.eos_token_id = ends if has_list and len(ends) > 1 else tokenizer.eos_token_id
        if tokenizer.bos_token_id is not None:
            each.bos_token_id = tokenizer.bos_token_id
        elif each.bos_token_id is None:
            each.bos_token_id = tokenizer.eos_token_id
        each.pad_token_id = tokenizer.pad_token_id
    if config.model_type == "gpt2":
        config.n_ctx = config.n_positions  # as in the published GPT-2: llama.cpp's converter reads it and nothing else


def _own_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    config = model.config.get_text_config()
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = config.eos_token_id if ends is None else ends
    ends = ends if isinstance(ends, list | tuple) else [ends]
    # What the architecture ends with by default (Llama's 2) says nothing of a tokenizer that has a text there.
    default = getattr(type(config), "eos_token_id", None)
    return [end for end in ends if end is not None and (end != default or end in tokenizer.added_tokens_decoder)]


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
