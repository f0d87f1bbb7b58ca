"""The same demonstrations through rlhf_kit's SFTTrainer and through TRL's at its defaults: tokens a second.

    python benchmarks/sft_vs_trl.py --quick
    python benchmarks/sft_vs_trl.py --shape small --repeats 3 --json runs/sft_vs_trl.json

All get the same rows of tokens, about half of them to be learnt, in bf16, and about as many an optimizer step. Ours
runs as `rlhf-kit sft` sets it up, without recomputing activations; TRL's default does, so TRL runs without that too.
"packed" has as many tokens in one row as the others have in a batch. A token counts once, and padding is none. Each
system runs in a process of its own, in turns; what is compared are medians. On a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
from dataclasses import dataclass

from harness import Clock, add_options, conclude, in_turns, markdown, run_worker, summary, with_range, write_json

FLOOR, TRL = "floor", "trl"
SYSTEMS = {  # name -> what it is, options besides those of all
    "ours": ("rlhf_kit", {"gradient_checkpointing": False}),
    "ours-packed": ("rlhf_kit, packed", {"gradient_checkpointing": False, "packing": True}),
    TRL: ("TRL 1.16, its defaults", {}),
    "trl-plain": ("TRL 1.16, activations kept", {"gradient_checkpointing": False}),
}


@dataclass(frozen=True)
class Kind:
    what: str
    rows: int  # a batch
    mean: int  # tokens a row

    @property
    def tokens(self) -> int:
        """Of a batch, in the mean."""
        return self.rows * self.mean


KINDS = {
    "short": Kind("the world's demonstrations, of 15 to 100 tokens", 16, 36),
    "long": Kind("random rows of 128 to 384 tokens", 4, 256),
}


# --- one system, in a process of its own ---------------------------------------------------------------------------


def rows_of(kind: str, batches: int) -> list[dict[str, list[int]]]:
    """Rows of tokens below 4,000, about half of them to be learnt."""
    count = KINDS[kind].rows * batches
    if kind == "short":
        from rlhf_kit import world  # noqa: PLC0415
        from rlhf_kit.models.checkpoints import load_tokenizer  # noqa: PLC0415
        from rlhf_kit.sft import encode_demonstrations  # noqa: PLC0415

        return list(
            encode_demonstrations(world.rows("demonstrations", size=count), load_tokenizer(world.BASE), None)[0]
        )
    draw = random.Random(0)
    texts = [[draw.randrange(3999) for _ in range(draw.randint(128, 384))] for _ in range(count)]
    return [{"input_ids": ids, "labels": [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]} for ids in texts]


def trainer_of(name: str, shape, data: str, batches: int, folder: str, callback):
    import trl  # noqa: PLC0415
    from datasets import Dataset  # noqa: PLC0415
    from ppo_work import config_of, tokenizer_of  # noqa: PLC0415
    from transformers import GPT2LMHeadModel, set_seed  # noqa: PLC0415

    from rlhf_kit.sft import SFTTrainer  # noqa: PLC0415

    set_seed(0)
    options, kind = SYSTEMS[name][1], KINDS[data]
    packed = options.get("packing", False)
    args = trl.SFTConfig(
        folder, **options, learning_rate=1e-6, bf16=True, num_train_epochs=1, save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        per_device_train_batch_size=1 if packed else kind.rows, max_length=kind.tokens if packed else 1024,
    )  # fmt: skip
    rows = Dataset.from_list(rows_of(data, batches))
    trainer = trl.SFTTrainer if name.startswith(TRL) else SFTTrainer
    model = GPT2LMHeadModel(config_of(shape))
    return trainer(model, args, train_dataset=rows, processing_class=tokenizer_of(shape), callbacks=[callback])


def work(name: str, shape, data: str, batches: int) -> dict:
    """Train on so many batches after one to warm up: seconds of them together, and their tokens."""
    from transformers import TrainerCallback  # noqa: PLC0415

    clock, tokens = Clock(), []

    class Ends(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (1, state.max_steps):
                clock.mark()

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(name, shape, data, batches + 1, folder, Ends())
        collate = trainer.data_collator

        def counted(rows):
            tokens.append(sum(len(row["input_ids"]) for row in rows))
            return collate(rows)

        trainer.data_collator = counted
        trainer.train()
    return clock.report() | {"tokens": sum(tokens[1:])}


def floor_of(shape, kind: Kind) -> dict:
    """Tokens a second of the matrix products alone, at the rate of this machine; the head reads what is learnt."""
    from ppo_floor import FORWARDS, head_flops, rate, trunk_flops  # noqa: PLC0415

    how, learnt = "training", kind.tokens // 2
    parts = {"trunk": (kind.tokens, trunk_flops(shape, kind.tokens)), "head": (learnt, head_flops(shape, learnt))}
    seconds = sum(FORWARDS[how] * flops / rate(shape, part, how, rows) for part, (rows, flops) in parts.items())
    return {"tokens_per_second": kind.tokens / seconds}


def worker(options: argparse.Namespace) -> dict:
    from ppo_work import SHAPES  # noqa: PLC0415

    shape, data = SHAPES[options.shape[0]], options.data[0]
    if options.worker == FLOOR:
        return floor_of(shape, KINDS[data])
    return work(options.worker, shape, data, options.batches)


# --- all of them ----------------------------------------------------------------------------------------------------


def table(reports: dict[str, dict[str, list[dict]]]) -> str:
    """Of one shape: kind of data -> system -> reports."""
    rows = []
    for kind, of_kind in reports.items():
        floor = statistics.median(report["tokens_per_second"] for report in of_kind[FLOOR])
        summaries = {name: summary(runs) for name, runs in of_kind.items() if name != FLOOR}
        rates = {name: of_kind[name][0]["tokens"] / row["seconds"] for name, row in summaries.items()}
        for name, row in summaries.items():
            rows.append(
                [kind, SYSTEMS[name][0], with_range(row), f"{rates[name]:.0f}", f"{rates[name] / rates[TRL]:.2f}",
                 f"{rates[name] / floor:.0%}", f"{row['peak_gib']:.2f}",
                 f"{row['peak_gib'] / summaries[TRL]['peak_gib']:.2f}"]
            )  # fmt: skip
    header = ["rows", "system", "seconds (range)", "tokens/s", "speed to TRL's defaults", "share of the floor"]
    return markdown([*header, "peak GiB", "memory to TRL's defaults"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=("small", "tiny"), default=["small", "tiny"])
    parser.add_argument("--data", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--batches", type=int, default=8, help="timed batches a process")
    add_options(parser, [FLOOR, *SYSTEMS], "one repeat of two batches")
    options = parser.parse_args()
    if options.worker:
        return write_json(options.json, worker(options))
    if options.quick:
        options.repeats, options.batches = 1, 2

    def run(kind: tuple, system: str) -> dict:
        shape, data = kind
        arguments = {"shape": shape, "data": data, "batches": options.batches}
        return run_worker(options, system, arguments, {"PYTHONWARNINGS": "ignore"})

    reports = in_turns(list(itertools.product(options.shape, options.data)), [FLOOR, *SYSTEMS], options, run)
    for shape in options.shape:
        sizes = "; ".join(f"{name}: {it.rows} rows a batch, {it.what}" for name, it in KINDS.items())
        print(f"\n### {shape}\n\n{sizes}.\n")
        print(table({data: reports[shape, data] for data in options.data}))
    conclude(options, reports, ["torch", "transformers", "trl"], f"{options.batches} batches after one to warm up")


if __name__ == "__main__":
    main()
