"""What a folder of runs holds: models that generate, models that score, runs. Nothing is loaded, no link followed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_kit.errors import UserError
from rlhf_kit.inputs import read_json
from rlhf_kit.options.named import named_model
from rlhf_kit.report.doctor import METRICS, RECORD
from rlhf_kit.storage import Folder

STORE = "labels.db"
DEEPEST = 2  # levels of folders below the given one: `runs` holds demo/sft
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
GENERATES, SCORES = "generates", "scores"
KINDS = {  # by `architectures` of a config.json, or the task_type of an adapter
    GENERATES: re.compile(r"\w+(ForCausalLM|LMHeadModel)|CAUSAL_LM"),
    SCORES: re.compile(r"\w+ForSequenceClassification|SEQ_CLS"),
}


@dataclass(frozen=True)
class Contents:
    """By name, which is a place below the folder: what generates, what scores, and runs, that go on or have ended."""

    models: dict[str, Path] = field(default_factory=dict)
    scorers: dict[str, Path] = field(default_factory=dict)
    runs: dict[str, Path] = field(default_factory=dict)
    folder: Path | None = None  # that was looked into


NOTHING = Contents()


def contents_of(folder: Path) -> Contents:
    """What stands in a folder and those below it; in a run's or model's own folder, its checkpoints too."""
    top = folder.resolve()
    contents = Contents(folder=top)
    _look(top, top, top.name, DEEPEST, contents)
    return contents


def store_in(folder: Path) -> Path:
    """Where the labels of a folder are kept; nothing is made.

    No command is recorded to have written them, so that none removes them as its own: they are people's work. Raises
    UserError where the file would lie elsewhere, or none can be written.
    """
    path = folder / STORE
    if path.is_symlink():
        raise UserError(f"{str(path)!r} is a link; labels are kept in a file of the folder. Move the link away.")
    if not path.exists():
        Folder(folder, "ui").check("The folder of runs")
    return path


def with_models(contents: Contents, named: Sequence[str]) -> dict[str, Path]:
    """The models of a folder and those of `--models`. Raises UserError for two of one name, or what does not generate.

    A hub id is looked for when it is loaded.
    """
    models = dict(contents.models)
    for text in named:
        name, place = named_model(text)
        path = Path(place).expanduser()
        if name in models:
            raise UserError(
                f"--models {text}: {name!r} is shown already, {str(models[name])!r}. Give it another name, as in "
                f"{name}-2={place}."
            )
        if path.exists() and _kind(path, linked=True) != GENERATES:
            raise UserError(
                f"--models {text}: {str(path)!r} holds no causal language model with its weights. Give another."
            )
        if not path.exists() and (path.is_absolute() or len(path.parts) > 2):  # no hub id has more
            raise UserError(f"--models {text}: there is no {str(path)!r}. Give a folder, or an id of the hub.")
        models[name] = path
    return models


def refuse_empty(folder: Path, contents: Contents) -> None:
    """Raises UserError for a folder that no page would show anything of."""
    if contents.models or contents.runs or (folder / STORE).is_file():
        return
    scorers = f" It holds models that score, which do not generate: {', '.join(contents.scorers)}."
    raise UserError(
        f"{str(folder)!r} holds nothing to show.{scorers if contents.scorers else ''} In it and {DEEPEST} levels of "
        f"its folders were looked for: models (config.json of a causal LM and its weights, or an adapter_config.json "
        f"and its), runs ({METRICS} or {RECORD}), {STORE}; links are not followed. Give such a folder, or name a "
        "model: --models NAME=M. 這個資料夾裡沒有模型、訓練紀錄或標註。"
    )


def _look(folder: Path, top: Path, name: str, deeper: int, contents: Contents) -> None:
    """Add what stands in a folder, and in those as many levels below it."""
    kind, is_run = _kind(folder), any(_is_file(folder / file) for file in (METRICS, RECORD))
    if kind is not None:
        (contents.models if kind == GENERATES else contents.scorers)[name] = folder
    if is_run:
        contents.runs[name] = folder
    is_one = is_run or kind is not None
    if is_one:  # what stands in it are its checkpoints
        deeper = 1 if folder == top else 0
    for below in _folders(folder) if deeper else ():
        _look(below, top, f"{name}/{below.name}" if is_one or folder != top else below.name, deeper - 1, contents)


def _folders(folder: Path) -> list[Path]:
    """Those in a folder, in the order of their names: 80 stands before 100."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # not ours to read, or gone by now
        return []
    names = [name for name in names if not name.startswith(".") and name.encode(errors="ignore").decode() == name]
    return [folder / name for name in sorted(names, key=_in_order)]  # those that have an address


def _in_order(name: str) -> list[tuple[str, int]]:
    return [(word, int(part or 0)) for word, part in re.findall(r"(\D*)([0-9]*)", name)]


def _kind(folder: Path, linked: bool = False) -> str | None:
    """Whether a model GENERATES or SCORES; None where there is none, or one of another kind.

    `linked`: its files may be links, as in the hub's cache.
    """
    try:
        if _holds(folder, "adapter_config.json", ADAPTER_WEIGHTS, linked):
            kinds = [_read(folder / "adapter_config.json").get("task_type")]
        elif _holds(folder, "config.json", WEIGHTS, linked):
            kinds = _read(folder / "config.json").get("architectures")
        else:
            return None
    except UserError:
        return None
    kinds = [kind for kind in kinds if isinstance(kind, str)] if isinstance(kinds, list) else []
    return next((kind for kind, names in KINDS.items() if any(map(names.fullmatch, kinds))), None)


def _holds(folder: Path, config: str, weights: Sequence[str], linked: bool) -> bool:
    return _is_file(folder / config, linked) and any(_is_file(folder / name, linked) for name in weights)


def _read(path: Path) -> dict:
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _is_file(path: Path, linked: bool = False) -> bool:
    return path.is_file() and (linked or not path.is_symlink())
