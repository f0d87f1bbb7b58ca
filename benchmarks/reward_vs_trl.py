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
import tempfile

from harness import Clock, add_options, conclude, in_turns, markdown, run_worker, summary, with_range, write_json

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
    from ppo_work import config_of, tokenizer_of  # noqa: PLC0415
    from transformers import GPT2ForSequenceClassification, set_seed  # noqa: PLC0415

    set_seed(0)
    model = GPT2ForSequenceClassification(config_of(shape, num_labels=1))
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


def worker(options: argparse.Namespace) -> dict:
    from ppo_work import SHAPES  # noqa: PLC0415
    from transformers import TrainerCallback  # noqa: PLC0415

    clock = Clock()

    class Steps(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            clock.mark()  # first after the step that warms up

    with tempfile.TemporaryDirectory() as folder:
        shape, k = SHAPES[options.shape[0]], options.k[0]
        trainer_of(options.worker, shape, k, options.steps + 1, folder, Steps()).train()
    return clock.report()


# --- all of them ----------------------------------------------------------------------------------------------------


def table(found: dict) -> str:
    """Of one shape: K -> system -> reports."""
    rows = []
    for k, of_k in found.items():
        rows_of = {name: summary(runs) for name, runs in of_k.items()}
        trl = rows_of["trl"]
        for name, row in rows_of.items():
            rate = LISTS[k] / row["seconds"]
            rows.append(
                [str(k), name, with_range(row), f"{rate:.2f}", f"{rate * k * (k - 1) / 2:.1f}",
                 f"{trl['seconds'] / row['seconds']:.2f}", f"{row['peak_gib']:.2f}",
                 f"{row['peak_gib'] / trl['peak_gib']:.2f}"]
            )  # fmt: skip
    header = ["K", "system", "s a step (range)", "lists/s", "comparisons/s", "speed to TRL", "peak GiB"]
    return markdown([*header, "memory to TRL"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=("small", "tiny"), default=["small", "tiny"])
    parser.add_argument("--k", nargs="+", type=int, choices=LISTS, default=list(LISTS))
    parser.add_argument("--steps", type=int, default=1, help="timed optimizer steps a process")
    add_options(parser, SYSTEMS, "one repeat")
    options = parser.parse_args()
    if options.worker:
        return write_json(options.json, worker(options))
    options.repeats = 1 if options.quick else options.repeats

    def run(kind: tuple, system: str) -> dict:
        shape, k = kind
        return run_worker(options, system, {"shape": shape, "k": k, "steps": options.steps}, {})

    found = in_turns(list(itertools.product(options.shape, options.k)), SYSTEMS, options, run)
    for shape in options.shape:
        print(f"\n### {shape}: prompts of {PROMPT} tokens, answers of {COMPLETION}\n")
        print(table({k: found[shape, k] for k in options.k}))
    work = f"{options.steps} timed steps after one to warm up"
    conclude(options, found, ["torch", "transformers", "trl"], work)


if __name__ == "__main__":
    main()
