"""The same PPO work by rlhf_kit, by TRL 1.12 (the last with PPO) and by TRL's RLOO: speed and memory side by side.

    python benchmarks/ppo_vs_trl.py --quick
    python benchmarks/ppo_vs_trl.py --shape small --repeats 3 --rollouts 2 --json runs/ppo_vs_trl.json

Each system runs in a process of its own, one after the other, and again for each repeat; what is compared are medians
over all timed rollouts. TRL 1.12 is installed apart, in ~/.cache/rlhf_kit-bench, and leaves the environment's TRL
alone. All on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from typing import TYPE_CHECKING

import harness
from harness import add_options, in_turns, markdown, run_worker, with_range, write_json

if TYPE_CHECKING:
    from ppo_work import Shape

TRL_112 = harness.Package("trl==1.12.0", "trl/experimental/ppo")
FLOOR = "floor"
# With what a full fine-tuning and one with LoRA are compared.
BASES = {"full": "trl112", "lora": "trl112-lora"}


# --- processes --------------------------------------------------------------------------------------------------


def environment(system: str) -> dict[str, str]:
    extra = {"PYTHONWARNINGS": "ignore"}
    if system.startswith("trl112"):  # the only way to say bf16 to it: `bf16=True` is not read
        extra |= {**TRL_112.environment, "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "true"}
        extra |= {"TRL_EXPERIMENTAL_SILENCE": "1"}
    return extra


def worker(options: argparse.Namespace) -> dict:
    shape = shape_of(options.shape[0], options.micro)
    if options.worker == FLOOR:
        from ppo_floor import rates  # noqa: PLC0415

        return rates(shape)
    from ppo_work import work  # noqa: PLC0415

    return work(options.worker, shape, options.rollouts)


def shape_of(name: str, micro: int | None) -> Shape:
    from ppo_work import SHAPES  # noqa: PLC0415

    return dataclasses.replace(SHAPES[name], micro=micro or SHAPES[name].micro)


# --- the table --------------------------------------------------------------------------------------------------


def summary(shape: Shape, reports: dict[str, list[dict]]) -> dict[str, dict]:
    """system -> medians over the timed rollouts of all repeats."""
    from ppo_floor import floors  # noqa: PLC0415
    from ppo_work import NEW_TOKENS  # noqa: PLC0415

    rollout, result = shape.rollout, {}
    measured = [
        [*key[:3], statistics.median(report["rates"][at][3] for report in reports[FLOOR])]
        for at, key in enumerate(reports[FLOOR][0]["rates"])
    ]
    for name, runs in reports.items():
        if name == FLOOR:
            continue
        row = harness.summary(runs)
        result[name] = row | {
            "episodes_per_second": rollout / row["seconds"],
            "tokens_per_second": rollout * NEW_TOKENS / row["seconds"],
            "steps": sorted({x for run in runs for x in run["steps"]}),
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


def systems_table(rows: dict[str, dict]) -> str:
    from ppo_work import SYSTEMS  # noqa: PLC0415

    cells = []
    for name, row in rows.items():
        kinds = ", ".join("/".join(row["dtypes"][when]) for when in ("without gradients", "with gradients"))
        cells.append([
            SYSTEMS[name][0], with_range(row), f"{row['episodes_per_second']:.2f}", f"{row['tokens_per_second']:.0f}",
            times(row["speed_ratio"]), f"{row['peak_gib']:.2f}", times(row["memory_ratio"]),
            "/".join(map(str, row["steps"])), kinds.replace("bfloat16", "bf16"),
        ])  # fmt: skip
    header = ["system", "s a rollout (range)", "episodes/s", "tokens/s", "speed to TRL 1.12", "peak GiB"]
    return markdown([*header, "memory to TRL 1.12", "steps a rollout", "sampling, training in"], cells)


def floor_of(phase: str, row: dict) -> float | None:
    """The floor of a logged phase. Where the policy's pass is not logged apart, it is part of `reference`."""
    floors = row["floors"]
    if phase == "collect":
        return floors["rollout"] + floors["policy"] + floors["reference"]
    if phase == "reference" and "seconds/policy" not in row["phases"]:
        return floors["policy"] + floors["reference"]
    return floors.get(phase)


def phases_table(rows: dict[str, dict]) -> str:
    from ppo_work import SYSTEMS  # noqa: PLC0415

    cells = []
    for name, row in rows.items():
        if "phases" not in row:
            continue
        cells.append([f"**{SYSTEMS[name][0]}**", f"{row['seconds']:.2f}", "", "", ""])
        for key, seconds in row["phases"].items():
            phase = key.removeprefix("seconds/")
            floor = floor_of(phase, row)
            told = ["", ""] if floor is None else [f"{floor:.2f}", f"{floor / max(seconds, 1e-9):.0%}"]
            cells.append([phase, f"{seconds:.2f}", f"{seconds / row['seconds']:.0%}", *told])
    return markdown(["phase", "seconds", "share of the rollout", "floor (s)", "floor / seconds"], cells)


def shape_text(it: Shape) -> str:
    from ppo_work import EPOCHS, LONGEST, NEW_TOKENS, SHORTEST  # noqa: PLC0415

    return (
        f"### {it.layers} layers x {it.width}, V {it.vocabulary:,}\n\n"
        f"Rollouts of {it.rollout} completions of {NEW_TOKENS} tokens to random prompts of {SHORTEST} to {LONGEST}; "
        f"{EPOCHS} epochs of one mini-batch, micro-batches of {it.micro}; bf16 autocast over float32 weights; LoRA of "
        "rank 16 on all projections."
    )


def main() -> None:
    from ppo_work import SHAPES, SYSTEMS  # noqa: PLC0415

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="NAME", help=", ".join(SYSTEMS)
    )
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--micro", type=int, help="completions a training forward, for all systems")
    parser.add_argument("--rollouts", type=int, default=2, help="timed rollouts a process")
    add_options(parser, [FLOOR, *SYSTEMS], "one repeat of one timed rollout", patience=300)
    options = parser.parse_args()
    if options.worker:
        return write_json(options.json, worker(options))
    if options.quick:
        options.repeats = options.rollouts = 1
    if any(name.startswith("trl112") for name in options.systems) and not TRL_112.install():
        raise SystemExit(f"{TRL_112.requirement} could not be installed; leave out the systems trl112*.")

    shapes = {name: shape_of(name, options.micro) for name in options.shape}

    def run(kind: tuple, system: str) -> dict:
        arguments = {"shape": kind[0], "rollouts": options.rollouts, "micro": shapes[kind[0]].micro}
        return run_worker(options, system, arguments, environment(system))

    found = in_turns([(shape,) for shape in options.shape], [FLOOR, *options.systems], options, run)
    rows = {name: summary(shape, found[name,]) for name, shape in shapes.items()}
    tables = [(shape_text(shapes[name]), systems_table(rows[name]), phases_table(rows[name])) for name in rows]
    print("\n\n".join(text for of_shape in tables for text in of_shape))
    work = f"{options.rollouts} timed rollouts after one to warm up"
    harness.conclude(options, found, ["torch", "transformers", "trl"], work, summary=rows)


if __name__ == "__main__":
    main()
