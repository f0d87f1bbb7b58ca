"""All turns of CoQA-like dialogues by rlhf_kit, by `generate` anew for every turn, and by lm-evaluation-harness.

    python benchmarks/coqa_vs_peers.py --quick
    python benchmarks/coqa_vs_peers.py --repeats 3 --json runs/coqa_vs_peers.json

Stories of 270 words (351 tokens) and 15 turns, gold history, the same prompts for all, as text; greedy, and every
answer of the same number of tokens, since random weights write no newline. Each system runs in a process of its own,
in turns; what is compared are medians. lm-evaluation-harness is installed apart, in ~/.cache/rlhf_kit-bench, and is
left out where it cannot be. On a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import random

from harness import (
    LM_EVAL,
    Clock,
    add_options,
    conclude,
    in_turns,
    markdown,
    run_worker,
    summary,
    with_range,
    write_json,
)

STORY, QUESTION, ANSWER, TURNS = 351, 8, 4, 15  # tokens: CoQA's means in words x 1.3, and its turns
OURS, GENERATE, BATCHED, HARNESS = "ours", "generate", "generate, 16 at once", "lm-evaluation-harness"
SYSTEMS = (OURS, GENERATE, BATCHED, HARNESS)
DTYPES = ("float32", "bfloat16")


# --- one system, in a process of its own ---------------------------------------------------------------------------


def stories_of(count: int, vocabulary: int, seed: int) -> list:
    from text_work import words  # noqa: PLC0415

    from rlhf_kit.data.coqa import Story  # noqa: PLC0415

    draw = random.Random(seed)

    def text(size: int) -> str:
        return words(draw, vocabulary, size)

    return [
        Story(
            str(at), "generated", text(STORY), tuple(text(QUESTION) for _ in range(TURNS)),
            tuple((text(ANSWER),) for _ in range(TURNS)),
        )
        for at in range(count)
    ]  # fmt: skip


def answers(system: str, model, tokenizer, stories: list, new_tokens: int) -> list[str]:
    """Of every turn of every story, in order."""
    from text_work import BATCH, lm_eval_asked  # noqa: PLC0415

    from rlhf_kit.eval.coqa.turns import Prompts, answer_by_gold, gold  # noqa: PLC0415
    from rlhf_kit.generation.decoding import DEFAULT_BATCH_TOKENS, Decoding  # noqa: PLC0415

    how, prompts = Decoding(new_tokens), Prompts(tokenizer, model.config.n_positions, new_tokens)
    if system == OURS:
        found = answer_by_gold(model, prompts, stories, how, DEFAULT_BATCH_TOKENS)
        by_turn = {(one.story.id, one.turn): one.continuation.answer for one in found}
        return [by_turn[story.id, turn] for story in stories for turn in range(TURNS)]
    asked = [prompts.prompt(story, turn, gold(story)).text for story in stories for turn in range(TURNS)]
    if system == HARNESS:
        how = {"until": ["\n"], "max_gen_toks": new_tokens, "do_sample": False}
        return [text.strip() for text in lm_eval_asked(model, tokenizer, "generate_until", [(t, how) for t in asked])]
    return by_generate(model, tokenizer, asked, new_tokens, 1 if system == GENERATE else BATCH)


def by_generate(model, tokenizer, asked: list[str], new_tokens: int, batch: int) -> list[str]:
    order = sorted(range(len(asked)), key=lambda at: -len(asked[at]))
    found = {}
    for numbers in (order[start : start + batch] for start in range(0, len(order), batch)):
        inputs = tokenizer([asked[at] for at in numbers], padding=True, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found |= dict(zip(numbers, texts, strict=True))
    return [found[at].strip() for at in range(len(asked))]


def worker(options: argparse.Namespace) -> dict:
    import torch  # noqa: PLC0415
    from text_work import model_of, tokenizer_of  # noqa: PLC0415

    model, clock = model_of(options.shape[0], options.dtype[0]), Clock()
    vocabulary = model.config.vocab_size
    tokenizer = tokenizer_of(vocabulary)
    with torch.inference_mode():
        answers(options.worker, model, tokenizer, stories_of(1, vocabulary, 1), 2)  # warms up
        stories = stories_of(options.stories, vocabulary, 0)
        clock.mark()
        said = answers(options.worker, model, tokenizer, stories, options.new_tokens)
        clock.mark()
    return clock.report() | {"answers": said}


# --- all of them ----------------------------------------------------------------------------------------------------


def table(options: argparse.Namespace, found: dict) -> str:
    rows = []
    for (shape, dtype), of_kind in found.items():
        rows_of = {name: summary(runs) for name, runs in of_kind.items()}
        ours = of_kind[OURS][0]["answers"]
        for name, row in rows_of.items():
            same = sum(map(str.__eq__, of_kind[name][0]["answers"], ours)) / len(ours)
            rate = options.stories * TURNS / row["seconds"]
            times = row["seconds"] / rows_of[OURS]["seconds"]
            rows.append(
                [shape, dtype, name, with_range(row), f"{rate:.2f}", f"{times:.2f}", f"{row['peak_gib']:.2f}",
                 f"{same:.0%}"]
            )  # fmt: skip
    header = ["shape", "weights", "system", "s (range)", "questions/s", "ours to it", "peak GiB"]
    return markdown([*header, "same answers as ours"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=("small", "tiny"), default=["small"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--stories", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=8)
    add_options(parser, SYSTEMS, "one repeat of two stories, the tiny shape")
    options = parser.parse_args()
    if options.worker:
        return write_json(options.json, worker(options))
    if options.quick:
        options.shape, options.repeats, options.stories = ["tiny"], 1, 2

    def run(kind: tuple, system: str) -> dict:
        shape, dtype = kind
        asked = {"shape": shape, "dtype": dtype, "stories": options.stories, "new-tokens": options.new_tokens}
        return run_worker(options, system, asked, LM_EVAL.environment if system == HARNESS else {})

    systems = [name for name in SYSTEMS if name != HARNESS or LM_EVAL.install()]
    found = in_turns(list(itertools.product(options.shape, options.dtype)), systems, options, run)
    print(table(options, found))
    work = f"{options.stories} stories x {TURNS} turns, answers of {options.new_tokens} tokens"
    conclude(options, found, ["torch", "transformers", *[LM_EVAL.requirement] * (HARNESS in systems)], work)


if __name__ == "__main__":
    main()
