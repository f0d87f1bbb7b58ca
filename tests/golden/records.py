"""One golden run: what the command left, in a form that another machine, another day and other words leave as well."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rlhf_kit.cli import main

TOLERANCE = 1e-3  # relative; weights and figures differ in their last digits between machines
# Of one machine, one day or one version and no other.
OWN = re.compile(
    r"commit|versions|.*_version|(step_)?time|date|seconds(/.*)?|.*(runtime|per_second|seconds)|total_flos|memory.*|host.*"
    r"|.*(tokens_per_s|/s)$|pid|device.*|platform"
)
HEADING = re.compile(r"^#+ .*$|<h[1-6][^>]*>(.*?)</h[1-6]>", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])-{1,2}[A-Za-z][\w-]*")
FACT = re.compile(
    r"""(?<!\w)['"]([^'"\n]{1,80})['"](?!\w)|(\w[\w./-]*\.(?:jsonl?|yaml|txt|html|safetensors))"""
    r"|(?<![\w./-])(\d[\d.,]*\d|\d)(?![\w/-])"
)


def run(argv: Sequence[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    torch.manual_seed(0)  # what one run draws before it sets its seed is not for the next to feel
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(argv))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return status, out.getvalue(), err.getvalue()


def facts(message: str, argv: Sequence[str]) -> list[str]:
    """What a message quotes, counts and names, which another wording must quote, count and name too.

    Of argparse's messages, which another reader of options will say otherwise, only what was typed.
    """
    usage, _, told = message.rpartition("\nrlhf-kit ")
    told = OPTION.sub("", told or message)
    found = {next(filter(None, groups)).rstrip(".,") for groups in FACT.findall(told)} - {""}
    if usage.startswith("usage: "):
        found = {fact for fact in found if fact in argv and not fact.isdigit()}
    return sorted(found)


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Of each file but stores of labels: their bytes are the database's affair, and `convert` tells what they hold."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and ".db" not in path.name
    }


def record(argv: Sequence[str], shown: str = "") -> tuple[dict[str, Any], str]:
    """A run in the current folder, and what it said on standard error.

    `shown`: whether standard output is recorded, as "json" or by its "numbers".
    """
    here = Path.cwd()
    before = states(here)
    status, out, err = run(argv)
    after = states(here)
    written = sorted(name for name in after if after[name] != before.get(name))
    found: dict[str, Any] = {"status": status, "files": {name: content(here / name) for name in written}}
    found["removed"] = sorted(before.keys() - after.keys())
    found["says"] = bool(out.strip())
    if shown == "json":
        found["shown"] = wordless(plain(json.loads(out)))
    if shown == "numbers":
        found["shown"] = [float(number) for number in re.findall(r"-?\d+\.\d+|\d+", out)]
    if status:
        found["complains"] = bool(err.strip())
        found["facts"] = facts(err, argv)
    return found, err


def same_form(text: str) -> str:
    """Underscores for dashes and one kind of quote: the spelling of options and the way to quote may change."""
    return text.replace("-", "_").replace('"', "'").replace("`", "'")


def missing(found: Sequence[str], message: str) -> list[str]:
    """The facts that a message does not hold as words of their own."""
    told = same_form(message)
    return [fact for fact in found if not re.search(rf"(?<![^\W_]){re.escape(same_form(fact))}(?![^\W_])", told)]


# --- files ----------------------------------------------------------------------------------------------------------


def content(path: Path) -> Any:
    """What is compared of a file; None where only that it is there."""
    if any(part.startswith("checkpoint-") for part in path.parts):
        return None
    if path.name in ("tokenizer.json", "tokenizer_config.json", "trainer_state.json", "checkpoint.json"):
        return None
    if path.suffix == ".safetensors":
        weights = sorted(load_file(path).items())
        return {name: [*weight.shape, float(weight.float().pow(2).mean().sqrt())] for name, weight in weights}
    if path.suffix == ".json":
        return plain(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".jsonl":
        return [plain(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix in (".md", ".html"):
        return len(HEADING.findall(path.read_text(encoding="utf-8")))
    return None


def plain(value: Any) -> Any:
    """The value without what is of one machine or day, its paths from the working folder."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items() if not OWN.fullmatch(str(name))}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return value.replace(os.getcwd(), "HERE")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def wordless(value: Any) -> Any:
    """Sentences, which may be reworded, give way to dots."""
    if isinstance(value, dict):
        return {name: wordless(item) for name, item in value.items()}
    if isinstance(value, list):
        return [wordless(item) for item in value]
    return "..." if isinstance(value, str) and (" " in value or not value.isascii()) else value


# --- comparison -----------------------------------------------------------------------------------------------------


def compare(old: dict[str, Any], new: dict[str, Any], message: str) -> list[str]:
    """What a run does otherwise than its record; a message need only hold the facts of the recorded one."""
    gone = [f"the message no longer says {fact!r}" for fact in missing(old.get("facts", ()), message)]
    records = ({key: value for key, value in each.items() if key != "facts"} for each in (old, new))
    return gone + list(differences(*records))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Each place in which a record differs, as a line."""
    if is_number(old) and is_number(new):
        if not math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=1e-5):
            yield f"{where}: was {old}, is {new}"
    elif isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            if name not in new or name not in old:
                yield f"{where}/{name}: {'is gone' if name in old else 'is new'}"
            else:
                yield from differences(old[name], new[name], f"{where}/{name}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for at, (first, second) in enumerate(zip(old, new, strict=True)):
            yield from differences(first, second, f"{where}[{at}]")
    elif type(old) is not type(new) or old != new:
        yield f"{where}: was {old!r}, is {new!r}"
