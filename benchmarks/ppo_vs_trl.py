"""The same PPO work by rlhf_kit, by TRL 1.12 (the last with PPO) and by TRL's RLOO: speed and memory side by side.

    python benchmarks/ppo_vs_trl.py --quick
    python benchmarks/ppo_vs_trl.py --shape small --repeats 3 --rollouts 2 --json runs/ppo_vs_trl.json

Each system runs in a process of its own, one after the other, and again for each repeat; what is compared are medians
over all timed rollouts. TRL 1.12 is installed apart, in ~/.cache/rlhf_kit-bench, and leaves the environment's TRL
alone. All on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
TRL_112 = CACHE / "rlhf_kit-bench" / "trl-1.12.0"
FLOOR = "floor"
# With what a full fine-tuning and one with LoRA are compared.
BASES = {"full": "trl112", "lora": "trl112-lora"}


# --- processes --------------------------------------------------------------------------------------------------


def install_trl_112() -> None:
    """Only the package itself: everything it needs is here already."""
    if (TRL_112 / "trl" / "experimental" / "ppo").is_dir():
        return
    say(f"installing TRL 1.12.0 in {TRL_112}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(TRL_112), "trl==1.12.0"]
    subprocess.run(command, check=True)


def environment(name: str, threads: int) -> dict[str, str]:
    extra = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
    }
    if name.startswith("trl112"):  # the only way to say bf16 to it: `bf16=True` is not read
        extra |= {"PYTHONPATH": str(TRL_112), "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "true"}
        extra |= {"TRL_EXPERIMENTAL_SILENCE": "1"}
    return {**os.environ, **extra}


def run_worker(name: str, shape: str, options: argparse.Namespace) -> dict:
    """One worker's report; its output is kept for the case that it fails."""
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.json", Path(folder) / "log"
        command = [sys.executable, __file__, "--worker", name, "--shape", shape]
        command += ["--rollouts", str(options.rollouts), "--json", str(report)]
        with log.open("w") as output:
            done = subprocess.run(
                command, env=environment(name, options.threads), stdout=output, stderr=output, cwd=folder
            )
        if done.returncode:
            sys.exit(f"{name} ({shape}) failed:\n" + "\n".join(log.read_text().splitlines()[-25:]))
        return json.loads(report.read_text())


def worker(name: str, shape: str, rollouts: int, report: Path) -> None:
    if name == FLOOR:
        from ppo_floor import rates  # noqa: PLC0415

        found = rates(shape)
    else:
        from ppo_work import work  # noqa: PLC0415

        found = work(name, shape, rollouts)
    report.write_text(json.dumps(found))


def busy_cores(seconds: float = 2.0) -> float:
    from ppo_work import foreign_cpu  # noqa: PLC0415

    before = foreign_cpu()
    time.sleep(seconds)
    return (foreign_cpu() - before) / seconds


def wait_for_quiet(patience: float) -> None:
    """Somebody else's process on one core can slow two threads down tenfold: they wait for each other."""
    end = time.time() + patience
    while time.time() < end and (busy := busy_cores()) > 0.1:
        say(f"others use {busy:.1f} cores; waiting up to {end - time.time():.0f} s more (--patience)")
        time.sleep(min(20, max(0, end - time.time())))


def say(text: str) -> None:
    print(f"[{datetime.now():%H:%M:%S}] {text}", file=sys.stderr, flush=True)


def run_all(options: argparse.Namespace) -> dict[str, dict[str, list[dict]]]:
    """shape -> system -> reports, one a repeat; the systems take turns."""
    plan = [
        (shape, name) for shape in options.shape for _ in range(options.repeats) for name in [FLOOR, *options.systems]
    ]
    found: dict = {shape: {name: [] for name in [FLOOR, *options.systems]} for shape in options.shape}
    taken: dict[tuple[str, str], float] = {}
    for number, (shape, name) in enumerate(plan):
        wait_for_quiet(options.patience)
        known = [seconds for (of, _), seconds in taken.items() if of == shape]
        left = [taken.get(item, statistics.mean(known) if known else None) for item in plan[number:]]
        time_left = "" if None in left else f", about {sum(left) / 60:.0f} min left"
        say(f"{number + 1}/{len(plan)} {shape}: {name}{time_left}")
        began = time.perf_counter()
        found[shape][name].append(run_worker(name, shape, options))
        taken[shape, name] = time.perf_counter() - began
    return found


# --- the table --------------------------------------------------------------------------------------------------


def summary(shape: str, reports: dict[str, list[dict]]) -> dict[str, dict]:
    """system -> medians over the timed rollouts of all repeats."""
    from ppo_floor import floors  # noqa: PLC0415
    from ppo_work import NEW_TOKENS, SHAPES  # noqa: PLC0415

    rollout, result = SHAPES[shape].rollout, {}
    measured = [
        [*key[:3], statistics.median(report["rates"][at][3] for report in reports[FLOOR])]
        for at, key in enumerate(reports[FLOOR][0]["rates"])
    ]
    for name, runs in reports.items():
        if name == FLOOR:
            continue
        seconds = [x for run in runs for x in run["seconds"]]
        middle = statistics.median(seconds)
        result[name] = {
            "seconds": middle,
            "range": [min(seconds), max(seconds)],
            "episodes_per_second": rollout / middle,
            "tokens_per_second": rollout * NEW_TOKENS / middle,
            "peak_gib": statistics.median(run["peak_gib"] for run in runs),
            "steps": sorted({x for run in runs for x in run["steps"]}),
            "foreign_cores": max(x for run in runs for x in run["foreign_cores"]),
            "mixed_precision": runs[0]["mixed_precision"],
            "dtypes": runs[0]["dtypes"],
        }
        if "phases" in runs[0]:
            names = runs[0]["phases"]
            phases = {key: statistics.median(x for run in runs for x in run["phases"][key]) for key in names}
            result[name] |= {"phases": phases, "floors": floors(shape, name, measured)}
    for name, row in result.items():
        base = result.get(BASES["lora" if "lora" in name else "full"])
        row["speed_ratio"] = None if base is None else base["seconds"] / row["seconds"]
        row["memory_ratio"] = None if base is None else row["peak_gib"] / base["peak_gib"]
    return result


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def systems_table(rows: dict[str, dict]) -> list[str]:
    from ppo_work import SYSTEMS  # noqa: PLC0415

    lines = [
        "| system | s a rollout (range) | episodes/s | tokens/s | speed to TRL 1.12 | peak GiB | memory to TRL 1.12 | "
        "steps a rollout | sampling, training in |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        low, high = row["range"]
        kinds = ", ".join("/".join(row["dtypes"][when]) for when in ("without gradients", "with gradients"))
        cells = [
            SYSTEMS[name][0], f"{row['seconds']:.2f} ({low:.2f}-{high:.2f})", f"{row['episodes_per_second']:.2f}",
            f"{row['tokens_per_second']:.0f}", times(row["speed_ratio"]), f"{row['peak_gib']:.2f}",
            times(row["memory_ratio"]), "/".join(map(str, row["steps"])), kinds.replace("bfloat16", "bf16"),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def floor_of(phase: str, row: dict) -> float | None:
    """The floor of a logged phase. Where the policy's pass is not logged apart, it is part of `reference`."""
    floors = row["floors"]
    if phase == "collect":
        return floors["rollout"] + floors["policy"] + floors["reference"]
    if phase == "reference" and "seconds/policy" not in row["phases"]:
        return floors["policy"] + floors["reference"]
    return floors.get(phase)


def phases_table(rows: dict[str, dict]) -> list[str]:
    from ppo_work import SYSTEMS  # noqa: PLC0415

    lines = [
        "| phase | seconds | share of the rollout | floor (s) | floor / seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        if "phases" not in row:
            continue
        lines.append(f"| **{SYSTEMS[name][0]}** | {row['seconds']:.2f} | | | |")
        for key, seconds in row["phases"].items():
            phase = key.removeprefix("seconds/")
            floor = floor_of(phase, row)
            told = ["", ""] if floor is None else [f"{floor:.2f}", f"{floor / max(seconds, 1e-9):.0%}"]
            lines.append(f"| {phase} | {seconds:.2f} | {seconds / row['seconds']:.0%} | {' | '.join(told)} |")
    return lines


def shape_text(shape: str) -> str:
    from ppo_work import EPOCHS, LONGEST, NEW_TOKENS, SHAPES, SHORTEST  # noqa: PLC0415

    it = SHAPES[shape]
    return (
        f"### {it.layers} layers x {it.width}, V {it.vocabulary:,}\n\n"
        f"Rollouts of {it.rollout} completions of {NEW_TOKENS} tokens to random prompts of {SHORTEST} to {LONGEST}; "
        f"{EPOCHS} epochs of one mini-batch, micro-batches of {it.micro}; bf16 autocast over float32 weights; LoRA of "
        "rank 16 on all projections."
    )


def machine(threads: int) -> str:
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    info = Path("/proc/cpuinfo").read_text()
    model = next(
        (x.split(":")[1].strip() for x in info.splitlines() if x.startswith("model name")), platform.machine()
    )
    flags = " with avx512_bf16" if "avx512_bf16" in info else ""
    cores = f"{threads} of {os.cpu_count()} cores"
    return f"{model}{flags}, {cores}; torch {torch.__version__}, transformers {transformers.__version__}"


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", str(HERE.parent / "rlhf_kit"))
    return git("rev-parse", "--short", "HEAD") + (" with uncommitted changes" if changed else "")


def main(options: argparse.Namespace, command: str) -> None:
    if any(name.startswith("trl112") for name in options.systems):
        install_trl_112()
    found = run_all(options)
    rows = {shape: summary(shape, reports) for shape, reports in found.items()}
    facts = {
        "command": command, "machine": machine(options.threads), "commit": commit(),
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    }  # fmt: skip
    for shape in options.shape:
        table = [shape_text(shape), "", *systems_table(rows[shape]), "", *phases_table(rows[shape]), ""]
        print("\n".join(table))
    foreign = max(row["foreign_cores"] for of_shape in rows.values() for row in of_shape.values())
    print(
        f"`{command}`; {facts['machine']}; {facts['date']}, commit {facts['commit']}; {options.repeats} repeats of "
        f"{options.rollouts} timed rollouts after one to warm up; others used at most {foreign:.2f} cores meanwhile."
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**facts, "summary": rows, "reports": found}, indent=1))


def parsed(argv: list[str]) -> argparse.Namespace:
    from ppo_work import SHAPES, SYSTEMS  # noqa: PLC0415

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="NAME", help=", ".join(SYSTEMS)
    )
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=2, help="timed rollouts a process")
    parser.add_argument("--quick", action="store_true", help="one repeat of one timed rollout")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--patience", type=float, default=300, help="seconds to wait for an idle machine before each run"
    )
    parser.add_argument("--json", type=Path, help="write everything that was measured here")
    parser.add_argument("--worker", choices=[FLOOR, *SYSTEMS], help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.quick:
        options.repeats = options.rollouts = 1
    return options


if __name__ == "__main__":
    given = parsed(sys.argv[1:])
    if given.worker:
        worker(given.worker, given.shape[0], given.rollouts, given.json)
    else:
        main(given, shlex.join(["python", "benchmarks/ppo_vs_trl.py", *sys.argv[1:]]))
