"""The suite on the newest releases that setup.cfg allows, in an environment of its own: `make test-newest`.

Nothing is pinned but torch (constraints.txt: it decides about CPU, CUDA and their drivers). What ran, with which
versions, and how it ended goes into the table "Works with" of a document; words behind `--` go to pytest instead of
`make test`'s own, and stand there as they are.
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUICK = "--numprocesses 2 --dist loadfile --ignore tests/test_demo.py --ignore tests/test_readme_shell.py".split()
BEGIN, END = "<!-- tests/newest.py writes from here -->", "<!-- to here -->"


def requirements() -> list[str]:
    """Names of what setup.cfg needs, for the tests too."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"] + setup["options.extras_require"]["dev"]
    return sorted({re.split(r"[><=~!\[]", line)[0].strip() for line in wanted.splitlines() if line.strip()})


def install(environment: Path) -> None:
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    command = [environment / "bin" / "python", "-m", "pip", "install", torch, "--editable", f"{ROOT}[dev]"]
    subprocess.run(command, check=True)


def versions(environment: Path) -> dict[str, str]:
    """The version of Python and of each requirement."""
    source = (
        "import platform, sys; from importlib.metadata import version; "
        "print(platform.python_version(), *map(version, sys.argv[1:]))"
    )
    command = [environment / "bin" / "python", "-c", source, *requirements()]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(zip(["Python", *requirements()], told.split(), strict=True))


def run(environment: Path, words: Sequence[str]) -> tuple[int, str]:
    """(pytest's exit status, its closing line: how many passed)."""
    command = [environment / "bin" / "python", "-m", "pytest", "-p", "no:cacheprovider", *words]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    closing = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        closing = line.strip(" =\n") if re.search(r"\d+ (passed|failed|error|skipped)", line) else closing
    status = process.wait()
    return status, closing or f"exit status {status}"


def table(found: dict[str, str], words: Sequence[str], ended: str) -> str:
    """The section "Works with", between its marks."""
    rows = "\n".join(f"| {name} | {version} |" for name, version in found.items())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    when = f"{datetime.now(UTC):%Y-%m-%d}, {sys.platform}, commit {commit.strip() or 'unknown'}"
    told = f"{when}: `python -m pytest {' '.join(words)}`: {ended}."
    return f"{BEGIN}\n{told}\n\n| | version |\n| --- | --- |\n{rows}\n{END}"


def write(path: Path, section: str) -> None:
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    path.write_text(before + section + rest.partition(END)[2], encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--environment", type=Path, help="an environment that is installed already, to run again in")
    parser.add_argument("--write", type=Path, help="the document whose table is written anew")
    parser.add_argument("words", nargs="*", help="for pytest, behind --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        environment = options.environment or Path(temporary) / "venv"
        if options.environment is None:
            install(environment)
        words = options.words or QUICK
        status, ended = run(environment, words)
        if options.write:
            write(options.write, table(versions(environment), words, ended))
    return status


if __name__ == "__main__":
    sys.exit(main())
