"""Multiple choice by log-likelihood: rlhf_kit, a forward for every choice, and lm-evaluation-harness's HF backend.

    python benchmarks/icl_vs_lm_eval.py --quick
    python benchmarks/icl_vs_lm_eval.py --shape small --repeats 3 --json runs/icl_vs_lm_eval.json

Items with a context of 400 tokens (a passage, or shots, and a question) and four choices; the same text for all, and
asked for are the same log-likelihoods. Choices of eight tokens, and of one: there lm-evaluation-harness has the
context in common too. `small` has the shape of GPT-2 (124 M), with random weights. Each system runs in a process of
its own, in turns; what is compared are medians. lm-evaluation-harness is installed apart, in ~/.cache/rlhf_kit-bench,
and is left out where it cannot be. On a CPU.
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

CONTEXT, CHOICES = 400, 4
OURS, FORWARD, HARNESS = "ours", "a forward a choice", "lm-evaluation-harness"
SYSTEMS = (OURS, FORWARD, HARNESS)
DTYPES = ("float32", "bfloat16")


# --- one system, in a process of its own ---------------------------------------------------------------------------


def items_of(count: int, tokens: int, vocabulary: int, seed: int) -> list[tuple[str, list[str]]]:
    """(context, choices)."""
    from text_work import words  # noqa: PLC0415

    draw = random.Random(seed)
    return [
        (words(draw, vocabulary, CONTEXT), [f" {words(draw, vocabulary, tokens)}" for _ in range(CHOICES)])
        for _ in range(count)
    ]


def totals(system: str, model, tokenizer, items: list[tuple[str, list[str]]]) -> list[float]:
    """Log-likelihood in nats of every choice of every item, in order."""
    if system == HARNESS:
        from text_work import lm_eval_asked  # noqa: PLC0415

        asked = [(context, choice) for context, choices in items for choice in choices]
        return [total for total, _ in lm_eval_asked(model, tokenizer, "loglikelihood", asked)]
    ids = [(tokenizer(context)["input_ids"], tokenizer(choices)["input_ids"]) for context, choices in items]
    if system == FORWARD:
        return [by_forward(model, context, choice) for context, choices in ids for choice in choices]
    from rlhf_kit.generation.likelihood import Request, likelihoods  # noqa: PLC0415

    found = dict(likelihoods(model, [Request(*each) for each in ids]))
    return [likely.total for at in range(len(ids)) for likely in found[at]]


def by_forward(model, context: list[int], choice: list[int]) -> float:
    import torch  # noqa: PLC0415

    read, tokens = torch.tensor([context + choice[:-1]]), torch.tensor(choice)
    logprobs = model(read).logits[0, -len(choice) :].float().log_softmax(-1)
    return logprobs.gather(1, tokens[:, None]).sum().item()


def worker(options: argparse.Namespace) -> dict:
    import torch  # noqa: PLC0415
    from text_work import model_of, tokenizer_of  # noqa: PLC0415

    model, clock = model_of(options.shape[0], options.dtype[0]), Clock()
    vocabulary, tokens = model.config.vocab_size, options.tokens[0]
    tokenizer = tokenizer_of(vocabulary)
    with torch.inference_mode():
        totals(options.worker, model, tokenizer, items_of(1, tokens, vocabulary, 1))  # warms up
        items = items_of(options.items, tokens, vocabulary, 0)
        clock.mark()
        found = totals(options.worker, model, tokenizer, items)
        clock.mark()
    return clock.report() | {"totals": found}


# --- all of them ----------------------------------------------------------------------------------------------------


def chosen(likely: list[float]) -> list[int]:
    """The likeliest choice of each item."""
    items = [likely[start : start + CHOICES] for start in range(0, len(likely), CHOICES)]
    return [values.index(max(values)) for values in items]


def table(options: argparse.Namespace, found: dict) -> str:
    rows = []
    for (shape, dtype, tokens), of_kind in found.items():
        rows_of = {name: summary(runs) for name, runs in of_kind.items()}
        ours = of_kind[OURS][0]["totals"]
        for name, row in rows_of.items():
            theirs = of_kind[name][0]["totals"]
            same = sum(a == b for a, b in zip(chosen(theirs), chosen(ours), strict=True)) / options.items
            furthest = max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
            rows.append(
                [shape, dtype, str(tokens), name, with_range(row), f"{options.items / row['seconds']:.2f}",
                 f"{row['seconds'] / rows_of[OURS]['seconds']:.2f}", f"{row['peak_gib']:.2f}", f"{same:.0%}",
                 f"{furthest:.1e}"]
            )  # fmt: skip
    header = ["shape", "weights", "tokens a choice", "system", "s (range)", "items/s", "ours to it", "peak GiB"]
    return markdown([*header, "same choice as ours", "furthest from ours (nats)"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=("small", "tiny"), default=["small"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[8, 1], help="of a choice")
    parser.add_argument("--items", type=int, default=16)
    add_options(parser, SYSTEMS, "one repeat of four items, the tiny shape")
    options = parser.parse_args()
    if options.worker:
        return write_json(options.json, worker(options))
    if options.quick:
        options.shape, options.repeats, options.items = ["tiny"], 1, 4

    def run(kind: tuple, system: str) -> dict:
        shape, dtype, tokens = kind
        asked = {"shape": shape, "dtype": dtype, "tokens": tokens, "items": options.items}
        return run_worker(options, system, asked, LM_EVAL.environment if system == HARNESS else {})

    systems = [name for name in SYSTEMS if name != HARNESS or LM_EVAL.install()]
    found = in_turns(list(itertools.product(options.shape, options.dtype, options.tokens)), systems, options, run)
    print(table(options, found))
    work = f"{options.items} items x {CHOICES} choices, contexts of {CONTEXT} tokens"
    conclude(options, found, ["torch", "transformers", *[LM_EVAL.requirement] * (HARNESS in systems)], work)


if __name__ == "__main__":
    main()
