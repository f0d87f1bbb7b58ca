"""PPO on an accelerator, beside TRL's RLOO and the bandwidth of its memory: GPT-2 small's shape, in ten minutes.

    python benchmarks/gpu.py --json runs/gpu.json
    python benchmarks/gpu.py --device cpu --shape tiny --quick

Nothing is downloaded. TRL 1.12, the last with PPO, is measured where `ppo_vs_trl.py` has installed it before. Each
system runs in a process of its own, on the first device: one rollout to warm up, then as many as its share of the time
allows. The sampler's floor is the time to read all weights and the cache once a token, at the rate of a plain copy.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import add_options, conclude, markdown, run_worker, say, summary, with_range, write_json
from ppo_vs_trl import TRL_112
from ppo_vs_trl import environment as environment_of
from ppo_work import LONGEST, SHORTEST, Shape, ppo_of, rloo, silenced, synchronize, trl_112
from transformers import TrainerCallback

OURS, RLOO, OLD = "ours-shared", "rloo", "trl112"
NAMES = {OURS: "rlhf_kit PPO, shared value", RLOO: "TRL 1.16 RLOO (no value function)", OLD: "TRL 1.12 PPO"}
SHAPES = {  # name -> the work, tokens a completion
    "small": (Shape(12, 768, 12, 50_257, rollout=256, micro=32), 128),
    "tiny": (Shape(4, 256, 4, 4_000, rollout=8, micro=4), 8),
}
MOST = 12  # rollouts
BF16 = 2  # bytes


# --- one system, in a process of its own ---------------------------------------------------------------------------


class Deadline(TrainerCallback):
    """Ends a run after its second rollout at the earliest, where the next would pass the time."""

    def __init__(self, steps: int, seconds: float):
        self.steps, self.seconds, self.times = steps, seconds, [time.perf_counter()]

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self.times.append(time.perf_counter())
            took = self.times[-1] - self.times[-2]
            if len(self.times) > 2 and self.times[-1] + took - self.times[0] > self.seconds:
                control.should_training_stop = True


def rate_of(work: Callable[[], object], amount: float, times: int) -> float:
    """`amount` a second, where `work` does so much."""
    work()
    synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    synchronize()
    return amount * times / (time.perf_counter() - began)


def bandwidth(device: str) -> float:
    """Bytes a second that a copy in the device's memory reads and writes."""
    source = torch.zeros(2**28 if device != "cpu" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return rate_of(lambda: target.copy_(source), 2 * source.nbytes, 20)


def bytes_a_step(shape: Shape, tokens: int) -> float:
    """What the sampling of a token for all rows must read: bf16 weights, and of each row the cache so far."""
    weights = 12 * shape.layers * shape.width**2 + shape.width * shape.vocabulary
    cached = (SHORTEST + LONGEST) / 2 + tokens / 2
    return BF16 * (weights + shape.rollout * cached * 2 * shape.layers * shape.width)


def ours(shape: Shape, folder: Path, seconds: float, tokens: int, on_cpu: bool) -> dict:
    sizes = {"max_completion_length": tokens, "per_device_eval_batch_size": shape.micro}
    trainer, meter = ppo_of(shape, MOST, folder, use_cpu=on_cpu, **sizes)
    trainer.add_callback(Deadline(trainer.args.steps_per_rollout, seconds))
    trainer.train()
    report = meter.report(trainer)
    trainer.model.eval()
    rows = [trainer.prompts[at] for at in range(shape.rollout)]
    sampled = rate_of(lambda: trainer.sample(rows, torch.Generator().manual_seed(0)), shape.rollout * tokens, 2)
    floor = bandwidth(trainer.args.device.type) / bytes_a_step(shape, tokens) * shape.rollout
    return report | {"sampled_per_second": sampled, "sampling_floor": floor}


def worker(options: argparse.Namespace) -> dict:
    shape, tokens = SHAPES[options.shape]
    on_cpu = options.device == "cpu"
    with silenced(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.worker == OURS:
            report = ours(shape, folder, options.seconds, tokens, on_cpu)
        elif options.worker == RLOO:
            deadline = Deadline(shape.steps, options.seconds)
            sizes = {"max_completion_length": tokens, "use_cpu": on_cpu}
            report = rloo(shape, MOST, folder, [deadline], **sizes)
        else:  # it looks at no callback's wish to stop
            report = trl_112(shape, 2, folder, response_length=tokens, use_cpu=on_cpu)
    return report | {"device_gib": 0.0 if on_cpu else torch.accelerator.max_memory_allocated() / 2**30}


# --- all of them ----------------------------------------------------------------------------------------------------


def environment(system: str, device: str) -> dict[str, str]:
    """The first device alone: the trainers take one a process."""
    found = environment_of(system)
    if device != "cpu":
        found.pop("ACCELERATE_USE_CPU", None)
        found["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return found


def table(reports: dict[str, list[dict]], shape: Shape) -> str:
    """system -> reports; none where it failed or did not end in time."""
    rates = {name: shape.rollout / summary(runs)["seconds"] for name, runs in reports.items() if runs}
    rows = []
    for name, runs in reports.items():
        if not runs:
            rows.append([NAMES[name], "no figure", *[""] * 6])
            continue
        ratios = [f"{rates[name] / rates[base]:.2f}" if base in rates else "" for base in (OLD, RLOO)]
        row = [NAMES[name], with_range(summary(runs)), f"{rates[name]:.1f}", *ratios]
        sampled = runs[-1].get("sampled_per_second")
        of_sampler = [f"{sampled:,.0f}", f"{sampled / runs[-1]['sampling_floor']:.0%}"] if sampled else ["", ""]
        rows.append([*row, *of_sampler, f"{max(run['device_gib'] for run in runs):.2f}"])
    header = ["system", "s a rollout (range)", "episodes/s", "speed to TRL 1.12", "speed to RLOO"]
    return markdown([*header, "sampled tokens/s", "share of the bandwidth floor", "peak of device (GiB)"], rows)


def device_name(device: str) -> str:
    module = torch.get_device_module(device)
    return module.get_device_name() if hasattr(module, "get_device_name") else device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu: to try the script")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--minutes", type=float, default=10, help="for everything")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    add_options(parser, list(NAMES), "one timed rollout a system")
    parser.set_defaults(repeats=1)
    options = parser.parse_args()
    if options.worker:
        return write_json(options.json, worker(options))
    if options.device == "auto" and not torch.accelerator.is_available():
        return print("There is no GPU here, so nothing was measured. (--device cpu --shape tiny tries the script.)")
    device = "cpu" if options.device == "cpu" else torch.accelerator.current_accelerator().type
    shape, tokens = SHAPES[options.shape]
    systems = [OURS, RLOO, *([OLD] if (TRL_112.folder / TRL_112.module).is_dir() else [])]
    share = 60 * options.minutes / options.repeats / len(systems)
    reports: dict[str, list[dict]] = {name: [] for name in systems}
    for name in [*systems] * options.repeats:
        say(f"{name}: at most {share:.0f} s")
        arguments = {"device": options.device, "shape": options.shape, "seconds": 0 if options.quick else share / 2}
        try:
            reports[name].append(run_worker(options, name, arguments, environment(name, device), share))
        except (subprocess.TimeoutExpired, SystemExit) as fault:  # the others are measured all the same
            say(f"{name} has no figure: {fault}")
    print(
        f"\n{device_name(device)}: {shape.layers} layers x {shape.width}, V {shape.vocabulary:,}, random weights; "
        f"rollouts of {shape.rollout} completions of {tokens} tokens, 4 epochs of one mini-batch, bf16.\n"
    )
    print(table(reports, shape))
    if any(reports.values()):
        conclude(options, {(device,): reports}, ["torch", "transformers", "trl"], "rollouts after one to warm up")


if __name__ == "__main__":
    main()
