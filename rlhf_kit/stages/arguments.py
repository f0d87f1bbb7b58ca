"""What a recipe is told: defaults < YAML (`--config`) < command line, strictly read.

Torch-free, so that `--help` can use it. Values arrive as text (YAML scalars stay as they are written) and take the
type their field declares: `2e-5` is a number for a float, `no` a word for a strategy and False for a switch.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlhf_kit import inputs
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.options.bounds import bound_of, broken_rule
from rlhf_kit.options.coercion import (
    TextLoader,
    coerce,
    describe,
    is_true,
    members,
    read_mapping,
    takes_list,
    takes_mapping,
)

MAPPING_FILES = ("accelerator_config", "fsdp_config", "deepspeed")  # what transformers reads from a JSON file too

RECIPES = Path(__file__).parent / "recipes"


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Model to start from: hub id or folder; with config_overrides a model type such as gpt2.",
            "required": True,
        },
    )
    model_revision: str | None = field(
        default=None,
        metadata={
            "help": "Branch, tag or commit of the hub's model. Any name may bring its own: owner/name@revision, data "
            "too. Default: what the hub has now."
        },
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Tokenizer: hub id or folder. Default: the model's own."}
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Build the model from scratch: n_layer=4,n_embd=256,n_head=4 over the named architecture."},
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Type of the weights. auto: float32, the type to train in."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention kernel: eager, sdpa or flash_attention_2. Default: the model's."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with a hub model."})
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of all weights."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale: updates are multiplied by alpha / r."})
    lora_dropout: float = field(
        default=0.0, metadata={"help": "Dropout on the adapter's input. PPO needs 0: its ratios must start at 1."}
    )
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules to adapt. Default for GPT-2: c_attn c_proj c_fc."}
    )
    lora_modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained in full and saved with the adapter."}
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale by alpha / sqrt(r) (rank-stabilised LoRA)."})
    use_dora: bool = field(default=False, metadata={"help": "Train magnitude and direction apart (DoRA)."})
    merge_adapter: bool = field(
        default=False, metadata={"help": "Save the model with the adapter merged in, not the adapter alone."}
    )


@dataclass
class DataArguments:
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Training data: hub id, .jsonl/.json/.parquet/.csv file, folder, or world.",
            "required": True,
        },
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Evaluation data: any source. Default: no evaluation."}
    )
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first N rows only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first N rows only."})


@dataclass
class RunArguments:
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Remove the run that output_dir holds, by its own record and nothing else, and start anew."},
    )
    dry_run: bool = field(
        default=False, metadata={"help": "Check config and data, print the plan, train nothing, write nothing."}
    )


SECRET = ("hub_token",)  # recorded nowhere


@dataclass
class Settings:
    """A recipe's arguments, one record a concern. `given`: the names set by YAML or command line."""

    stage: str
    model: ModelArguments
    data: DataArguments
    run: RunArguments
    training: Any
    extra: Any = None
    given: frozenset[str] = frozenset()
    argv: tuple[str, ...] = ()
    publishes: bool = False  # whether the model goes to the hub when all is done
    provenance: Any = None  # what the run trains with (recipes.resume.Provenance)
    closing: ExitStack = field(default_factory=ExitStack)  # what the run does at its end, whatever that is


def given_values(settings: Settings) -> dict[str, Any]:
    """What the user gave, by name; everything else is a default."""
    records = [settings.model, settings.data, settings.run, settings.training, settings.extra]
    return {
        name: getattr(next(record for record in records if hasattr(record, name)), name)
        for name in sorted(settings.given)
    }


def parse(
    stage: str,
    training_class: type,
    argv: Sequence[str],
    extra_class: type | None = None,
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    renamed: dict[str, str] | None = None,
) -> Settings:
    """Read `argv` (and its `--config` YAML) into the stage's records.

    `complete` adds what depends on the machine to the values a user gave; `renamed`: old names and what to write
    instead. Raises UserError with every fault at once.
    """
    classes = {"model": ModelArguments, "data": DataArguments, "run": RunArguments, "training": training_class}
    if extra_class is not None:
        classes["extra"] = extra_class
    declared = declared_fields(classes.values())
    problems: list[str] = []
    config_path, from_cli = read_cli(argv, declared, problems)
    raw = {}
    if config_path is not None:
        raw.update({key: (value, f"{config_path}: {key}") for key, value in read_yaml(config_path, problems).items()})
    raw.update({key: (value, f"--{key}") for key, value in from_cli.items()})

    values = {}
    for key, (value, where) in raw.items():
        if key in (renamed or {}):
            problems.append(f"{where}: this name is gone; write {renamed[key]}.")
            continue
        if key not in declared:
            problems.append(f"{where}: no such option.{did_you_mean(key, declared)}")
            continue
        try:
            values[key] = _value(value, declared[key])
            problems += _range_fault(values[key], declared[key], where)
        except ValueError as error:
            problems.append(f"{where}: {error}")
    problems += _missing(values, raw, declared)
    if problems:
        raise UserError(listed(stage, problems))

    given = frozenset(values)
    if complete is not None:
        values = complete(values)
    records = _build(stage, classes, values)
    return Settings(stage=stage, given=given, argv=tuple(argv), **records)


def _value(value: Any, option: Declared) -> Any:
    if option.bare is True and is_true(value):  # `--fsdp` is text or a switch
        return True
    if option.name == "report_to" and value == "none":  # transformers' own word, not the absence of one
        return value
    result = coerce(value, option.type)
    if isinstance(result, str) and takes_mapping(option.type):
        if option.name not in MAPPING_FILES:
            raise ValueError(f"got {result!r}, needs {describe(dict)}.")
        result = read_mapping(result)
    if option.choices and result is not None and result not in option.choices:
        near = did_you_mean(str(result), map(str, option.choices))
        raise ValueError(f"got {result!r}, needs one of {', '.join(map(str, option.choices))}.{near}")
    return result


def _range_fault(value: Any, option: Declared, where: str) -> list[str]:
    bound = bound_of(option.name, *option.owners)
    if bound is None or value is None or isinstance(value, str):
        return []
    rule = broken_rule(value, bound)
    none = ", or null for none" if type(None) in members(option.type) else ""
    return [f"{where}={value} must {rule}{none}."] if rule else []


def _missing(values: dict, raw: dict, declared: dict[str, Declared]) -> list[str]:
    required = [name for name, option in declared.items() if option.required]
    return [
        f"--{name} is missing: {declared[name].help}"
        for name in required
        if values.get(name) in (None, "") and (name in values or name not in raw)
    ]


def _build(stage: str, classes: dict[str, type], values: dict[str, Any]) -> dict[str, Any]:
    records, problems = {}, []
    for name, cls in classes.items():
        own = {f.name for f in dataclasses.fields(cls) if f.init}
        try:
            records[name] = cls(**{key: value for key, value in values.items() if key in own})
        except (ValueError, TypeError, ImportError, OSError, AttributeError) as error:  # what a __post_init__ refuses
            problems.append(str(error))
    if problems:
        raise UserError(listed(stage, problems))
    return records


def listed(stage: str, problems: list[str]) -> str:
    """One message of all problems."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems with the options of {stage}:\n" + "\n".join(f"  - {p}" for p in problems)


@dataclass(frozen=True)
class Declared:
    """One option as its dataclass declares it; `bare`: what `--name` alone stands for (None: it needs a value)."""

    name: str
    type: Any
    help: str
    required: bool
    bare: Any
    choices: tuple = ()
    owners: tuple[str, ...] = ()  # the classes that declare it


def declared_fields(classes) -> dict[str, Declared]:
    """Every option of these dataclasses by name; a name that several declare is given to all of them."""
    declared = {}
    for cls in classes:
        hints = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            if not item.init or item.name.startswith("_") or item.name in declared:
                continue
            hint = hints.get(item.name, item.type)
            bare = True if bool in members(hint) else item.metadata.get("const")
            if item.name == "resume_from_checkpoint":  # bare: the last complete checkpoint
                bare = True
            required = bool(item.metadata.get("required")) or item.name == "output_dir"
            declared[item.name] = Declared(
                item.name,
                hint,
                item.metadata.get("help", ""),
                required,
                bare,
                tuple(item.metadata.get("choices", ())),
                tuple(kind.__name__ for kind in cls.__mro__),
            )
    return declared


# -- the two sources ------------------------------------------------------------------------------------------------


def read_cli(argv: Sequence[str], declared: dict[str, Declared], problems: list[str]) -> tuple[str | None, dict]:
    """`--key value`, `--key=value`, `--flag`, `--no_flag`; dashes are underscores; a later one wins."""
    config_path, values, index = None, {}, 0
    argv = list(argv)
    while index < len(argv):
        token = argv[index]
        index += 1
        if not token.startswith("--") or token == "--":
            problems.append(f"{token!r} stands alone: options are written --name value.")
            continue
        name, has_value, value = token[2:].partition("=")
        name = name.replace("-", "_")
        following = []
        while not has_value and index < len(argv) and not argv[index].startswith("--"):
            option = declared.get(name)
            if following and option is not None and not takes_list(option.type):
                break
            following.append(argv[index])
            index += 1
        if name == "config":
            config_path = value if has_value else (following[0] if following else None)
            if not config_path:
                problems.append("--config needs the path of a YAML file.")
            continue
        option = declared.get(name)
        if (
            option is None
            and name.startswith("no_")
            and _is_switch(declared.get(name[3:]))
            and not (value or following)
        ):
            values[name[3:]] = False
        elif has_value:
            values[name] = value
        elif following:
            values[name] = following if len(following) > 1 else following[0]
        elif option is None or option.bare is not None:
            values[name] = True if option is None else option.bare
        else:
            problems.append(f"--{name} needs a value: {describe(option.type)}.")
    return config_path, values


def config_file(name: str) -> str:
    """The file that `name` is, or else the recipe of the package: `world/sft` and `recipes/world/sft.yaml` are one.

    So a recipe is found wherever the command runs, from an installed wheel too.
    """
    recipe = name.removeprefix("recipes/").removesuffix(".yaml")
    return name if recipe not in _recipes() or Path(name).exists() else str(RECIPES / f"{recipe}.yaml")


def _recipes() -> list[str]:
    return [path.relative_to(RECIPES).with_suffix("").as_posix() for path in sorted(RECIPES.glob("*/*.yaml"))]


def read_yaml(path: str, problems: list[str]) -> dict[str, Any]:
    """The keys of a YAML file, dashes as underscores; faults go to `problems`."""
    path = config_file(path)
    if not os.path.exists(path):  # not Path's, which raises for a name that is too long
        problems.append(f"--config {path}: no such file, and no recipe of that name.{did_you_mean(path, _recipes())}")
        return {}
    try:
        content = inputs.read_yaml(Path(path), TextLoader)
    except UserError as error:
        problems.append(f"--config {error}")
        return {}
    if content is None:
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path}: needs lines of `key: value`, found a {type(content).__name__}.")
        return {}
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _is_switch(option: Declared | None) -> bool:
    return option is not None and bool in members(option.type)
