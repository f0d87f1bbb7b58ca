"""The folders that `tests/fixtures/golden/old/` holds were made by this, before the code moved; they stay as they are.

Each is of a command that was killed: an evaluation when half its items were written, a stage behind its checkpoint.
`python tests/golden/old_folders.py FOLDER` makes such folders by the code as it is now.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from commands import OLD_EVALS, OLD_STAGES, within
from places import furnish
from records import run

MODELS = ("lm", "reader", "old-judge")
KEPT = 2  # items of an evaluation


def killed(words: str, due: Callable[[], bool]) -> bool:
    """Run a command in a child that ends at once when it is due; whether it did."""
    child = os.fork()
    if not child:

        def watch() -> None:
            while not due():
                time.sleep(0)
            os._exit(9)

        threading.Thread(target=watch, daemon=True).start()
        status, out, err = run(words.split())
        sys.stderr.write(f"{words}: ended with {status}\n{err[-500:]}\n")
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def again(out: Path, words: str, due: Callable[[], bool], tries: int = 8) -> None:
    """Until it was killed when it was due; some end before anybody looks."""
    for _ in range(tries):
        shutil.rmtree(out, ignore_errors=True)
        if killed(words, due):
            return
    raise SystemExit(f"{words}: ended {tries} times before it was killed")


def lines(folder: Path) -> int:
    """Items so far, but for the baseline's, which is done before anybody looks."""
    parts = [path for path in folder.rglob("items-0.jsonl") if path.parent.name != "lede-3"]
    return sum(path.read_text(encoding="utf-8").count("\n") for path in parts)


def make(target: Path) -> None:
    with tempfile.TemporaryDirectory() as name, within(Path(name)):
        furnish(Path(name))
        for task, words in OLD_EVALS.items():
            out = Path(f"old-{task}")
            slow = f"{words} --max-batch-tokens 1"
            again(out, slow, lambda out=out: lines(out) >= KEPT)
        for stage, words in OLD_STAGES.items():
            out = Path(f"old-{stage}")
            log = out / "metrics.jsonl"
            again(out, words, lambda log=log: log.exists() and re.search('"step": [34]', log.read_text()))
        for folder in (*MODELS, *(f"old-{name}" for name in (*OLD_EVALS, *OLD_STAGES))):
            shutil.copytree(folder, target / folder, ignore=shutil.ignore_patterns("*.lock", "*.tmp"))


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
