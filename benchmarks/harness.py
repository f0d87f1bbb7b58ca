"""What all benchmarks share: systems in processes of their own, in turns; medians, memory, and what disturbed them.

A benchmark is a script that runs itself again with `--worker SYSTEM` for each measurement. That process marks a
`Clock` around what is timed and returns a report (`Clock.report`, and what else the benchmark wants to know).
Nothing here needs more than the standard library, so that the process that only waits stays small.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlhf_kit-bench"
QUIET = 0.1  # cores that others may use in a quiet machine


def say(text: str) -> None:
    print(f"[{datetime.now():%H:%M:%S}] {text}", file=sys.stderr, flush=True)


# --- in the process of one system -----------------------------------------------------------------------------------


def foreign_cpu() -> float:
    """CPU seconds that all other processes have used since the machine started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    busy = (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting for disks
    mine = os.times()
    return busy - mine.user - mine.system


def peak_gib() -> float:
    """The most memory that this process has had in RAM at once."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2**20


class Clock:
    """What passes between one mark and the next: seconds, and the cores that other processes used meanwhile."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def mark(self) -> None:
        self.marks.append((time.perf_counter(), foreign_cpu()))

    def report(self) -> dict:
        spans = [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(self.marks)]
        return {
            "seconds": [seconds for seconds, _ in spans],
            "foreign_cores": [foreign / seconds for seconds, foreign in spans],
            "peak_gib": peak_gib(),
        }


# --- in the process that waits for them -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """A peer that is installed apart, without what it needs: that is here already. The environment stays as it is."""

    requirement: str  # name==version
    module: str  # a folder that a whole installation has

    @property
    def folder(self) -> Path:
        return CACHE / self.requirement.replace("==", "-")

    @property
    def environment(self) -> dict[str, str]:
        """For the process that is to import it."""
        return {"PYTHONPATH": str(self.folder)}

    def install(self) -> bool:
        """Whether it is there now."""
        if (self.folder / self.module).is_dir():
            return True
        say(f"installing {self.requirement} in {self.folder}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(self.folder)]
        return subprocess.run([*command, self.requirement]).returncode == 0


LM_EVAL = Package("lm-eval==0.4.13", "lm_eval")


def add_options(parser: argparse.ArgumentParser, systems: Sequence[str], quick: str, patience: float = 0) -> None:
    """The options of every benchmark. `quick`: what --quick does."""
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--patience", type=float, default=patience, help="seconds to wait for an idle machine before each run"
    )
    parser.add_argument("--json", type=Path, help="write everything that was measured here")
    parser.add_argument("--worker", choices=systems, help=argparse.SUPPRESS)


def run_worker(
    options: argparse.Namespace,
    system: str,
    arguments: Mapping[str, object],
    environment: Mapping[str, str],
    seconds: float | None = None,
) -> dict:
    """The report of one system, from a process of its own; what that printed is shown if it fails.

    Raises subprocess.TimeoutExpired where it has not ended after `seconds`.
    """
    base = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.json", Path(folder) / "log"
        command = [sys.executable, str(Path(sys.argv[0]).resolve()), "--worker", system, "--json", str(report)]
        command += [str(word) for name, value in arguments.items() for word in (f"--{name}", value)]
        with log.open("w") as output:
            done = subprocess.run(
                command,
                env={**os.environ, **base, **environment},
                stdout=output,
                stderr=output,
                cwd=folder,
                timeout=seconds,
            )
        if done.returncode:
            asked = ", ".join(f"{name} {value}" for name, value in arguments.items())
            sys.exit(f"{system} ({asked}) failed:\n" + "\n".join(log.read_text().splitlines()[-25:]))
        return json.loads(report.read_text())


def in_turns(
    kinds: Sequence[tuple], systems: Sequence[str], options: argparse.Namespace, run: Callable[[tuple, str], dict]
) -> dict[tuple, dict[str, list[dict]]]:
    """kind -> system -> reports, one a repeat. The systems take turns: what changes with the hour meets all alike."""
    plan = [(kind, system) for kind in kinds for _ in range(options.repeats) for system in systems]
    found: dict = {kind: {system: [] for system in systems} for kind in kinds}
    taken: dict[tuple, float] = {}
    for number, (kind, system) in enumerate(plan):
        wait_for_quiet(options.patience)
        known = [seconds for (of, _), seconds in taken.items() if of == kind]
        left = [taken.get(item, statistics.mean(known) if known else None) for item in plan[number:]]
        time_left = "" if None in left else f", about {sum(left) / 60:.0f} min left"
        say(f"{number + 1}/{len(plan)} {', '.join(map(str, kind))}: {system}{time_left}")
        began = time.perf_counter()
        found[kind][system].append(run(kind, system))
        taken[kind, system] = time.perf_counter() - began
    return found


def wait_for_quiet(patience: float) -> None:
    """Somebody else's process on one core can slow two threads down tenfold: they wait for each other."""
    end = time.time() + patience
    while time.time() < end and (busy := busy_cores()) > QUIET:
        say(f"others use {busy:.1f} cores; waiting up to {end - time.time():.0f} s more (--patience)")
        time.sleep(min(20, max(0, end - time.time())))


def busy_cores(seconds: float = 2.0) -> float:
    before = foreign_cpu()
    time.sleep(seconds)
    return (foreign_cpu() - before) / seconds


# --- what is told ---------------------------------------------------------------------------------------------------


def summary(runs: Sequence[dict]) -> dict:
    """Medians over all that was timed in all repeats of a system; of the disturbance the worst."""
    seconds = [x for run in runs for x in run["seconds"]]
    return {
        "seconds": statistics.median(seconds),
        "range": [min(seconds), max(seconds)],
        "peak_gib": statistics.median(run["peak_gib"] for run in runs),
        "foreign_cores": max(x for run in runs for x in run["foreign_cores"]),
    }


def with_range(row: dict) -> str:
    """`median (fastest-slowest)` of a summary, in seconds."""
    low, high = row["range"]
    return f"{row['seconds']:.2f} ({low:.2f}-{high:.2f})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def facts(options: argparse.Namespace, packages: Sequence[str]) -> dict[str, str]:
    """What a figure must name: command, machine, versions of `packages` (a name, or name==version), date, commit."""
    info = Path("/proc/cpuinfo").read_text()
    named = (line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name"))
    flags = " with avx512_bf16" if "avx512_bf16" in info else ""
    versions = (name.split("==") if "==" in name else (name, importlib.metadata.version(name)) for name in packages)
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": f"{next(named, platform.machine())}{flags}, {options.threads} of {os.cpu_count()} cores",
        "versions": ", ".join(" ".join(pair) for pair in versions),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": commit(),
    }


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "rlhf_kit", "eval", "benchmarks")
    return git("rev-parse", "--short", "HEAD") + (" with uncommitted changes" if changed else "")


def conclude(options: argparse.Namespace, found: dict, packages: Sequence[str], work: str, **more) -> None:
    """Print the line below the tables, and write --json. `work`: what one repeat was."""
    told = facts(options, packages)
    reports = {" ".join(map(str, kind)): of_kind for kind, of_kind in found.items()}
    runs = [run for of_kind in found.values() for of_system in of_kind.values() for run in of_system]
    busy = max(x for run in runs for x in run.get("foreign_cores", []))  # PPO's floors time themselves
    print(
        f"\n`{told['command']}`; {told['machine']}; {told['versions']}; {told['date']}, commit {told['commit']}; "
        f"{options.repeats} repeats of {work}; others used at most {busy:.2f} cores meanwhile."
    )
    if options.json:
        write_json(options.json, {**told, **more, "reports": reports})


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
