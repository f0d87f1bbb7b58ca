"""Weights from files, with adapters merged on the way: complete, or refused.

transformers draws at random what a file lacks and leaves out what has no place, with a report that passes by.
"""

from __future__ import annotations

import copy
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled
from transformers.utils import logging as transformers_logging

from rlhf_kit.data import hub
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.inputs import read_json
from rlhf_kit.models.merging import merged
from rlhf_kit.ops import first_not_finite
from rlhf_kit.options.bounds import number_faults

logger = logging.getLogger(__name__)

# The config of a reward model beside its adapter: a config.json there would promise whole weights.
REWARD_CONFIG = "reward_config.json"
OWN_BASE = "adapter_base"  # the folder in a run's, of the merged base of an adapter that was trained on an adapter
MODEL_FILES = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
JSON_FILES = ("config.json", REWARD_CONFIG, "adapter_config.json", "generation_config.json", "tokenizer_config.json")
JSON_FILES += ("special_tokens_map.json", "added_tokens.json")
LORA_NUMBERS = ("r", "lora_alpha", "lora_dropout")
# What says by itself what is wrong; of anything else that a library raises the kind is told too.
SPEAKING = (OSError, ValueError, RuntimeError, ImportError, SafetensorError, StrictDataclassError, *hub.HUB_FAULTS)
Loaded = TypeVar("Loaded")
# Whether code that comes with a model may run, for all models of a command; a loader's own argument is for one.
TRUSTS_CODE: ContextVar[bool] = ContextVar("trust_remote_code", default=False)


def load_weights(
    auto_class,
    what: str,
    name_or_path: str | os.PathLike,
    config: PretrainedConfig,
    new_head: bool = False,
    **options,
) -> PreTrainedModel:
    """A model whose weights all come from its files, the adapters on the way to it merged.

    Args:
        config: of the outermost adapter.
        options: of `from_pretrained`, the dtype among them.
        new_head: what stands beside the trunk may be new; else that is refused as well.

    Raises:
        UserError: naming the weights that the files lack, or the layers that the config lacks.
    """
    dtype = options["dtype"]
    if adapter_config(what, name_or_path) is not None:  # merged in float32, and then rounded
        options["dtype"] = torch.float32
    model, lacking = _load_chain(auto_class, what, name_or_path, config, **options)
    _check_complete(model, lacking, new_head, name_or_path)
    if not is_fsdp_enabled():  # where one process has read them, not all
        refuse_not_finite(model, str(name_or_path))
    return model if model.dtype == dtype else model.to(dtype)


def _check_complete(
    model: PreTrainedModel, lacking: Iterable[str], new_head: bool, name_or_path: str | os.PathLike
) -> None:
    """Refuse a model whose files lack some of its weights; those of its heads may be new where `new_head` says so."""
    heads = {*head_modules(model)} if new_head else set()
    lost = sorted(name for name in lacking if not heads & {*name.split(".")})
    if lost:
        raise UserError(
            f"{str(name_or_path)!r}: its files lack {len(lost)} of the weights of {type(model).__name__}, which would "
            f"be drawn at random: {_first(lost)}. Give complete files, and the config.json that belongs to them."
        )


def not_finite(model: nn.Module) -> str | None:
    """What is wrong with weights that are no numbers: every score and every answer would be none."""
    weight = first_not_finite((name, x) for name, x in model.named_parameters() if not x.is_meta)
    return f"the weights {weight} are NaN or infinite, as it was loaded. Give another checkpoint." if weight else None


def refuse_not_finite(model: nn.Module, name: str) -> None:
    """Raises UserError for a model, called `name`, whose weights are `not_finite`."""
    fault = not_finite(model)
    if fault:
        raise UserError(f"{name!r}: {fault}")


def _load_chain(
    auto_class, what: str, name_or_path: str | os.PathLike, config: PretrainedConfig, **options
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of weights that neither a file nor an adapter has given."""
    adapter = adapter_config(what, name_or_path)
    if adapter is None:
        options = {"trust_remote_code": False, "output_loading_info": True, **options}
        load = partial(attempt, auto_class.from_pretrained, what, name_or_path, hub.MODEL_WEIGHTS)
        with _report_held():
            if options.get("device_map") is None and not (is_fsdp_enabled() or is_deepspeed_zero3_enabled()):
                # By its files alone, before memory is taken for what its config.json asks for.
                looks = {**options, "config": copy.deepcopy(config), "device_map": "meta"}
                model, info = load(ignore_mismatched_sizes=True, **looks)
                _check_shapes(info["mismatched_keys"], name_or_path)
                _check_complete(model, info["missing_keys"], True, name_or_path)
            model, info = load(ignore_mismatched_sizes=True, config=config, **options)
        _check_shapes(info["mismatched_keys"], name_or_path)
        _check_places(model, sorted(info["unexpected_keys"]), name_or_path)
        lacking = set(info["missing_keys"])
    else:
        what_base = f"{what} (the base of the adapter {str(name_or_path)!r})"
        base, lacking = _load_chain(auto_class, what_base, adapter.base_model_name_or_path, config, **options)
        if auto_class is AutoModelForSequenceClassification and adapter.task_type == "CAUSAL_LM":
            adapter.task_type = None  # the trunk's adapters serve; generating does not
        fixed = {name for name, parameter in base.named_parameters() if not parameter.requires_grad}
        adapted = _with_adapter(base, adapter, name_or_path)
        saved = [f"{name}." for name, part in base.named_modules() if isinstance(part, ModulesToSaveWrapper)]
        lacking = {name for name in lacking if not name.startswith(tuple(saved))}
        model = merged(adapted)
        for name, parameter in model.named_parameters():  # peft has frozen all of the base
            parameter.requires_grad_(name not in fixed)
    # An adapter trained on this model names it as its base, and is loaded from wherever its user stands.
    model.name_or_path = model.config.name_or_path = located(name_or_path)
    model.config._commit_hash = hub.split_revision(name_or_path)[1]
    return model, lacking


def _with_adapter(base: PreTrainedModel, adapter: PeftConfig, name_or_path: str | os.PathLike) -> PeftModel:
    """`base` with an adapter whose weights are all there and all have a place."""

    def load(name: str) -> tuple[PeftModel, tuple[list[str], list[str]]]:
        model = PeftModel.from_pretrained(base, name, config=adapter)
        return model, model.load_adapter(name, "default")  # once more, for what it tells

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # told below
        warnings.filterwarnings("ignore", message=".*to a meta parameter in the current model")  # none is to be read
        model, (missing, unexpected) = attempt(load, "an adapter", name_or_path, hub.ADAPTER_WEIGHTS)
    prefix = f"base_model.model.{base.base_model_prefix}."
    if is_classifier(base):  # the LM head of a language model's adapter is not needed
        unexpected = [name for name in unexpected if name.startswith(prefix)]
    for names, verb in ((missing, "lacks"), (unexpected, "has, unknown to its base,")):
        if names:
            raise UserError(
                f"The adapter {str(name_or_path)!r} {verb} {len(names)} weights: {_first(names)}. It is incomplete, "
                f"or was not trained on the base that it names, {adapter.base_model_name_or_path!r}."
            )
    return model


def _check_shapes(mismatched: Iterable[tuple[str, torch.Size, torch.Size]], name_or_path: str | os.PathLike) -> None:
    """Refuse weights of other shapes than the config's, which would be drawn at random."""
    shapes = [f"{name} is {tuple(saved)}, not {tuple(wanted)}" for name, saved, wanted in sorted(mismatched)]
    if shapes:
        raise UserError(
            f"{str(name_or_path)!r}: its files hold {len(shapes)} weights whose shapes differ from those of its "
            f"config.json: {_first(shapes)}. They do not belong together: give the files of one model."
        )


def _check_places(model: PreTrainedModel, unexpected: list[str], name_or_path: str | os.PathLike) -> None:
    """Refuse layers in the files that the config does not have, and tell of other weights that are left out."""
    stacks = [f"{name}." for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    layers = [name for name in unexpected if name.startswith(tuple(stacks))]
    if layers:
        raise UserError(
            f"{str(name_or_path)!r}: its files hold weights of layers that its config.json does not have: "
            f"{_first(layers)}. They do not belong together."
        )
    trunk = f"{model.base_model_prefix}."
    left_out = [name for name in unexpected if name.startswith(trunk) and "pooler" not in name.split(".")]
    if left_out:
        logger.warning("%s: weights that the model does not use are left out: %s.", name_or_path, _first(left_out))


def _first(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


@contextmanager
def _report_held() -> Iterator[None]:
    """Within, transformers' table of what a file lacks is not shown: it is read here."""

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    reporter = transformers_logging.get_logger("transformers.modeling_utils")
    reporter.addFilter(is_other)
    try:
        yield
    finally:
        reporter.removeFilter(is_other)


def adapter_config(what: str, name_or_path: str | os.PathLike) -> PeftConfig | None:
    """What an adapter folder or hub id says of itself; None when it is no adapter.

    Raises:
        UserError: when the adapter names no base model, or a part of it is missing.
    """
    if not holds(what, name_or_path, "adapter_config.json"):
        return None
    path = Path(name_or_path)
    if path.is_dir() and not any(path.glob("adapter_model.*")):
        raise UserError(f"{str(path)!r} has an adapter_config.json and no adapter_model.safetensors: no weights.")
    saved = read_json(attempt(Path, "an adapter", name_or_path) / "adapter_config.json")
    kind = saved.get("peft_type")
    if kind is not None and kind not in [*PeftType]:
        raise UserError(
            f"The adapter {str(name_or_path)!r} is of the kind {kind!r}, which the installed peft does not support. "
            "Give a LoRA adapter."
        )
    adapter = attempt(PeftConfig.from_pretrained, "an adapter", name_or_path)
    if faults := number_faults("LoraConfig", **{name: getattr(adapter, name, None) for name in LORA_NUMBERS}):
        raise UserError(f"The adapter_config.json of {str(name_or_path)!r}: {'; '.join(faults)}.")
    for name in ("base_model_name_or_path", "revision"):
        if not isinstance(value := getattr(adapter, name), str | None):
            raise unsound("adapter_config.json", name_or_path, name, value, "a text")
    if not adapter.base_model_name_or_path:
        raise UserError(
            f"The adapter {str(name_or_path)!r} names no base model: it was trained on a model that was never saved. "
            "Set `base_model_name_or_path` in its adapter_config.json."
        )
    if not is_mergeable(adapter):
        kind = getattr(adapter.peft_type, "value", adapter.peft_type)
        raise UserError(
            f"The adapter {str(name_or_path)!r} is of the kind {kind}, which is not part of the weights and cannot be "
            "merged: give a LoRA adapter."
        )
    adapter.base_model_name_or_path = base_of(name_or_path, adapter.base_model_name_or_path, adapter.revision)
    _refuse_circle(str(name_or_path), adapter.base_model_name_or_path)
    return adapter


def unsound(file: str, name_or_path: str | os.PathLike, name: str, value: object, needed: str) -> UserError:
    """What to say of a value in a model's file that no library has saved there."""
    return UserError(
        f"The {file} of {str(name_or_path)!r} has the {name} {value!r}; {needed} is needed. Give the file as it was "
        "saved."
    )


def _refuse_circle(adapter: str, base: str) -> None:
    """Raises UserError for an adapter that stands on itself, by however many others."""
    passed = {located(adapter)}
    while located(base) not in passed and (Path(base) / "adapter_config.json").is_file():
        passed.add(located(base))
        saved = read_json(Path(base) / "adapter_config.json")
        if not isinstance(saved, dict) or not isinstance(saved.get("base_model_name_or_path"), str):
            return  # told where it is loaded
        base = base_of(base, saved["base_model_name_or_path"], None)
    if located(base) in passed:
        raise UserError(
            f"The adapter {adapter!r} is its own base: by their adapter_config.json its base models lead back to "
            f"{base!r}. Set `base_model_name_or_path` to the model that it was trained on."
        )


def is_mergeable(adapter: PeftConfig) -> bool:
    """Whether a plain model can compute what one with this adapter does: not with prompts that were learnt."""
    return hasattr(PEFT_TYPE_TO_TUNER_MAPPING.get(adapter.peft_type), "merge_and_unload")


def base_of(name_or_path: str | os.PathLike, base: str, revision: str | None) -> str:
    """Where an adapter's base stands: as it says, or, moved together with it, where a run keeps a base of its own."""
    if Path(base).exists():
        return base
    if not hub.names_path(base):
        return hub.at_revision(base, revision)
    own = [folder / OWN_BASE for folder in (Path(name_or_path), Path(name_or_path).parent)]
    moved = [folder for folder in own if Path(base).name == OWN_BASE and folder.is_dir()]
    if not moved:
        raise UserError(
            f"The adapter {str(name_or_path)!r} was trained on the model in {base!r}, and there is no such folder. "
            "Put it back, or set `base_model_name_or_path` in the adapter's adapter_config.json to where it is now."
        )
    return str(moved[0])


def is_here(what: str, name_or_path: str | os.PathLike) -> bool:
    """Whether a model stands in a folder, and those below its adapters do."""
    if not Path(name_or_path).is_dir():
        return False
    adapter = adapter_config(what, name_or_path)
    return adapter is None or is_here(what, adapter.base_model_name_or_path)


def located(name_or_path: str | os.PathLike) -> str:
    """A folder by its absolute path, links followed, a hub id without a revision."""
    name = str(name_or_path)
    return str(Path(name).resolve()) if name and Path(name).is_dir() else hub.split_revision(name)[0]


def origin(model: PreTrainedModel) -> str:
    """Where a model came from, as a name to load what belongs to it by: of the hub with its commit; "" in memory."""
    name, commit = model.config._name_or_path, getattr(model.config, "_commit_hash", None)
    return hub.at_revision(name, commit) if name and not hub.is_local(name) else name


def short_name(model: PreTrainedModel | str | os.PathLike) -> str:
    """The last part of a model's folder or hub id; "" of one that was made in memory."""
    return located(origin(model) if isinstance(model, nn.Module) else model).rstrip("/").split("/")[-1]


def with_origin(what: str, model: PreTrainedModel | str | os.PathLike) -> tuple[PreTrainedModel | str, str]:
    """A model, or the name of one, `pinned`; and its origin."""
    if isinstance(model, nn.Module):
        return model, origin(model)
    name = pinned(what, model)
    return name, name


def holds(what: str, name_or_path: str | os.PathLike, file: str) -> bool:
    """Whether a folder or hub id has a file of this name."""
    return (attempt(Path, what, name_or_path) / file).is_file()


def pinned(what: str, name_or_path: str | os.PathLike) -> str:
    """A hub id with the commit that it stands for now, so that all that is loaded by it belongs together; a folder as
    it is.

    Raises:
        UserError: where the hub does not have it, or cannot be asked.
    """
    return _told(what, name_or_path, lambda: hub.pinned(name_or_path))


def attempt(
    load: Callable[..., Loaded], what: str, name_or_path: str | os.PathLike, weights: tuple[str, ...] = (), **options
) -> Loaded:
    """Call a `from_pretrained` with the folder of a model, turning its tracebacks into one sentence.

    Args:
        weights: that it reads, as for `hub.fetched`.
    """
    if "trust_remote_code" in options:
        options["trust_remote_code"] = options["trust_remote_code"] or TRUSTS_CODE.get()

    def fetched_and_loaded() -> Loaded:
        folder = hub.fetched(name_or_path, weights)
        _refuse_no_mapping(folder)
        hub.check_shards(folder, weights)
        return load(str(folder), **options)

    return _told(what, name_or_path, fetched_and_loaded)


def _told(what: str, name_or_path: str | os.PathLike, load: Callable[[], Loaded]) -> Loaded:
    path = Path(name_or_path)
    beside = path.parent.iterdir() if not path.exists() and path.parent.is_dir() else ()
    near = did_you_mean(path.name, [item.name for item in beside])
    if path.exists() and not path.is_dir():
        raise UserError(f"{str(path)!r} is a file; {what} is a folder or a hub id.")
    if path.is_dir() and not any((path / name).is_file() for name in MODEL_FILES):
        contents = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
        raise UserError(f"{str(path)!r} holds no model: it has {contents}, and {what} needs a config.json.")
    if hub.names_path(name_or_path) and not path.exists():
        raise UserError(f"There is no folder {str(path)!r}; {what} is needed.{near}")
    try:
        return load()
    except (UserError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of files that are missing, damaged or do not fit one another, anything is raised
        where, near = ("the folder", "") if path.is_dir() else ("the hub", near)
        why = (None if path.is_dir() else hub.hub_fault(name_or_path, error)) or _words(error)
        elsewhere = f"{why} Give the folder of a saved model, or a hub id this machine can reach."
        why = code_advice(name_or_path, error) or elsewhere
        raise hub.loading_error(name_or_path, error)(
            f"{what[0].upper()}{what[1:]} could not be loaded from {where} {str(name_or_path)!r}: {why}{near}"
        ) from error


def code_advice(name_or_path: str | os.PathLike, error: Exception) -> str | None:
    """What to do where transformers asks for trust in the code that comes with a model; else None."""
    if "trust_remote_code" not in str(error):
        return None
    page = f"at {str(name_or_path)!r}" if Path(name_or_path).is_dir() else f"on its page, {hub.page(name_or_path)}"
    return (
        f"it contains code of its own, which would run on this machine. Review it {page}; if you trust it, give "
        "--trust_remote_code (in Python load it with trust_remote_code=True, and hand over the model)."
    )


def _refuse_no_mapping(folder: Path) -> None:
    """Raises UserError for a file beside a model that should hold a mapping in JSON, and does not."""
    for path in (folder / name for name in JSON_FILES):
        content = read_json(path) if path.exists() else {}
        if not isinstance(content, dict):
            raise UserError(
                f"{str(path)!r} holds a {type(content).__name__}; a mapping is needed. Give the file as it was saved."
            )


def _words(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch advises to run what it has refused
        return "its weights are damaged, or a pickle that would run code; only tensors are loaded."
    return reason(error) if isinstance(error, SPEAKING) else f"{type(error).__name__}: {reason(error)}"


def reason(error: Exception) -> str:
    """The sentence of a library's error message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return reason if reason.endswith((".", "!", "?")) else f"{reason}."


def names_classifier(architecture: str) -> bool:
    return architecture.endswith("ForSequenceClassification")


def is_classifier_config(config: PretrainedConfig) -> bool:
    return any(map(names_classifier, config.architectures or []))


def is_classifier(model: nn.Module) -> bool:
    return names_classifier(type(model).__name__)


def head_modules(model: nn.Module) -> list[str]:
    """Names of the modules of a classifier that its trunk's checkpoint may lack: they begin at random.

    All that stands beside the trunk, and the trunk's pooler: BERT saved for masked tokens has none.
    """
    beside = [name for name, module in model.named_children() if any(True for _ in module.parameters())]
    trunk = getattr(model, model.base_model_prefix, None)  # QANet has none
    has_pooler = isinstance(getattr(trunk, "pooler", None), nn.Module)
    return [name for name in beside if name != model.base_model_prefix] + ["pooler"] * has_pooler
