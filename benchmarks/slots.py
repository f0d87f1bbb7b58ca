"""Sampling the world's prompts in slots: seconds of CPU for 480 answers, and how often the model read.

rlhf-kit demo --output_dir runs/demo
python benchmarks/slots.py runs/demo/sft
python benchmarks/slots.py --same runs/demo/sft     do tokens depend on the batch? In bf16 too, and of GPT-2's shape
An earlier commit: git worktree add /tmp/before COMMIT; PYTHONPATH=/tmp/before python benchmarks/slots.py runs/demo/sft
"""

from __future__ import annotations

import sys
import time
from itertools import takewhile

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_kit import world
from rlhf_kit.data.chat import encode_prompt
from rlhf_kit.generation.reading import Cached
from rlhf_kit.generation.sampling import sample
from rlhf_kit.models.checkpoints import end_ids, load_policy, load_tokenizer
from rlhf_kit.models.prepacked import prepacked

ANSWERS, REPEATS = 480, 3
ROWS = 32  # of GPT-2 small's shape


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


def same(folder: str) -> None:
    """The same prompts and seeds alone, in slots and all at once: which rows come out otherwise, and from where."""
    world_model, tokenizer = load_policy(folder).eval(), load_tokenizer(folder)
    prompts = [encode_prompt(tokenizer, row["prompt"]) for row in world.rows("prompts", "train")]
    torch.manual_seed(0)
    shape = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)).eval()
    print(
        "| model | computes in | beside each row alone | rows that differ | tokens before they do |\n"
        + "| --- " * 5
        + "|"
    )
    for name, model, texts, ends, tokens in [
        ("the world's", world_model, prompts[:ANSWERS], end_ids(world_model, tokenizer), 40),
        ("GPT-2 small's shape, random weights", shape, prompts[:ROWS], [0], 32),
    ]:
        for dtype in (torch.float32, torch.bfloat16):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16), prepacked(model):
                alone, *others = [
                    sample(
                        model, texts, eos_ids=ends, pad_id=0, max_completion_length=tokens, temperature=0.7,
                        seeds=range(len(texts)), batch_size=size, compact=False,
                    ).completions()
                    for size in (1, 8, len(texts))
                ]  # fmt: skip
            for size, rows in zip((8, len(texts)), others, strict=True):
                equal = [sum(takewhile(bool, map(int.__eq__, *pair))) for pair in zip(alone, rows, strict=True)]
                differ, total = sum(x != y for x, y in zip(alone, rows, strict=True)), sum(map(len, alone))
                print(
                    f"| {name} | {str(dtype).removeprefix('torch.')} | {size} slots | {differ} of {len(texts)} = "
                    f"{differ / len(texts):.1%} | {sum(equal)} of {total} = {sum(equal) / total:.1%} |",
                    flush=True,
                )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if sys.argv[1] == "--same":
        same(sys.argv[2])
    else:
        main(sys.argv[1], [int(size) for size in sys.argv[2:]] or [16, 64, ANSWERS])
