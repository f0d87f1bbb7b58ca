"""What a token costs our PPO, over lengths of completions, sizes of rollouts and of models.

    python benchmarks/scaling.py --cells '4x256/*/*' --quick
    python benchmarks/scaling.py --minutes 120 --json runs/scaling.json

A cell is model/rollout/length, in a process of its own: one rollout to warm up, one timed; one epoch in mini-batches
of 8, so that every cell makes as many optimizer steps a row. Cells take turns, from the cheapest to the dearest and
back. A cell that fails, or would take more than is left of a round's share of the time, is left out: "-".
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from harness import add_options, conclude, markdown, run_worker, say, wait_for_quiet, write_json

MODELS = {"4x256": (4, 256, 4, 4_000), "12x768": (12, 768, 12, 50_257), "24x1024": (24, 1024, 16, 50_257)}
ROLLOUTS = (16, 64, 256)
LENGTHS = (48, 128, 512)
MINI, MICRO = 8, 4
PROMPT = 24  # tokens in the mean: see ppo_work
OURS = "ours"
PHASES = {  # column -> logged seconds, and whether the prompt's tokens are read anew
    "sampling": (("rollout",), False),
    "passes": (("policy", "reference"), True),
    "update": (("update",), True),
}
Cell = tuple[str, int, int]  # model, rollout, length
Reports = dict[Cell, dict[str, list[dict]]]


def name_of(cell: Cell) -> str:
    return "/".join(map(str, cell))


def chosen(patterns: Sequence[str]) -> list[Cell]:
    cells = itertools.product(MODELS, ROLLOUTS, LENGTHS)
    found = [cell for cell in cells if any(fnmatch(name_of(cell), pattern) for pattern in patterns)]
    if not found:
        raise SystemExit(f"no cell is named {' or '.join(patterns)}; a name is such as 12x768/64/128 or */16/*")
    return sorted(found, key=cost)


def cost(cell: Cell) -> float:
    """Products of a forward over all rows: what the time of a cell goes by."""
    (layers, width, _, vocabulary), rollout, length = MODELS[cell[0]], *cell[1:]
    return (12 * layers * width**2 + width * vocabulary) * rollout * (PROMPT + length)


def worker(options: argparse.Namespace) -> dict:
    from ppo_work import Shape, ours  # noqa: PLC0415

    (cell,) = chosen(options.cells)
    shape = Shape(*MODELS[cell[0]], rollout=cell[1], micro=MICRO)
    sizes = {"max_completion_length": cell[2], "mini_batch_size": MINI, "num_ppo_epochs": 1}
    with tempfile.TemporaryDirectory() as folder:
        return ours(shape, 2, Path(folder), **sizes)


# --- all of them ----------------------------------------------------------------------------------------------------


def in_rounds(cells: Sequence[Cell], repeats: int, seconds: float, run: Callable[[Cell], dict]) -> Reports:
    """cell -> system -> reports: `repeats` rounds there and back, each within its share of `seconds`."""
    reports: Reports = {}
    taken: dict[Cell, float] = {}
    for turn in range(repeats):
        began = time.perf_counter()
        for cell in list(reports)[::-1] if turn % 2 else list(reports) or cells:
            left = seconds / repeats - (time.perf_counter() - began)
            if (expected := taken.get(cell, expectation(cell, taken))) > left:
                say(f"{name_of(cell)} is left out: it would take {expected:.0f} s, and {max(left, 0):.0f} are left")
                continue
            say(f"round {turn + 1} of {repeats}: {name_of(cell)}")
            start = time.perf_counter()
            try:
                report = run(cell)
            except SystemExit as fault:  # too large for this machine, perhaps; the others are measured all the same
                say(str(fault))
                continue
            taken[cell] = time.perf_counter() - start
            reports.setdefault(cell, {OURS: []})[OURS].append(report)
        say(f"after round {turn + 1}:\n{table(reports)}")
    return reports


def expectation(cell: Cell, taken: dict[Cell, float]) -> float:
    """Seconds, by the dearest cell of the same model so far, else of any; 0 where there is none."""
    known = [other for other in taken if other[0] == cell[0]] or list(taken)
    dearest = max(known, key=cost, default=None)
    return 0.0 if dearest is None else taken[dearest] * cost(cell) / cost(dearest)


def milliseconds(cell: Cell, runs: Sequence[dict]) -> dict[str, float]:
    """Column -> milliseconds a token, the median of all repeats."""
    _, rollout, length = cell
    columns = {}
    for column, (names, reads_prompt) in PHASES.items():
        seconds = [sum(run["phases"].get(f"seconds/{name}", [0.0])[-1] for name in names) for run in runs]
        columns[column] = 1000 * statistics.median(seconds) / (rollout * (length + PROMPT * reads_prompt))
    return columns


def table(reports: Reports) -> str:
    costs = {cell: milliseconds(cell, of_cell[OURS]) for cell, of_cell in reports.items()}
    rows = []
    for model, column, rollout in itertools.product(MODELS, PHASES, ROLLOUTS):
        of_lengths = [costs.get((model, rollout, length), {}).get(column) for length in LENGTHS]
        known = [each for each in of_lengths if each is not None]
        if known:
            cells = ["-" if each is None else f"{each:.3g}" for each in of_lengths]
            rows.append([model, column, str(rollout), *cells, f"{max(known) / min(known):.2f}"])
    header = ["model", "ms a token", "rollout", *map(str, LENGTHS), "dearest to cheapest"]
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=["*"], help="names such as 12x768/64/128 or '*/16/*'")
    parser.add_argument("--minutes", type=float, default=90, help="for all rounds together")
    add_options(parser, [OURS], "one round")
    options = parser.parse_args()
    if options.worker:
        return write_json(options.json, worker(options))
    options.repeats = 1 if options.quick else options.repeats

    def run(cell: Cell) -> dict:
        wait_for_quiet(options.patience)
        return run_worker(options, OURS, {"cells": name_of(cell)}, {"PYTHONWARNINGS": "ignore"})

    reports = in_rounds(chosen(options.cells), options.repeats, 60 * options.minutes, run)
    print(
        "Columns are tokens a completion. Sampling by the sampled token; passes (policy and reference, no gradients) "
        f"and update by the token of prompt ({PROMPT} in the mean) and completion. bf16, one epoch in mini-batches "
        f"of {MINI}, micro-batches of {MICRO}.\n"
    )
    print(table(reports))
    conclude(options, reports, ["torch", "transformers"], "one timed rollout after one to warm up")


if __name__ == "__main__":
    main()
