"""A command's options: defaults < YAML (`--config`) < command line, strictly read, all problems reported together.

Values arrive as text (YAML scalars stay as they are written) and take the type their field declares: `2e-5` is a
number for a float, `no` a word for a strategy and False for a switch.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    takes_mapping,
)
from rlhf_kit.options.declared import Option, Source, aliases, declared_fields

MAPPING_FILES = ("accelerator_config", "fsdp_config", "deepspeed")  # what transformers reads from a JSON file too
RECIPES = Path(__file__).parents[1] / "stages" / "recipes"
# Names of other projects: the option that has what they say, and how it is written.
OTHER_NAMES = {
    "torch_dtype": ("dtype", "write --dtype"),
    "dataset_config": ("dataset_name", "write name:config in --dataset_name"),
    "dataset_config_name": ("dataset_name", "write name:config in --dataset_name"),
}

Raw = dict[str, tuple[Any, str]]  # by name: the value as it was written, and where


def read(command: str, argv: Sequence[str], source: Source, renamed: Mapping[str, str] | None = None) -> dict:
    """The values that a command line and its `--config` give, by name. Raises UserError with all problems.

    `renamed`: names that are gone, and what to write instead. Of options whose type the source does not tell, and of
    names that it may not have, nothing is said: the imported classes will.
    """
    problems: list[str] = []
    config, typed = read_cli(argv, source.options, problems)
    raw: Raw = {}
    if config is not None:
        raw |= _canonical(read_yaml(config, problems), f"{config}: ", source.options, problems)
    raw |= _canonical(typed, "--", source.options, problems)
    return _checked(command, raw, source, renamed or {}, problems)


def read_values(command: str, given: Mapping[str, Any], source: Source) -> dict:
    """The values of a mapping of options, as a YAML or Python has it. Raises UserError with all problems."""
    problems: list[str] = []
    raw: Raw = {}
    given = {str(name).replace("-", "_"): value for name, value in given.items()}
    if given.get("config") is not None and "config" not in source.options:
        config = str(given.pop("config"))
        raw |= _canonical(read_yaml(config, problems), f"{config}: ", source.options, problems)
    raw |= _canonical(given, "", source.options, problems)
    return _checked(command, raw, source, {}, problems)


def read_record(command: str, cls: type, options: Sequence[str] | Mapping[str, Any]) -> Any:
    """An options dataclass from a command line or a mapping. Raises UserError with all problems."""
    source = Source(declared_fields([cls]), True)
    reader = read_values if isinstance(options, Mapping) else read
    return build(command, {"record": cls}, reader(command, options, source))["record"]


def build(command: str, classes: Mapping[str, type], values: Mapping[str, Any]) -> dict[str, Any]:
    """A record of each class from the values by name. Raises UserError with what every `__post_init__` refuses."""
    records, problems = {}, []
    for name, cls in classes.items():
        own = {item.name for item in dataclasses.fields(cls) if item.init}
        try:
            records[name] = cls(**{key: value for key, value in values.items() if key in own})
        except (ValueError, TypeError, ImportError, OSError, AttributeError) as error:
            problems.append(str(error))
    if problems:
        raise UserError(listed(command, problems))
    return records


def listed(command: str, problems: list[str]) -> str:
    """One message of all problems."""
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} problems with the options of {command}:\n" + "\n".join(f"  - {p}" for p in problems)


# --- values ---------------------------------------------------------------------------------------------------------


def _checked(command: str, raw: Raw, source: Source, renamed: Mapping[str, str], problems: list[str]) -> dict:
    """The values by name. Raises UserError with `problems` and all that is wrong with the values."""
    values = _values(raw, source, renamed, problems)
    problems += _missing(values, raw, source.options)
    if problems:
        raise UserError(listed(command, problems))
    return values


def _canonical(given: Mapping[str, Any], prefix: str, options: Mapping[str, Option], problems: list[str]) -> Raw:
    """By their whole names; two spellings of one option in one place are refused."""
    short, raw = aliases(options), {}
    for name, value in given.items():
        whole = short.get(name, name) if name not in options else name
        if whole in raw:
            problems.append(f"{prefix}{name} and {raw[whole][1]} are the same option; give only one.")
        raw[whole] = (value, f"{prefix}{name}")
    return raw


def _values(raw: Raw, source: Source, renamed: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    values = {}
    for name, (value, where) in raw.items():
        option = source.options.get(name)
        if name in renamed:
            problems.append(f"{where}: this option was renamed; write {renamed[name]}.")
        elif option is None:
            if source.whole:
                problems.append(f"{where}: no such option.{_nearest(name, source.options)}")
        elif not option.is_typed:
            values[name] = value
        else:
            try:
                values[name] = _value(value, option)
                problems += _range_faults(values[name], option, where)
            except ValueError as error:
                problems.append(f"{where}: {error}")
    return values


def _nearest(name: str, options: Mapping[str, Option]) -> str:
    target, advice = OTHER_NAMES.get(name, ("", ""))
    if target in options:
        return f" Here {advice}."
    return did_you_mean(name, [*options, *aliases(options)])


def _value(value: Any, option: Option) -> Any:
    if option.bare is True and is_true(value):  # `--fsdp` is text or a switch
        return True
    if option.name == "report_to" and value == "none":  # transformers' own word, not the absence of one
        return value
    result = coerce(value, option.type)
    if isinstance(result, str) and takes_mapping(option.type):
        if option.name not in MAPPING_FILES:
            raise ValueError(f"got {result!r}, needs {describe(dict)}.")
        result = read_mapping(result)
    for item in result if isinstance(result, list) else [result]:
        if option.choices and item is not None and item not in option.choices:
            near = did_you_mean(str(item), map(str, option.choices))
            raise ValueError(f"got {item!r}, needs one of {', '.join(map(str, option.choices))}.{near}")
    return result


def _range_faults(value: Any, option: Option, where: str) -> Iterable[str]:
    bound = bound_of(option.name, *option.owners)
    none = ", or null for none" if type(None) in members(option.type) else ""
    for item in value if isinstance(value, list) else [value]:
        if bound is not None and item is not None and not isinstance(item, str):
            rule = broken_rule(item, bound)
            if rule:
                yield f"{where}={item} must {rule}{none}."


def _missing(values: Mapping, raw: Raw, options: Mapping[str, Option]) -> Iterable[str]:
    for name, option in options.items():
        if option.required and values.get(name) in (None, "", []) and (name in values or name not in raw):
            yield f"{option.positional or f'--{name}'} is missing: {option.help}"
    groups: dict[str, list[str]] = {}
    for name, option in options.items():
        if option.group:
            groups.setdefault(option.group, []).append(name)
    for names in groups.values():
        chosen = [f"--{name}" for name in names if values.get(name) or name in raw and name not in values]
        if not chosen:
            yield f"give one of {', '.join(f'--{name}' for name in names)}."
        if len(chosen) > 1:
            yield f"{' and '.join(chosen)} exclude each other; give only one."


# --- the two places -------------------------------------------------------------------------------------------------


def read_cli(argv: Sequence[str], options: Mapping[str, Option], problems: list[str]) -> tuple[str | None, dict]:
    """`--key value`, `--key=value`, `--flag`, `--no_flag`, and words by place (a list takes all that are
    left); dashes are underscores.

    A later one wins. Returns the `--config` and the values by name.
    """
    short, words = aliases(options), list(argv)
    places = [name for name, option in options.items() if option.positional]
    config, values = None, {}
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            if places and options[places[0]].whole:
                values[places[0]] = [*values.get(places[0], []), word]
            elif places:
                values[places.pop(0)] = word
            elif word != "--":
                problems.append(f"{word!r} is not an option: options are written --name value.")
            continue
        name, has_value, value = word[2:].partition("=")
        name = name.replace("-", "_")
        name = short.get(name, name) if name not in options else name
        option = options.get(name)
        following = [value] if has_value else _following(words, option, bool(places))
        if name == "config" and option is None:
            config = following[0] if following else None
            if not config:
                problems.append("--config needs the path of a YAML file.")
        elif option is None and not following and _is_switch(options.get(name[3:])) and name.startswith("no_"):
            values[name[3:]] = False
        elif following and option is not None and option.whole:
            values[name] = [*(values.get(name, []) if option.repeats else []), *following]
        elif following:
            values[name] = following if len(following) > 1 else following[0]
        elif option is None or option.bare is not None:
            values[name] = True if option is None else option.bare
        else:
            problems.append(f"--{name} needs a value: {describe(option.type)}.")
    return config, values


def _following(words: list[str], option: Option | None, has_places: bool) -> list[str]:
    """The words that belong to an option, taken from those that are left."""
    most = 1 if has_places else float("inf")
    if option is not None:
        most = option.most
        if option.is_switch and has_places and words and not _fits(words[0], option):
            most = 0
    following: list[str] = []
    while words and len(following) < most and not words[0].startswith("--"):
        following.append(words.pop(0))
    return following


def _fits(word: str, option: Option) -> bool:
    """Whether a word is of the option's type."""
    try:
        coerce(word, option.type)
    except ValueError:
        return False
    return True


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


def _is_switch(option: Option | None) -> bool:
    return option is not None and option.is_switch
