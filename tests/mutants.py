"""Lines that a test guards, each broken once: the test must go red. `make mutants`; `make mutants ONLY=ppo` for some.

A row is (file, text, broken text, test). The text stands in its file exactly once, so that lines may move; the rows
stand in `tests/mutations/`, a module an area. Every copy of the checkout that is broken is made in a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, repeat
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[1]
AREAS = sorted(path.stem for path in (ROOT / "tests" / "mutations").glob("[a-z]*.py"))
SECONDS = 120  # of one test; a line whose absence makes it hang is guarded too
RED, GREEN = 1, 0  # pytest's exit status: a test failed, all passed; anything else is neither
OUTCOMES = {GREEN: "stayed green", RED: "red, but so is its file unbroken"}
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "evaluate", "pytest", "hypothesis")


@dataclass(frozen=True)
class Mutant:
    file: str
    text: str
    broken: str
    test: str

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.text.split())[:60]!r} ({self.test.rpartition('::')[2]})"


def mutants(only: str = "") -> list[Mutant]:
    """All of them, or those whose file or test holds `only`."""
    rows = [row for area in AREAS for row in importlib.import_module(f"mutations.{area}").MUTANTS]
    return [mutant for mutant in map(lambda row: Mutant(*row), rows) if only in mutant.file or only in mutant.test]


def copied(folder: Path) -> Path:
    """The checkout as git has it."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def run_tests(checkout: Path, tests: Sequence[str]) -> int:
    """pytest's exit status, in a fork of this process, which has the heavy imports behind it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 70
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        os.chdir(checkout)
        sys.path.insert(0, str(checkout))
        os.environ.update(PYTHONPATH=str(checkout), PYTHONDONTWRITEBYTECODE="1")
        sys.dont_write_bytecode = True  # a broken line and its mend may fall into one second
        pytest = importlib.import_module("pytest")
        status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-o", f"timeout={SECONDS}", *tests]))
    finally:
        os._exit(status)


@contextlib.contextmanager
def broken(checkout: Path, mutant: Mutant) -> Iterator[None]:
    file = checkout / mutant.file
    whole = file.read_text(encoding="utf-8")
    if whole.count(mutant.text) != 1:
        raise SystemExit(f"{mutant}: the text stands there {whole.count(mutant.text)} times, not once")
    file.write_text(whole.replace(mutant.text, mutant.broken), encoding="utf-8")
    try:
        yield
    finally:
        file.write_text(whole, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a file's or test's name")
    parser.add_argument("--workers", type=int, default=2, help="copies of the checkout at work at once")
    options = parser.parse_args()
    chosen = mutants(options.only)
    for name in HEAVY:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.workers) as pool:
        free: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.workers):
            free.put(copied(Path(folder) / str(number) / "checkout"))
        (Path(folder) / "shared").mkdir()

        def status_of(tests: Sequence[str], mutant: Mutant | None) -> int:
            checkout = free.get()
            try:
                with broken(checkout, mutant) if mutant else contextlib.nullcontext():
                    return run_tests(checkout, tests)
            finally:
                free.put(checkout)

        by_file = groupby(sorted({mutant.test for mutant in chosen}), key=lambda test: test.partition("::")[0])
        files = {file: list(tests) for file, tests in by_file}
        whole = dict(zip(files, pool.map(status_of, files.values(), repeat(None)), strict=True))
        for file in (file for file, status in whole.items() if status != GREEN):
            print(f"not green on the unbroken checkout: {' '.join(files[file])}", flush=True)
        red = 0
        statuses = pool.map(status_of, [[mutant.test] for mutant in chosen], chosen)
        for number, (mutant, status) in enumerate(zip(chosen, statuses, strict=True), 1):
            guarded = status == RED and whole[mutant.test.partition("::")[0]] == GREEN
            red += guarded
            if not guarded:
                print(f"{OUTCOMES.get(status, f'pytest ended with {status}')}: {mutant}", flush=True)
            if number % 20 == 0:
                print(f"{red} red of {number} tried, {len(chosen)} in all", flush=True)
    print(f"{red} of {len(chosen)} broken lines turn their test red")
    return 0 if red == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
