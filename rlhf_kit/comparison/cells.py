"""The cells of a table: runs and measurements, each in a process of its own and never made twice.

OUTPUT/start/seed-0/sft/model/         where the start model and the reward model are made here
OUTPUT/ppo/kl_coef-0.2/seed-0/model/   the run of a stage
    cell.json                          all that decides it, and what it took: written when it has ended
    answers.json                       the policy's answers, what they took, and all that decides them
    log.txt                            what the processes said
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_kit.comparison.apart import Outcome, Warm
from rlhf_kit.comparison.methods import STAGES
from rlhf_kit.comparison.records import COMMAND
from rlhf_kit.hashes import file_hash
from rlhf_kit.inputs import read_json
from rlhf_kit.models.identity import model_hash
from rlhf_kit.stages.output import RECORD
from rlhf_kit.stages.run import config_record
from rlhf_kit.storage import Folder
from rlhf_kit.terminal import complain
from rlhf_kit.versions import TRAINING, versions

CELL, ANSWERS, LOG, MODEL = "cell.json", "answers.json", "log.txt", "model"
WORK = "rlhf_kit.comparison.work"


class FailedCell(Exception):
    """A cell that came to no end; its name and its fault have been told."""


@dataclass
class Maker:
    """Makes what is not there yet. `count`: of all cells; `failed`: by name what was wrong."""

    count: int
    failed: dict[str, str] = field(default_factory=dict)
    closing: ExitStack = field(default_factory=ExitStack)  # ends the processes
    _passed: int = 0  # cells that are made or were there
    _made: int = 0
    _began: float = field(default_factory=time.monotonic)

    @cached_property
    def warm(self) -> Warm:
        return self.closing.enter_context(Warm(WORK))

    def train(
        self, name: str, folder: Path, stage: str, options: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> dict:
        """The record of a stage's run, whose model is then in the folder. `inputs`: the content of what it reads.

        Raises FailedCell.
        """
        model = folder / MODEL
        effective = config_record(STAGES[stage].settings({**options, "output_dir": str(model)}))  # of its YAML, too
        del effective["output_dir"]
        settings = _settings(stage=stage, options=by_content(effective), inputs=inputs)
        record = _known(folder / CELL, settings)
        if record is not None and (model / RECORD).is_file() and model_hash(str(model)) == record["model"]:
            self._passed += 1
            return record
        options = {**options, "output_dir": str(model), "overwrite_output_dir": True}
        outcome = self._apart(name, folder, "train", {"stage": stage, "options": options})
        return _kept(folder / CELL, {"settings": settings, "model": model_hash(str(model)), **_took(outcome)})

    def measure(self, name: str, folder: Path, arguments: Mapping[str, Any], inputs: Mapping[str, str]) -> dict:
        """A policy's answers and what they took. Raises FailedCell."""
        how = {name: value for name, value in arguments.items() if name not in inputs}
        settings = _settings(arguments=how, inputs=inputs)
        record = _known(folder / ANSWERS, settings)
        if record is not None:
            self._passed += 1
            return record
        outcome = self._apart(f"{name}, measured", folder, "measure", arguments)
        return _kept(folder / ANSWERS, {"settings": settings, **_took(outcome)})

    def _apart(self, name: str, folder: Path, function: str, arguments: Mapping[str, Any]) -> Outcome:
        files = Folder(folder, COMMAND)
        files.claim(LOG)
        left = ""
        if self._made:
            each = (time.monotonic() - self._began) / self._made
            left = f", about {(self.count - self._passed) * each / 60:.0f} min left 剩餘"
        complain(f"[{self._passed + 1}/{self.count}] {name}{left}")
        outcome = self.warm.run(function, dict(arguments), folder / LOG)
        files.settle(LOG)
        self._passed, self._made = self._passed + 1, self._made + 1
        if outcome.fault is not None:
            self.failed[name] = outcome.fault
            complain(f"{name} failed 失敗: {outcome.fault} ({folder / LOG})")
            raise FailedCell(name)
        return outcome


def _settings(**decides: Any) -> dict[str, Any]:
    """All that decides a cell, wherever it lies: JSON values."""
    return json.loads(json.dumps({**decides, "versions": versions(TRAINING)}, default=str))


def by_content(value: Any) -> Any:
    """Options with the hash of what lies at a place for its name: a file, or a model's folder."""
    if isinstance(value, Mapping):
        return {name: by_content(one) for name, one in value.items()}
    if isinstance(value, list):
        return [by_content(one) for one in value]
    if isinstance(value, str) and Path(value).is_file():
        return file_hash(Path(value))
    return model_hash(value) if isinstance(value, str) and (Path(value) / "config.json").is_file() else value


def _known(path: Path, settings: Mapping[str, Any]) -> dict | None:
    """The record at `path` where it was made by these settings."""
    record = read_json(path) if path.is_file() else None
    return record if isinstance(record, dict) and record.get("settings") == settings else None


def _took(outcome: Outcome) -> dict[str, Any]:
    return {"seconds": round(outcome.seconds, 3), "memory": outcome.memory, **outcome.value}


def _kept(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    Folder(path.parent, COMMAND).write(path.name, json.dumps(record, ensure_ascii=False) + "\n")
    return record
