"""Where metrics are reported to: services whose packages are missing are refused before anything is loaded; tables."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
from transformers import Trainer, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.escaping import markdown_row

# What pip calls the packages of services whose name is another.
PACKAGES = {"azure_ml": "azureml-sdk", "comet_ml": "comet-ml", "flyte": "flytekit flytekitplugins-deck-standard"}


def refuse_reports(args: TrainingArguments) -> None:
    """Raises UserError for all services of `report_to` that are none, or cannot be used on this machine."""
    faults = list(_faults(args.report_to))
    if faults:
        missing = " ".join(dict.fromkeys(package for _, package in faults if package))
        advice = f" To install what is missing: pip install {missing}" if missing else ""
        raise UserError(f"report_to: {'; '.join(fault for fault, _ in faults)}.{advice}")


def name_run(args: TrainingArguments) -> None:
    """A name of its own for a run without one: trackio takes what is logged after training for another run's."""
    if args.run_name is None and "trackio" in args.report_to:
        args.run_name = f"{Path(args.output_dir).name}-{time.strftime('%Y%m%d-%H%M%S')}"


def report_table(trainer: Trainer, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table beside the numbers, where a service shows tables; as Markdown on TensorBoard. On one process alone."""
    for service in ("wandb", "trackio"):
        if service in trainer.args.report_to:
            package = importlib.import_module(service)
            if service == "trackio" or package.run is not None:  # switched off by WANDB_MODE
                package.log({name: package.Table(dataframe=pandas.DataFrame(rows))})
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            names = list(rows[0])
            lines = [markdown_row(names), "|---" * len(names) + "|", *(markdown_row(row.values()) for row in rows)]
            callback.tb_writer.add_text(name, "\n".join(lines), trainer.state.global_step)


def _faults(names: list[str]) -> Iterator[tuple[str, str]]:
    """(what is wrong, the package to install or "") of each name."""
    for name in names:
        if name in ("all", "none"):
            yield f"{name!r} cannot be combined with others; given are {', '.join(map(str, names))}", ""
        elif name not in INTEGRATION_TO_CALLBACK:
            near = did_you_mean(str(name).lower(), INTEGRATION_TO_CALLBACK)
            known = ", ".join(("none", "all", *INTEGRATION_TO_CALLBACK))
            yield f"{name!r} is not one of {known} (several: separated by spaces).{near}".rstrip("."), ""
        else:
            try:
                INTEGRATION_TO_CALLBACK[name]()  # as Trainer makes it, once everything is loaded
            except Exception as error:  # what a service's package raises is its own
                line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
                is_missing = isinstance(error, ImportError) or "requires" in line and "install" in line
                yield f"{name} cannot be used: {line}", PACKAGES.get(name, name) if is_missing else ""
