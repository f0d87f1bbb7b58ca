"""What a run reads from the hub, by commit: a branch may move during the run, and before it is resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from rlhf_kit.data import sources
from rlhf_kit.data.hub import at_revision, is_local, split_revision
from rlhf_kit.errors import HubUnreachableError, UserError, did_you_mean
from rlhf_kit.models.roles import VALUE_MODELS
from rlhf_kit.models.weights import TRUSTS_CODE, pinned
from rlhf_kit.options.reading import listed
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.output import from_main_process

MODELS = {  # by option, as a message calls it
    "model_name_or_path": "a model",
    "tokenizer_name_or_path": "a tokenizer",
    "reward_funcs": "a reward model",
    "ref_model_name_or_path": "a reference",
    "value_model": "a value model",
    "calibration_policy": "a policy",
}
DATA = ("dataset_name", "eval_dataset_name", "ptx_dataset_name", "calibration_dataset_name")


def check_revision(settings: Settings) -> Iterator[str]:
    """What is wrong with `--model_revision`."""
    model = settings.model
    if not model.model_revision:
        return
    _, named = split_revision(model.model_name_or_path)
    if _is_architecture(settings):
        yield "--model_revision applies to a model on the hub, and --config_overrides makes a new one. Leave it out."
    elif is_local(model.model_name_or_path):
        yield (
            f"--model_revision {model.model_revision} applies to a model on the hub, and "
            f"{model.model_name_or_path!r} is a "
            "path. Leave it out."
        )
    elif named not in (None, model.model_revision):
        yield f"--model_revision {model.model_revision} and {model.model_name_or_path!r} name two revisions: give one."


def pin(settings: Settings) -> None:
    """Give each name of the hub among the options the commit that it stands for now.

    A name stays as it is where the hub cannot be asked: what loads it says so, after what else is wrong. All models
    of the run may run code of theirs, or none.

    Raises:
        UserError: of all that the hub does not have.
    """
    TRUSTS_CODE.set(settings.model.trust_remote_code)
    if settings.model.model_revision and "@" not in settings.model.model_name_or_path:
        settings.model.model_name_or_path = at_revision(
            settings.model.model_name_or_path, settings.model.model_revision
        )
    pins = from_main_process(settings, lambda: _found(settings))
    for name, value in pins.items():
        setattr(_holder(settings, name), name, value)


def _found(settings: Settings) -> dict[str, Any]:
    names, faults = {}, []
    resolvers = [(name, _model(settings, name)) for name in MODELS] + [(name, sources.pinned) for name in DATA]
    for name, resolve in resolvers:
        holder = _holder(settings, name)
        value = None if holder is None else getattr(holder, name)
        if not value:
            continue
        pins = []
        for source in value if isinstance(value, list) else [value]:
            try:
                pins.append(resolve(str(source)))
            except HubUnreachableError:
                pins.append(source)
            except UserError as error:
                faults.append((f"--{name}: ", error))
                pins.append(source)
        names[name] = pins if isinstance(value, list) else pins[0]
    if len(faults) == 1:
        raise faults[0][1]
    if faults:
        raise UserError(listed(settings.stage, [f"{where}{error}" for where, error in faults]))
    return names


def _model(settings: Settings, name: str) -> Callable[[str], str]:
    def resolve(source: str) -> str:
        is_function = name == "reward_funcs" and ":" in source
        is_word = name == "value_model" and did_you_mean(source, VALUE_MODELS) and not Path(source).exists()
        is_type = name == "model_name_or_path" and _is_architecture(settings)
        stays = is_function or is_word or is_type or is_local(source)  # a folder may be yet to be made
        return source if stays else pinned(MODELS[name], source)

    return resolve


def _is_architecture(settings: Settings) -> bool:
    model = settings.model
    return model.config_overrides is not None and model.model_name_or_path in CONFIG_MAPPING_NAMES


def _holder(settings: Settings, name: str) -> Any:
    """The record of options that has this one; None where the stage has no such option."""
    records = (settings.model, settings.data, settings.extra)
    return next((record for record in records if hasattr(record, name)), None)
