"""`rlhf-kit plan` beside the peak memory of the run that it plans: `ru_maxrss` of the whole process, on a CPU.

    python benchmarks/plan_vs_measured.py            # six runs, a table for RESULTS.md
    python benchmarks/plan_vs_measured.py --floor    # runs of a model of no size: what the process itself takes

Weights are random and rows of one length, as the plan takes them to be: what is compared is the memory alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import harness
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_kit import cli, world
from rlhf_kit.planning.command import options_of, plan_of
from rlhf_kit.planning.machines import GIB

BASE = "--report_to none --disable_tqdm --save_strategy no --max_train_samples 64".split()


@dataclass(frozen=True)
class Cell:
    """A run: its stage, the shape of its model (a reward model has the same), and its options."""

    stage: str
    shape: dict[str, int]
    options: str
    words: int  # of each text
    more: dict[str, dict[str, int]] = field(default_factory=dict)  # other models, by folder


SMALL = {"n_layer": 6, "n_embd": 384, "n_head": 6, "vocab_size": 8000}
MEDIUM = {"n_layer": 8, "n_embd": 640, "n_head": 10, "vocab_size": 16000}
WIDE = {"n_layer": 4, "n_embd": 512, "n_head": 8, "vocab_size": 50257}
JUDGE = {"n_layer": 4, "n_embd": 384, "n_head": 6, "vocab_size": 8000}
PPO = "--rollout_batch_size 32 --mini_batch_size 16 --num_ppo_epochs 2 --max_steps 4 --reward_funcs judge "
PPO += "--max_completion_length 48"
CELLS = {
    "SFT, all weights": Cell("sft", MEDIUM, "--per_device_train_batch_size 8 --max_steps 3", 200),
    "SFT, LoRA": Cell("sft", WIDE, "--per_device_train_batch_size 8 --max_steps 3 --use_peft", 400),
    "reward": Cell(
        "reward", SMALL, "--per_device_train_batch_size 4 --gradient_accumulation_steps 2 --max_steps 2", 150
    ),
    "PPO, shared trunk": Cell("ppo", MEDIUM, f"{PPO} --per_device_train_batch_size 8", 100, {"judge": JUDGE}),
    "PPO, LoRA": Cell("ppo", MEDIUM, f"{PPO} --per_device_train_batch_size 8 --use_peft", 100, {"judge": JUDGE}),
    "PPO, value trunk, large vocabulary": Cell(
        "ppo", WIDE, f"{PPO} --per_device_train_batch_size 8 --value_model separate", 60, {"judge": JUDGE}
    ),
}

NOTHING = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 8000}
FLOORS = {
    "SFT of nothing": Cell("sft", NOTHING, "--per_device_train_batch_size 1 --max_steps 2", 10),
    "PPO of nothing": Cell("ppo", NOTHING, f"{PPO} --per_device_train_batch_size 8", 10, {"judge": NOTHING}),
}


def furnish(cell: Cell, folder: Path) -> list[str]:
    """Write models and data into a folder; the words of the stage's command line, without its name."""
    tokenizer = AutoTokenizer.from_pretrained(world.BASE)
    for name, shape in {"model": cell.shape, **cell.more}.items():
        kind = GPT2LMHeadModel if name == "model" else GPT2ForSequenceClassification
        ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = GPT2Config(**shape, **ends, num_labels=1, pad_token_id=tokenizer.eos_token_id)
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [row_of(cell, number) for number in range(64)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", "model", "--data", "rows.jsonl", "--output_dir", "out", *BASE, *cell.options.split()]
    return words


def row_of(cell: Cell, number: int) -> dict:
    words = " ".join(["cat", "sat", "mat", "dog"][(number + at) % 4] for at in range(cell.words // 2))
    if cell.stage == "ppo":
        return {"prompt": words}
    if cell.stage == "reward":
        return {"prompt": words, "completions": [f"{words} {end}" for end in ("a", "b", "c")]}
    return {"prompt": words, "completion": words}


def measured(cell: str, command: str) -> int:
    """Bytes that a process of its own has had in memory at once, or that its plan says."""
    environment = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, __file__, "--worker", command, "--cell", cell]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(f"{cell}, {command}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return int(done.stdout.splitlines()[-1])


def work(cell: Cell, command: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.run([sys.executable, __file__, "--furnish", folder, "--cell", name_of(cell)])
        assert child.returncode == 0
        os.chdir(folder)
        words = json.loads(Path("words.json").read_text())
        if command == "plan":
            plan = plan_of(*options_of([cell.stage, *words]))
            for line in plan.memory.lines:
                print(f"{line.key:12} {line.when:8} {line.bytes / GIB:.3f}", file=sys.stderr)
            return round(plan.memory.peak)
        assert cli.main([cell.stage, *words]) == 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def name_of(cell: Cell) -> str:
    return next(name for name, other in (CELLS | FLOORS).items() if other is cell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--within", type=float, help="end with 1 where a plan is further off than this share")
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--floor", action="store_true")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    parser.add_argument("--worker", choices=["plan", "run"], help=argparse.SUPPRESS)
    parser.add_argument("--furnish", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.floor:
        for name in FLOORS:
            print(f"{name}: {measured(name, 'run') / GIB:.2f} GiB")
        return
    if options.furnish:
        words = furnish((CELLS | FLOORS)[options.cell], options.furnish)
        (options.furnish / "words.json").write_text(json.dumps(words))
        return
    if options.worker:
        print(work((CELLS | FLOORS)[options.cell], options.worker))
        return
    rows, worst = [], 0.0
    for name in CELLS:
        if options.only in name:
            plan, run = (measured(name, command) / GIB for command in ("plan", "run"))
            rows.append([name, f"{plan:.2f}", f"{run:.2f}", f"{plan / run - 1:+.0%}"])
            print(rows[-1], file=sys.stderr)
            worst = max(worst, abs(plan / run - 1))
    print(harness.markdown(["run", "plan, GiB", "measured, GiB", "plan to measured"], rows))
    told = harness.facts(options, ["torch", "transformers", "trl", "peft"])
    print(f"\n`{told['command']}`; {told['machine']}; {told['versions']}; {told['date']}, commit {told['commit']}.")
    if options.within is not None and worst > options.within:
        sys.exit(f"a plan is off by {worst:.0%}")


if __name__ == "__main__":
    main()
