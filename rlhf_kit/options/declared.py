"""The options of a command, as dataclasses declare them: read from their source, or from the imported classes.

From the source nothing is imported, so that help and a refusal come before torch does. The kit's records say `option`
(`rlhf_kit/options/__init__.py`), other libraries' `field`, whose `metadata` then has the names of its arguments.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import enum
import importlib.util
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rlhf_kit.options.coercion import members, takes_list

# Where libraries that import lazily declare the classes that are named by the package.
DECLARED_IN = {
    ("transformers", "TrainingArguments"): "transformers.training_args",
    **{
        ("trl", f"{name}Config"): f"trl.trainer.{name.lower()}_config"
        for name in ("SFT", "DPO", "KTO", "RLOO", "GRPO")
    },
}
# Short forms of every command's options, whichever of the names it has.
SHORT = {
    "model": ("model_name_or_path", "models"),
    "models": ("model_name_or_path",),
    "data": ("dataset_name",),
    "output": ("output_dir", "output_file"),
}
# Accepted, but neither shown nor completed: deprecated aliases, and options that only a user's own scripts read.
HIDDEN = (
    "gradient_checkpointing gradient_checkpointing_kwargs do_train do_eval do_predict local_rank truncation_mode "
    "pad_token use_transformers_paged vllm_importance_sampling_cap"
).split()
BUILTINS = "bool dict float frozenset int len list map max min range set sorted str sum tuple".split()


class _Unknown:
    """The type of an annotation that only the imported class can tell."""


@dataclass(frozen=True)
class Option:
    """One option; `bare`: what `--name` alone stands for (None: it needs a value)."""

    name: str
    type: Any
    help: str = ""
    required: bool = False
    bare: Any = None
    choices: tuple = ()
    owners: tuple[str, ...] = ()  # the class that declares it and those that class inherits from
    default: str = ""  # as help shows it
    positional: str = ""
    short: str = ""
    group: str = ""
    whole: bool = False
    repeats: bool = False
    module: str = ""  # that declares it

    @property
    def is_typed(self) -> bool:
        return self.type is not _Unknown

    @property
    def most(self) -> float:
        """How many words of a command line it takes at once."""
        if not self.is_typed:
            return math.inf
        lengths = [len(typing.get_args(kind)) for kind in members(self.type) if typing.get_origin(kind) is tuple]
        return lengths[0] if lengths else math.inf if takes_list(self.type) and not self.repeats else 1

    @property
    def values(self) -> tuple[str, ...]:
        """The values it may have, where they are few and known."""
        if self.choices or not self.is_typed:
            return tuple(map(str, self.choices))
        kinds = members(self.type)
        literals = [value for kind in kinds if typing.get_origin(kind) is Literal for value in typing.get_args(kind)]
        enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum)]
        return tuple(str(value) for value in [*literals, *(member.value for kind in enums for member in kind)])

    @property
    def is_switch(self) -> bool:
        return self.is_typed and bool in members(self.type)


def _option(name: str, hint: Any, metadata: Mapping[str, Any], **others: Any) -> Option:
    bare = True if bool in members(hint) else metadata.get("const")
    if name == "resume_from_checkpoint":  # bare: the last complete checkpoint
        bare = True
    required = bool(metadata.get("required")) or name == "output_dir" and "TrainingArguments" in others["owners"]
    return Option(
        name,
        hint,
        " ".join(metadata.get("help", "").replace("%%", "%").split()),
        required,
        bare,
        tuple(metadata.get("choices", ())),
        positional=metadata.get("positional", ""),
        short=metadata.get("short", ""),
        group=metadata.get("group", ""),
        whole=bool(metadata.get("whole") or metadata.get("repeats")),
        repeats=bool(metadata.get("repeats")),
        **others,
    )


def aliases(options: Mapping[str, Option]) -> dict[str, str]:
    """The short forms that these options have, and what each stands for."""
    short = {option.short: name for name, option in options.items() if option.short}
    for word, names in SHORT.items():
        name = next((name for name in names if name in options), None)
        if name is not None and word not in options:
            short.setdefault(word, name)
    return short


# --- imported classes -----------------------------------------------------------------------------------------------


def declared_fields(classes: Iterable[type]) -> dict[str, Option]:
    """Every option of these dataclasses by name; a name that several declare is given to all of them."""
    options: dict[str, Option] = {}
    for cls in classes:
        hints = typing.get_type_hints(cls)
        owners = tuple(kind.__name__ for kind in cls.__mro__)
        for item in dataclasses.fields(cls):
            if item.init and not item.name.startswith("_") and item.name not in options:
                hint = hints.get(item.name, item.type)
                options[item.name] = _option(item.name, hint, item.metadata, owners=owners, module=cls.__module__)
    return options


# --- source ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """The options of classes as their source has them; `whole`: every class and every base of it was there."""

    options: dict[str, Option]
    whole: bool


def declared_in_source(names: Sequence[str]) -> Source:
    """The options of dataclasses by `module:Class`; a name that several declare stands where it is declared first."""
    options: dict[str, Option] = {}
    whole = True
    for name in names:
        module, _, class_name = name.partition(":")
        declared = _class_options(module, class_name)
        whole &= declared is not None
        for option in declared or ():
            options.setdefault(option.name, option)
    return Source(options, whole)


def constant(name: str) -> Any:
    """What `module:NAME` stands for by its source. Raises KeyError where that needs an import."""
    module, _, variable = name.partition(":")
    return _Names(module)[variable]


@cache
def _class_options(module: str, class_name: str) -> tuple[Option, ...] | None:
    """The fields of a class and of its bases, in a dataclass's order; None where one of them is not in the source."""
    lineage = _lineage(module, class_name)
    if lineage is None:
        return None
    owners = (*(node.name for _, node in lineage), "object")
    options: dict[str, Option] = {}
    for place, node in reversed(lineage):
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                name = item.target.id
                if not name.startswith("_") and not ast.unparse(item.annotation).startswith("ClassVar"):
                    option = _source_option(item, _Names(place), owners=owners, module=place)
                    if option is not None:
                        options[name] = option
    return tuple(options.values())


def _lineage(module: str, class_name: str) -> list[tuple[str, ast.ClassDef]] | None:
    """(module, class) of a class and each base, the nearest first."""
    definition = _definition(module, class_name)
    if definition is None or not isinstance(definition[1], ast.ClassDef):
        return None
    lineage = [definition]
    for base in definition[1].bases:
        inherited = _lineage(definition[0], ast.unparse(base))
        if inherited is None:
            return None
        lineage += inherited
    return lineage


def _source_option(node: ast.AnnAssign, names: _Names, **others: Any) -> Option | None:
    keywords: dict[Any, ast.expr] = {"default": node.value} if node.value is not None else {}
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith(("field", "option")):
        keywords = dict(zip(("default", "help"), node.value.args, strict=False))
        keywords |= {keyword.arg: keyword.value for keyword in node.value.keywords}
    if "init" in keywords and names.value(keywords["init"]) is False:
        return None
    factory, table = keywords.get("default_factory"), keywords.get("metadata")
    default = factory.body if isinstance(factory, ast.Lambda) else keywords.get("default")
    if isinstance(table, ast.Dict):
        keywords = {names.value(key): value for key, value in zip(table.keys, table.values, strict=True) if key}
    metadata = {key: value for key, node in keywords.items() if (value := names.value(node)) is not _Unknown}
    return _option(node.target.id, names.value(node.annotation), metadata, default=_shown(default, names), **others)


def _shown(default: ast.expr | None, names: _Names) -> str:
    value = None if default is None else names.value(default)
    if value is _Unknown:
        return ast.unparse(default)
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "" if value is None or value is False else str(getattr(value, "value", value))


class _Names(dict):
    """What a module's names stand for as far as its source tells: constants, enumerations, and what it imports."""

    def __init__(self, module: str):
        super().__init__(
            {name: getattr(builtins, name) for name in BUILTINS}
            | {"Any": Any, "Literal": typing.Literal, "Optional": typing.Optional, "Union": typing.Union, "Path": Path}
        )
        self.module = module

    def value(self, node: ast.expr) -> Any:
        """What an expression is, _Unknown where it needs an import."""
        try:
            return eval(compile(ast.Expression(node), self.module, "eval"), {"__builtins__": {}}, self)
        except Exception:  # whatever an expression of somebody else's raises without its imports
            return _Unknown

    def __missing__(self, name: str) -> Any:
        definition = _definition(self.module, name)
        if definition is None:
            raise KeyError(name)
        module, node = definition
        if isinstance(node, ast.ClassDef):
            value = _enumeration(node)
        else:
            value = _Names(module).value(node)
            if value is _Unknown and isinstance(node, ast.Dict):  # a table's names are known, if not what they name
                keys = [_Names(module).value(key) for key in node.keys if key is not None]
                value = _Unknown if _Unknown in keys else dict.fromkeys(keys)
        if value is _Unknown:
            raise KeyError(name)
        return value


def _enumeration(node: ast.ClassDef) -> Any:
    """The members that an enumeration's source gives it; _Unknown for any other class."""
    if not node.bases or not ast.unparse(node.bases[-1]).endswith("Enum"):
        return _Unknown
    assigned = [item for item in node.body if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)]
    return enum.Enum(node.name, {item.targets[0].id: item.value.value for item in assigned})


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.expr] | None:
    """(module, node) that a name of a module comes from, through its imports."""
    statements = _statements(DECLARED_IN.get((module, name), module))
    node = statements.get(name)
    if node is None:
        return None
    place = DECLARED_IN.get((module, name), module)
    if isinstance(node, ast.ImportFrom):
        original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        return _definition(_absolute(place, node), original)
    return place, node


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    is_package = _file(module) is not None and _file(module).name == "__init__.py"
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *filter(None, [node.module])])


@cache
def _statements(module: str) -> dict[str, ast.ClassDef | ast.ImportFrom | ast.expr]:
    """What binds each name at the top of a module."""
    path = _file(module)
    names: dict[str, Any] = {}
    if path is None:
        return names
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = node.value
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple | ast.List):
            if isinstance(node.value, ast.Tuple | ast.List):
                for target, value in zip(node.targets[0].elts, node.value.elts, strict=False):
                    names[ast.unparse(target)] = value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            names[node.target.id] = node.value
    return names


@cache
def _file(module: str) -> Path | None:
    """The file of a module, found without importing what it lies in."""
    package, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    if not parts:
        return Path(spec.origin)
    base = Path(spec.origin).parent.joinpath(*parts)
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)
