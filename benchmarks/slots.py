"""Sampling the world's prompts in slots: seconds of CPU for 480 answers, and how often the model read.

rlhf-kit demo --output_dir runs/demo
python benchmarks/slots.py runs/demo/sft
An earlier commit: git worktree add /tmp/before COMMIT; PYTHONPATH=/tmp/before python benchmarks/slots.py runs/demo/sft
"""

from __future__ import annotations

import sys
import time

import torch

from rlhf_kit import world
from rlhf_kit.data.chat import encode_prompt
from rlhf_kit.generation.reading import Cached
from rlhf_kit.generation.sampling import sample
from rlhf_kit.models.checkpoints import end_ids, load_policy, load_tokenizer

ANSWERS, REPEATS = 480, 3


def main(folder: str, slots: list[int]) -> None:
    torch.set_num_threads(1)
    model, tokenizer = load_policy(folder).eval(), load_tokenizer(folder)
    prompts = [encode_prompt(tokenizer, row["prompt"]) for row in world.rows("prompts", "train")][:ANSWERS]
    reads, read = 0, Cached.read

    def counted(self: Cached):
        nonlocal reads
        reads += 1
        return read(self)

    Cached.read = counted

    def answers(size: int) -> None:
        sample(
            model, prompts, eos_ids=end_ids(model, tokenizer), pad_id=tokenizer.pad_token_id, max_completion_length=40,
            temperature=0.7, generator=torch.Generator().manual_seed(0), batch_size=size, compact=False,
        )  # fmt: skip

    answers(ANSWERS)
    print("| slots | seconds of CPU | forwards of the batch |\n| --- | --- | --- |")
    for size in slots:
        seconds, reads = [], 0
        for _ in range(REPEATS):
            start = time.process_time()
            answers(size)
            seconds.append(time.process_time() - start)
        spread = f"{sorted(seconds)[REPEATS // 2]:.2f} ({min(seconds):.2f}-{max(seconds):.2f})"
        print(f"| {size} | {spread} | {reads // REPEATS} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], [int(size) for size in sys.argv[2:]] or [16, 64, ANSWERS])
