"""Memory and speed of the data's way into training: 10^4, 10^5 and 10^6 rows of 1.1 KB.

They go through the loaders of pretrain, SFT, PPO and the reward model, first with nothing stored and then again.

`memory` is anonymous, what the processes themselves hold: pages of a mapped file, which the system drops when it needs
the room, are no part of it. Each run is a process of its own, in a folder that is removed with all that was stored in
it.

    python benchmarks/data_memory.py [--rows 10000 100000 1000000] [--row_bytes 1100] [--stages pretrain sft ppo]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

STAGES = ("pretrain", "sft", "ppo", "reward")
WORDS = (
    "the a cat dog sat on mat tree house river old new red blue green runs sees finds keeps gives under over".split()
)
READ = 256  # batches, as many as are read at the beginning and in the middle of an epoch
BATCH = 32


def write_rows(path: Path, stage: str, rows: int, size: int) -> None:
    """Rows of `size` bytes, no two alike."""
    rng = random.Random(0)
    pool = [" ".join(rng.choices(WORDS, k=100)) for _ in range(997)]
    with path.open("w", encoding="utf-8") as file:
        for at in range(rows):
            text = f"{at} {pool[at % 997]} {pool[at % 991]}"[: size - 60]
            half = len(text) // 2
            row = {
                "pretrain": {"text": text},
                "sft": {"prompt": text[:half], "completion": text[half:]},
                "ppo": {"prompt": text, "source": at},
                "reward": {"prompt": text[:half], "chosen": text[half:], "rejected": text[half:-9]},
            }[stage]
            file.write(json.dumps({**row, "source": "x" * 20} if stage == "ppo" else row) + "\n")


def anonymous() -> int:
    """Bytes of this process and of those that it has forked to tokenize; what they share counts once."""
    children = Path("/proc/self/task").glob("*/children")
    found = [os.getpid(), *(int(number) for path in children for number in path.read_text().split())]
    total = 0
    for number in found:
        with contextlib.suppress(OSError):  # it has ended
            lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
            total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon"))
    return total


class Peak(threading.Thread):
    """The most memory since the start."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most, self.ended = anonymous(), threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            self.most = max(self.most, anonymous())


def read(stage: str, path: Path, tokenizer) -> tuple[int, object, object]:
    """(tokens, the data set, what makes batches of it) as the stage has it."""
    from rlhf_kit.data import loading, tokens  # noqa: PLC0415

    kinds = {"pretrain": "text", "sft": "demonstrations", "ppo": "prompts", "reward": "pairs"}
    data, _ = loading.load(str(path), (kinds[stage],), tell=lambda _: None)
    if stage == "pretrain":
        from rlhf_kit.data.packing import PackedCollator  # noqa: PLC0415
        from rlhf_kit.data.packs import pack  # noqa: PLC0415
        from rlhf_kit.stages.pretrain import text_tokens  # noqa: PLC0415

        rows = pack(text_tokens(data, tokenizer, "texts"), 1024, tokenizer.eos_token_id)
        return rows.tokens, rows, PackedCollator(0)
    if stage == "sft":
        from rlhf_kit.sft import encode_demonstrations  # noqa: PLC0415

        rows, _ = encode_demonstrations(data, tokenizer, 1024, "train")
        return tokens.count_of(rows), rows, list
    if stage == "reward":
        from rlhf_kit.reward.data import ComparisonCollator, encode_comparisons  # noqa: PLC0415

        rows, _ = encode_comparisons(data, tokenizer, 1024)
        return tokens.count_of(rows), rows, ComparisonCollator(0)
    from rlhf_kit.ppo.prompts import encode_prompts  # noqa: PLC0415

    prompts = encode_prompts(data, tokenizer, 16, 1024)
    return int(prompts.lengths.sum()), prompts, list


def batches(stage: str, rows, collate) -> float:
    """Read batches in the order of training, at the beginning of an epoch and in its middle; rows a second."""
    from torch.utils.data import DataLoader  # noqa: PLC0415

    from rlhf_kit.ppo.prompts import prompt_order  # noqa: PLC0415
    from rlhf_kit.training.order import Shuffled  # noqa: PLC0415

    began, count = time.perf_counter(), 0
    if stage == "ppo":
        for first in range(0, READ * BATCH, 256):
            count += len([rows[at] for at in prompt_order(len(rows), range(first, first + 256), seed=0)])
    else:
        loader = DataLoader(rows, BATCH, sampler=Shuffled(rows), collate_fn=collate)
        for _ in zip(range(READ), loader, strict=False):
            count += BATCH
    return count / (time.perf_counter() - began)


def measure(stage: str, path: Path) -> dict:
    """One run, in this process."""
    from rlhf_kit.data import rows as rows_module  # noqa: PLC0415
    from rlhf_kit.memory import give_back, kept_memory  # noqa: PLC0415
    from rlhf_kit.stages.pretrain import train_tokenizer  # noqa: PLC0415

    rows_module.IN_MEMORY = 0  # all sizes go by files: small ones are kept in memory else
    rng = random.Random(1)
    tokenizer = train_tokenizer([" ".join(rng.choices(WORDS, k=100)) for _ in range(100)], 400)
    small = path.with_name("small.jsonl")
    write_rows(small, stage, 50, 1100)
    batches(stage, *read(stage, small, tokenizer)[1:])  # what is imported and made once
    give_back()
    before, peak = anonymous(), Peak()
    peak.start()
    began = time.perf_counter()
    tokens, rows, collate = read(stage, path, tokenizer)
    seconds = time.perf_counter() - began
    with kept_memory():  # as in training
        speed = batches(stage, rows, collate)
        held = anonymous()
    peak.ended.set()
    peak.join()
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "rows_per_second": speed,
        "held": held - before,
        "peak": peak.most - before,
    }


def one_run(stage: str, path: Path, cache: Path) -> dict:
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--measure", stage, str(path)]
    lines = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(lines.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--row_bytes", type=int, default=1100)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    print("| stage | rows | run | tokens/s | rows/s in batches | held, MB | peak, MB | bytes a row: held | peak |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for stage in options.stages:
        last: dict[str, tuple[int, dict]] = {}
        for rows in sorted(options.rows):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "rows.jsonl"
                write_rows(path, stage, rows, options.row_bytes)
                for run in ("first", "again"):
                    numbers = one_run(stage, path, Path(folder) / "cache")
                    slopes = ["", ""]
                    if run in last:
                        before, old = last[run]
                        slopes = [f"{(numbers[key] - old[key]) / (rows - before):.1f}" for key in ("held", "peak")]
                    last[run] = rows, numbers
                    cells = [f"{numbers['tokens_per_second']:,.0f}", f"{numbers['rows_per_second']:,.0f}"]
                    cells += [f"{numbers[key] / 1e6:.1f}" for key in ("held", "peak")]
                    print("|", " | ".join([stage, f"{rows:,}", run, *cells, *slopes]), "|", flush=True)


if __name__ == "__main__":
    main()
