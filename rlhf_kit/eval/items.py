"""A measurement item by item: kept as it is made, resumed after an interruption, and summarised with intervals.

A folder of results holds `settings.json` (all that decides the outputs, written first), `items.jsonl` (a line an item,
in the data's order) and `results.json` (written last). While it goes on, each process appends to a file of its own,
`items-RANK.jsonl`. A later run with equal settings takes over every item found there, by any number of processes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from rlhf_kit.errors import UserError
from rlhf_kit.eval import results
from rlhf_kit.inputs import MOST_JSON, parse_json, read_bytes, read_json
from rlhf_kit.intervals import Figure, intervals, mean, numbered, point
from rlhf_kit.progress import Progress
from rlhf_kit.storage import Folder, as_json, changes, json_lines, keep_lines
from rlhf_kit.versions import provenance

if TYPE_CHECKING:
    from accelerate import PartialState

SETTINGS, ITEMS, RESULTS = "settings.json", "items.jsonl", "results.json"
PER_PROCESS = "items-*.jsonl"
# What is told of a run and does not decide its outputs: the same model may stand under another name.
NAMES = ("model", "data")


@dataclass(frozen=True)
class Settings:
    """All that decides the outputs of a measurement, but for the batch size and the processes, which must not.

    Args:
        task: such as "coqa".
        protocol: how the task is put, such as "gpt2"; `version` goes up when the same protocol gives other outputs.
        model: as the user gave it; `model_hash` tells what it was (`hashes.model_hash`).
        data: as the user gave it; `data_hash` tells what it was (`results.fingerprint` of the rows).
        limit: the first items only; None = all. A limited result is not reportable.
        options: whatever else the outputs depend on: shots, history, precision. JSON values.
    """

    task: str
    protocol: str
    version: int
    model: str
    model_hash: str
    data: str
    data_hash: str
    seed: int
    limit: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def deciding(self) -> dict[str, Any]:
        record = json.loads(json.dumps(asdict(self)))
        options = record.pop("options")
        named = {f"option {name}": value for name, value in options.items()}
        return {name: value for name, value in record.items() if name not in NAMES} | named


@dataclass(frozen=True)
class Item:
    """The model's answer to one item, and its scores.

    Args:
        id: unique within the run.
        cluster: the story or document it belongs to: items of one are not independent.
        prompt_hash: `hashes.text_hash` of the prompt as the model got it.
        output: as the model wrote it; `answer`: what was taken from it and scored.
        scores: by name, 1 = all of it where it is a share; NaN = not defined for this item.
        group: part of the data that gets figures of its own, such as a domain; "" = none.
        details: anything else worth a look. JSON values.
    """

    id: str
    cluster: str
    prompt_hash: str
    output: str
    answer: str
    scores: Mapping[str, float]
    group: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Figures of items, with 95 % intervals over clusters (None where fewer than two), and how many there were."""

    scores: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    n: dict[str, int]


@dataclass(frozen=True)
class Results:
    """`results.json`. `seconds` is of the last run alone, in which `resumed` items were found and not made."""

    settings: Settings
    measured: Measured
    groups: dict[str, Measured]
    prompt_hash: str  # of all prompts in order
    reportable: bool
    details: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    resumed: int
    seconds: float

    @property
    def scores(self) -> dict[str, float]:
        return self.measured.scores

    def as_json(self) -> dict[str, Any]:
        record = asdict(self)
        return as_json({**record.pop("measured"), **record})


Figures = Callable[[Sequence[Item], NDArray], Mapping[str, Figure]]


def percentages(items: Sequence[Item], clusters: NDArray) -> dict[str, Figure]:
    """100 x the mean of each score, over the items that have it. clusters: (N,) of each item, numbers from 0."""
    names = dict.fromkeys(name for item in items for name in item.scores)
    return {name: mean([100 * item.scores.get(name, math.nan) for item in items], clusters) for name in names}


def measure(items: Sequence[Item], figures: Figures = percentages, seed: int = 0) -> Measured:
    """Raises ValueError without items."""
    if not items:
        raise ValueError("no items to measure")
    clusters = numbered(item.cluster for item in items)
    by_name = figures(items, clusters)
    counts = {"items": len(items), "clusters": int(clusters.max()) + 1}
    return Measured(
        {name: point(figure, clusters) for name, figure in by_name.items()}, intervals(by_name, clusters, seed), counts
    )


class Run:
    """A measurement under way. Use it as a context:

        with Run(folder, settings, ids) as run:
            for id in run.todo:
                run.add(Item(id, ...))
        found = run.finish()

    Args:
        folder: where it is kept; None keeps it in memory, on one process only.
        ids: of all items in the data's order, the same on every process.
        state: `accelerate.PartialState()` where there may be several processes, which share the file system. Of n
            processes number r makes items r, r + n, r + 2n ...
        shares: of each id, what must be made by one process and in one go, such as its story. None = the item alone.
        unit: what the progress counts, such as "questions".
        files: what will be written into the folder besides, which may not be there but from such a measurement.

    Raises UserError: equal ids; a folder that holds items measured with other settings.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: Settings,
        ids: Sequence[str],
        state: PartialState | None = None,
        unit: str = "items",
        shares: Sequence[str] | None = None,
        files: Sequence[str] = (),
    ):
        self.folder, self.settings, self.ids, self.state = folder, settings, list(ids), state
        self.rank, self.processes = (state.process_index, state.num_processes) if state else (0, 1)
        last = {name: at for at, name in enumerate(self.ids)}
        twice = next((name for at, name in enumerate(self.ids) if last[name] != at), None)
        if twice is not None:
            raise UserError(f"Two items of {settings.data} have the id {twice!r}; ids must be unique.")
        if folder is None and self.processes > 1:
            raise UserError("Several processes share their items through files: give a folder with --output_dir.")
        self.items: dict[str, Item] = {}
        self.file = None
        if folder is not None:
            results.of(folder, settings.task).check("--output_dir")
            _check_settings(folder, settings)
            results.of(folder, settings.task).check("--output_dir", [SETTINGS, ITEMS, RESULTS, *files])
            self.items = _read_items([folder / ITEMS, *sorted(folder.glob(PER_PROCESS))])
        shares = self.ids if shares is None else shares
        unmade = {share for name, share in zip(self.ids, shares, strict=True) if name not in self.items}
        own_shares = unmade & set(list(dict.fromkeys(shares))[self.rank :: self.processes])
        self.todo = [name for name, share in zip(self.ids, shares, strict=True) if share in own_shares]
        self.resumed = sum(name in self.items for name in self.ids)
        self.progress = Progress(len(self.todo), unit, shown=self.rank == 0)

    def __enter__(self) -> Run:
        if self.state is not None:
            self.state.wait_for_everyone()  # nobody writes before all have read what was there
        self.started = time.perf_counter()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.rank == 0:
                self._write(SETTINGS, asdict(self.settings))
                self.home.remove(RESULTS)  # from here on the folder holds an unfinished run
            path = self.folder / PER_PROCESS.replace("*", str(self.rank))
            self.home.settle(path.name)  # what is there was read as items of ours
            self.home.claim(path.name)
            keep_lines(path)
            self.file = path.open("a", encoding="utf-8")
        self.progress.start()
        return self

    def __exit__(self, *error) -> None:
        self.progress.stop()
        self.seconds = time.perf_counter() - self.started
        if self.file is not None:
            self.file.close()

    def add(self, item: Item) -> None:
        """Keep an item, in any order: it is in its file when this returns. Raises ValueError for an infinite score."""
        infinite = [name for name, value in item.scores.items() if math.isinf(value)]
        if infinite:
            raise ValueError(f"item {item.id!r}: {infinite[0]} is infinite")  # JSON has no word for it
        if self.file is not None:
            self.file.write(json_lines([asdict(item)]))
            self.file.flush()
        self.items[item.id] = item
        self.progress.add(1)

    @property
    def ordered(self) -> list[Item]:
        """All items in the data's order; on the main process, after `finish`."""
        return [self.items[name] for name in self.ids]

    def finish(
        self,
        figures: Figures = percentages,
        details: Callable[[Sequence[Item]], Mapping[str, Any]] = lambda items: {},
        counted: Callable[[Sequence[Item]], Sequence[Item]] = lambda items: items,
    ) -> Results | None:
        """Wait for all processes, then sum up and write. None on all processes but the main one.

        Args:
            figures: what is measured of all counted items and of each group.
            details: anything of the whole run that is worth a look, from all its items. JSON values.
            counted: those of the items that have something to measure.
        """
        if self.state is not None:
            self.state.wait_for_everyone()
        if self.rank != 0:
            return None
        if self.folder is not None:
            self.items = _read_items([self.folder / ITEMS, *sorted(self.folder.glob(PER_PROCESS))])
        missing = [name for name in self.ids if name not in self.items]
        if missing:
            raise ValueError(f"{len(missing)} of {len(self.ids)} items are missing, for example {missing[0]!r}")
        ordered = self.ordered
        with_figures = counted(ordered)
        parts: dict[str, list[Item]] = {}
        for item in with_figures:
            parts.setdefault(item.group, []).append(item)
        seed = self.settings.seed
        summary = Results(
            settings=self.settings,
            measured=measure(with_figures, figures, seed),
            groups={name: measure(parts[name], figures, seed) for name in sorted(parts) if name},
            prompt_hash=results.fingerprint([item.prompt_hash for item in ordered]),
            reportable=self.settings.limit is None,
            details=dict(details(ordered)),
            **provenance(),
            resumed=self.resumed,
            seconds=round(self.seconds, 3),
        )
        if self.folder is not None:
            results.write(self.folder / ITEMS, json_lines(map(asdict, ordered)), self.settings.task)
            parts = [path.name for path in self.folder.glob(PER_PROCESS)]
            self.home.settle(*parts)
            self.home.remove(*parts)
            self._write(RESULTS, summary.as_json())
        return summary

    @property
    def home(self) -> Folder:
        return results.of(self.folder, self.settings.task)

    def _write(self, name: str, value: Any) -> None:
        text = json.dumps(as_json(value), indent=2, ensure_ascii=False) + "\n"
        results.write(self.folder / name, text, self.settings.task)


# ------------------------------------------------------------------------------------------
# Files


def read_results(folder: Path) -> tuple[dict[str, Any], list[Item]]:
    """`results.json` of a finished run and its items in order. Raises UserError where there is none."""
    path = folder / RESULTS
    if not path.is_file():
        more = " It is not finished: run the same command again to resume." if (folder / SETTINGS).is_file() else ""
        raise UserError(f"{str(folder)!r} has no {RESULTS}.{more} Give the --output_dir of an evaluation.")
    record = read_json(path)
    if isinstance(record, dict) and "settings" not in record:
        raise UserError(
            f"{str(path)!r} has no scores item by item (an earlier version's `eval reward` wrote none); measure "
            "again into another folder, or give the folder of another evaluation."
        )
    items = list(_read_items([folder / ITEMS]).values())
    if not isinstance(record, dict) or not items:
        raise UserError(f"{str(folder)!r} holds no results with their items; give the folder of another run.")
    return record, items


def _read_items(paths: Sequence[Path]) -> dict[str, Item]:
    """By id. A line that a kill cut off is left out; it can only be the last."""
    by_id: dict[str, Item] = {}
    for path in paths:
        text = read_bytes(path, MOST_JSON).decode("utf-8", errors="replace") if path.exists() else ""
        for number, line in enumerate(text.split("\n")[:-1], 1):  # after the last newline: never finished
            try:
                item = Item(**parse_json(line))
                scores = {name: math.nan if value is None else float(value) for name, value in item.scores.items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise UserError(
                    f"line {number} of {str(path)!r} is not an item: {line[:60]!r}. Remove the line."
                ) from error
            by_id[item.id] = replace(item, scores=scores)
    return by_id


def _check_settings(folder: Path, settings: Settings) -> None:
    """Raises UserError where the folder's items were made by other settings."""
    path = folder / SETTINGS
    if not path.is_file():
        if (folder / ITEMS).exists() or (folder / RESULTS).exists():
            raise UserError(
                f"{str(folder)!r} holds the results of another task or protocol; give another folder with "
                "--output_dir."
            )
        return
    try:
        was = Settings(**read_json(path)).deciding
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{str(path)!r} does not hold the settings of a run: {error}. Give another folder with --output_dir."
        ) from error
    now = settings.deciding
    other = changes(was, now)
    if other:
        raise UserError(
            f"{str(folder)!r} holds items measured with other settings ({other}); give another folder with "
            "--output_dir."
        )
