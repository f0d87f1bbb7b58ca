"""The same rankings through rlhf_kit's RewardTrainer and through TRL's on the pairs they expand to, side by side.

    python benchmarks/reward_vs_trl.py --quick
    python benchmarks/reward_vs_trl.py --shape small --repeats 3 --json runs/reward_vs_trl.json

A ranking of K answers holds K (K - 1) / 2 comparisons. Ours forwards each answer once, and with the prompt shared the
prompt once too; TRL forwards both answers of every pair. All make optimizer steps over the same lists, with about as
many rows a forward. Each system runs in a process of its own, in turns; what is compared are medians. On a CPU.
"""

from __future__ import annotations

import argparse
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
from datetime import datetime, timezone
from pathlib import Path

PROMPT, COMPLETION = 128, 64  # tokens
LISTS = {2: 8, 4: 4, 9: 2}  # K -> lists an optimizer step
FORWARD = {2: 4, 4: 2, 9: 1}  # K -> lists a forward: 8 or 9 rows
PAIRS = 4  # of TRL a forward: 8 rows
SYSTEMS = ("ours", "ours-shared", "trl")


# --- one system, in a process of its own ---------------------------------------------------------------------------


def lists_of(shape, k: int, count: int) -> list[list[list[int]]]:
    """Random lists of k rows, prompt + completion, the best first; every row has the full length."""
    import torch  # noqa: PLC0415

    generator = torch.Generator().manual_seed(k)

    def tokens(size: int) -> list[int]:
        return torch.randint(0, shape.vocabulary - 1, (size,), generator=generator).tolist()

    prompts = [tokens(PROMPT) for _ in range(count)]
    return [[prompt + tokens(COMPLETION) for _ in range(k)] for prompt in prompts]


def trainer_of(name: str, shape, k: int, steps: int, folder: str, callback):
    from datasets import Dataset  # noqa: PLC0415
    from ppo_work import _config, tokenizer_of  # noqa: PLC0415
    from transformers import GPT2ForSequenceClassification, set_seed  # noqa: PLC0415

    set_seed(0)
    model = GPT2ForSequenceClassification(_config(shape, shape.layers, shape.width, shape.heads, num_labels=1))
    lists = lists_of(shape, k, LISTS[k] * steps)
    common = dict(
        learning_rate=1e-6, bf16=True, optim="adamw_torch_fused", gradient_checkpointing=False, save_strategy="no",
        report_to="none", disable_tqdm=True, use_cpu=True, max_steps=steps, logging_steps=1, max_length=None,
        dataloader_pin_memory=False,
    )  # fmt: skip
    if name == "trl":
        import trl  # noqa: PLC0415

        pairs = [pair for rows in lists for pair in itertools.combinations(rows, 2)]
        args = trl.RewardConfig(
            folder, **common, per_device_train_batch_size=PAIRS,
            gradient_accumulation_steps=LISTS[k] * (k * (k - 1) // 2) // PAIRS,
        )  # fmt: skip
        data = Dataset.from_dict({"chosen_ids": [p[0] for p in pairs], "rejected_ids": [p[1] for p in pairs]})
        return trl.RewardTrainer(
            model, args, train_dataset=data, processing_class=tokenizer_of(shape), callbacks=[callback]
        )
    from rlhf_kit.reward import RewardConfig, RewardTrainer  # noqa: PLC0415

    args = RewardConfig(
        folder, **common, per_device_train_batch_size=FORWARD[k], calibrate=False,
        gradient_accumulation_steps=LISTS[k] // FORWARD[k], shared_prefix=name == "ours-shared",
    )  # fmt: skip
    ranks = list(range(1, k + 1))
    data = [
        {"input_ids": rows, "ranks": ranks, "margin": 0.0, "weight": 1.0, "length": PROMPT + COMPLETION}
        for rows in lists
    ]
    return RewardTrainer(
        model, args, Dataset.from_list(data), processing_class=tokenizer_of(shape), callbacks=[callback]
    )


def worker(name: str, shape_name: str, k: int, steps: int, report: Path) -> None:
    from ppo_work import SHAPES, foreign_cpu  # noqa: PLC0415
    from transformers import TrainerCallback  # noqa: PLC0415

    ends: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append((time.perf_counter(), foreign_cpu()))

    with tempfile.TemporaryDirectory() as folder:
        trainer_of(name, SHAPES[shape_name], k, steps + 1, folder, Clock()).train()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    spans = list(itertools.pairwise(ends))
    found = {
        "seconds": [after[0] - before[0] for before, after in spans],
        "foreign_cores": [(after[1] - before[1]) / (after[0] - before[0]) for before, after in spans],
        "peak_gib": int(peak.split()[1]) / 2**20,
    }
    report.write_text(json.dumps(found))


# --- all of them ----------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(f"[{datetime.now():%H:%M:%S}] {text}", file=sys.stderr, flush=True)


def run_worker(shape: str, k: int, name: str, options: argparse.Namespace) -> dict:
    """One worker's report; its output is shown if it fails."""
    extra = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, __file__, "--worker", name, "--shape", shape, "--k", str(k)]
        command += ["--steps", str(options.steps), "--json", str(report)]
        done = subprocess.run(command, env={**os.environ, **extra}, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            sys.exit(f"{name} ({shape}, K = {k}) failed:\n" + "\n".join(done.stderr.splitlines()[-25:]))
        return json.loads(report.read_text())


def run_all(options: argparse.Namespace) -> dict:
    """(shape, K, system) -> reports, one a repeat; the systems take turns."""
    kinds = list(itertools.product(options.shape, options.k))
    plan = [(*kind, name) for kind in kinds for _ in range(options.repeats) for name in SYSTEMS]
    found: dict = {}
    began = time.perf_counter()
    for number, key in enumerate(plan):
        spent = time.perf_counter() - began
        left = f", about {spent / number * (len(plan) - number) / 60:.0f} min left" if number else ""
        say(f"{number + 1}/{len(plan)} {key[0]}, K = {key[1]}: {key[2]}{left}")
        found.setdefault(key, []).append(run_worker(*key, options))
    return found


def table(shape: str, ks: list[int], found: dict) -> list[str]:
    lines = [
        "| K | system | s a step (range) | lists/s | comparisons/s | speed to TRL | peak GiB | memory to TRL |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for k in ks:
        seconds = {name: [x for run in found[shape, k, name] for x in run["seconds"]] for name in SYSTEMS}
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        peak = {name: statistics.median(run["peak_gib"] for run in found[shape, k, name]) for name in SYSTEMS}
        for name in SYSTEMS:
            rate = LISTS[k] / middle[name]
            spread = f"{min(seconds[name]):.2f}-{max(seconds[name]):.2f}"
            lines.append(
                f"| {k} | {name} | {middle[name]:.2f} ({spread}) | {rate:.2f} | {rate * k * (k - 1) / 2:.1f} | "
                f"{middle['trl'] / middle[name]:.2f} | {peak[name]:.2f} | {peak[name] / peak['trl']:.2f} |"
            )
    return lines


def provenance(options: argparse.Namespace, found: dict) -> str:
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415
    import trl  # noqa: PLC0415

    root = Path(__file__).resolve().parents[1]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True).stdout
    busy = max(x for runs in found.values() for run in runs for x in run["foreign_cores"])
    return (
        f"`{shlex.join(['python', *sys.argv])}`; {platform.machine()}, {options.threads} of {os.cpu_count()} cores; "
        f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}; "
        f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, commit {commit.strip()}; {options.repeats} repeats of "
        f"{options.steps} timed steps after one to warm up; others used at most {busy:.2f} cores meanwhile."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=("small", "tiny"), default=["small", "tiny"])
    parser.add_argument("--k", nargs="+", type=int, choices=LISTS, default=list(LISTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="timed optimizer steps a process")
    parser.add_argument("--quick", action="store_true", help="one repeat")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write everything that was measured here")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker, options.shape[0], options.k[0], options.steps, options.json)
    options.repeats = 1 if options.quick else options.repeats
    found = run_all(options)
    for shape in options.shape:
        print(f"\n### {shape}: prompts of {PROMPT} tokens, answers of {COMPLETION}\n")
        print("\n".join(table(shape, options.k, found)))
    print(f"\n{provenance(options, found)}")
    if options.json:
        named = {" ".join(map(str, key)): runs for key, runs in found.items()}
        options.json.write_text(json.dumps(named, indent=1) + "\n")


if __name__ == "__main__":
    main()
