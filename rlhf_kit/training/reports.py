"""Where metrics are reported to: services whose packages are missing are refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK

from rlhf_kit.errors import UserError, did_you_mean

# What pip calls the packages of services whose name is another.
PACKAGES = {"azure_ml": "azureml-sdk", "comet_ml": "comet-ml", "flyte": "flytekit flytekitplugins-deck-standard"}


def refuse_reports(args: TrainingArguments) -> None:
    """Raises UserError for all services of `report_to` that are none, or cannot be used on this machine."""
    faults = list(_faults(args.report_to))
    if faults:
        missing = " ".join(dict.fromkeys(package for _, package in faults if package))
        advice = f" To install what is missing: pip install {missing}" if missing else ""
        raise UserError(f"report_to: {'; '.join(fault for fault, _ in faults)}.{advice}")


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
