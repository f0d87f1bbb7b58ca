"""Answers to XQuAD-zh and DRCD dev by rlhf_kit, and as it is commonly done: windows padded to 384, nested loops.

    python benchmarks/extractive_vs_reference.py --limit 40
    python benchmarks/extractive_vs_reference.py --repeats 3 --json runs/extractive_vs_reference.json

A BERT of base size with random weights, on a CPU. Both get the same questions and tokenizer (a token a Chinese
character, a token a Latin word) and the same windows: 384 tokens, 128 shared. The reference pads each window to 384,
takes 8 at once, and searches 20 x 20 pairs of a window in a Python loop. They take turns in one process; what is
compared are medians. Before that both answer `--check` questions in float32, where every answer must be the same or,
where the loop's cut at 20 hid a better span, score higher; without the cut all must be the same. Post-processing alone
is timed on the first 1,000 questions, from drawn logits.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import transformers
from harness import foreign_cpu, say, write_json
from transformers import BertConfig, BertForQuestionAnswering, BertTokenizer

from rlhf_kit.eval.extractive.data import Question, read_questions
from rlhf_kit.eval.extractive.predict import postprocess, predictions
from rlhf_kit.eval.extractive.windows import make_windows

ROOT = Path(__file__).resolve().parents[1]
DATA = {
    "xquad-zh": ROOT.parent / "shared" / "data" / "xquad" / "xquad.zh.json",
    "drcd-dev": ROOT.parent / "shared" / "data" / "drcd" / "DRCD_dev.json",
}
MAX_LENGTH, OVERLAP, N_BEST, LONGEST, BATCH = 384, 128, 20, 30, 8
POSTPROCESSED = 1000  # the first questions, on which post-processing alone is timed
OURS, REFERENCE = "ours", "reference"
SHAPES = {"base": (12, 768, 12), "tiny": (2, 128, 2)}  # layers, width, heads


def tokenizer_of(questions: list[Question]) -> BertTokenizer:
    texts = [one.context + " " + one.question for one in questions]
    letters = sorted({letter for text in texts for letter in text if not letter.isspace()})
    words = sorted({word.strip(".,;:()%") for text in texts for word in text.split() if word.isascii()} - {""})
    pieces = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *words])
    return BertTokenizer(vocab={piece: at for at, piece in enumerate(pieces)}, do_lower_case=False)


# --- ours -----------------------------------------------------------------------------------------------------------


def by_ours(model, tokenizer, questions: list[Question], max_batch_tokens: int) -> list[str]:
    windows = make_windows(questions, tokenizer, MAX_LENGTH, overlap=OVERLAP)
    found = predictions(model, tokenizer.pad_token_id, questions, windows, LONGEST, N_BEST, max_batch_tokens)
    texts = {one.id: one.text for one in found}
    return [texts[one.id] for one in questions]


# --- the reference --------------------------------------------------------------------------------------------------


def features_of(tokenizer, questions: list[Question]):
    encoded = tokenizer(
        [one.question for one in questions], [one.context for one in questions], truncation="only_second",
        max_length=MAX_LENGTH, stride=OVERLAP, return_overflowing_tokens=True, return_offsets_mapping=True,
        padding="max_length",
    )  # fmt: skip
    for at, offsets in enumerate(encoded["offset_mapping"]):
        owners = encoded.sequence_ids(at)
        encoded["offset_mapping"][at] = [
            offset if owner == 1 else None for offset, owner in zip(offsets, owners, strict=True)
        ]
    return encoded


@torch.inference_mode()
def logits_of(model, encoded) -> tuple[np.ndarray, np.ndarray]:
    starts, ends = [], []
    names = ("input_ids", "attention_mask", "token_type_ids")
    for low in range(0, len(encoded["input_ids"]), BATCH):
        out = model(**{name: torch.tensor(encoded[name][low : low + BATCH]) for name in names})
        starts.append(out.start_logits.float().numpy())
        ends.append(out.end_logits.float().numpy())
    return np.concatenate(starts), np.concatenate(ends)


def by_loops(questions: list[Question], encoded, starts, ends, cut: int | None = N_BEST) -> list[dict]:
    """The best of each question with its n-best list, as in Hugging Face's utils_qa.py."""
    windows: dict[int, list[int]] = {}
    for row, number in enumerate(encoded["overflow_to_sample_mapping"]):
        windows.setdefault(number, []).append(row)
    found = []
    for number, one in enumerate(questions):
        spans = []
        for row in windows[number]:
            first, last, offsets = starts[row], ends[row], encoded["offset_mapping"][row]
            best_last = np.argsort(-last, kind="stable")[:cut].tolist()
            for begin in np.argsort(-first, kind="stable")[:cut].tolist():
                for end in best_last:
                    if offsets[begin] is None or offsets[end] is None or end < begin or end - begin + 1 > LONGEST:
                        continue
                    place = (offsets[begin][0], offsets[end][1])
                    spans.append({"score": first[begin] + last[end], "offsets": place})
        best = sorted(spans, key=lambda span: span["score"], reverse=True)[:N_BEST]
        if not best:  # 20 x 20 pairs may hold no allowed span
            found.append({"score": -np.inf, "text": ""})
            continue
        weights = np.exp(np.array([span["score"] for span in best]) - best[0]["score"])
        for span, share in zip(best, weights / weights.sum(), strict=True):
            span["probability"] = share
            span["text"] = one.context[span["offsets"][0] : span["offsets"][1]]
        found.append(best[0])
    return found


def by_reference(model, tokenizer, questions: list[Question]) -> list[str]:
    encoded = features_of(tokenizer, questions)
    return [best["text"] for best in by_loops(questions, encoded, *logits_of(model, encoded))]


# --- both -----------------------------------------------------------------------------------------------------------


def check(model, tokenizer, questions: list[Question], max_batch_tokens: int) -> str:
    """In float32. Exits where an answer differs that should not."""
    texts = by_ours(model, tokenizer, questions, max_batch_tokens)
    encoded = features_of(tokenizer, questions)
    starts, ends = logits_of(model, encoded)
    cut, whole = (by_loops(questions, encoded, starts, ends, size) for size in (N_BEST, None))
    same = sum(text == best["text"] for text, best in zip(texts, cut, strict=True))
    for one, text, best, better in zip(questions, texts, cut, whole, strict=True):
        if text != better["text"] or (text != best["text"] and not better["score"] > best["score"]):
            sys.exit(f"question {one.id!r}: {text!r}, and the reference says {better['text']!r}")
    return (
        f"in float32 {len(texts)} of {len(texts)} answers as the loop over all pairs gives them; {same} as the loop "
        f"over 20 x 20, which missed a span of a higher score in the others"
    )


def post_processing(questions: list[Question], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of ours and of the reference's on the same logits.

    They are drawn as a trained reader has them, around one place of a window. Of logits without a peak few of the
    20 x 20 pairs are no longer than an answer may be, and the loop skips the others: it is twice as fast there.
    """
    tokenizer = tokenizer_of(questions)
    encoded = features_of(tokenizer, questions)
    windows = make_windows(questions, tokenizer, MAX_LENGTH, overlap=OVERLAP)
    rng = np.random.default_rng(0)
    starts, ends = rng.normal(size=(2, len(windows), MAX_LENGTH)).astype(np.float32)
    peaks = rng.integers(0, windows.lengths)[:, None]
    starts += 10 * np.exp(-np.abs(np.arange(MAX_LENGTH) - peaks) / 6).astype(np.float32)
    ends += 10 * np.exp(-np.abs(np.arange(MAX_LENGTH) - peaks - 3) / 6).astype(np.float32)
    places, there = windows.places(np.arange(len(windows)))
    flat = [rows[:, : places.shape[1]][there] for rows in (starts, ends)]
    ours, theirs = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        mine = postprocess(questions, windows, *flat, LONGEST, N_BEST)
        listed = [[candidate.text for candidate in one.n_best] for one in mine]
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        by_loops(questions, encoded, starts, ends)
        theirs.append(time.perf_counter() - began)
        assert all(len(texts) <= N_BEST for texts in listed)
    return ours, theirs


def measure(name: str, options: argparse.Namespace) -> dict:
    everything = read_questions(str(DATA[name]), "validation")[0]
    questions, processed = everything[: options.limit], everything[:POSTPROCESSED]
    tokenizer = tokenizer_of(questions)
    layers, width, heads = SHAPES[options.shape]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
        intermediate_size=4 * width,
    )  # fmt: skip
    model = BertForQuestionAnswering(config).eval()
    checked = check(model, tokenizer, questions[: options.check], options.max_batch_tokens)
    say(f"{name}: {checked}")
    ours, theirs = post_processing(processed, max(5, options.repeats))
    say(f"{name}: post-processing {statistics.median(ours):.3f} s, the reference's {statistics.median(theirs):.3f} s")
    model = model.to(getattr(torch, options.dtype))
    seconds: dict[str, list[float]] = {OURS: [], REFERENCE: []}
    foreign = []
    for number in range(options.repeats):
        for system in (OURS, REFERENCE) if number % 2 == 0 else (REFERENCE, OURS):
            before, began = foreign_cpu(), time.perf_counter()
            if system == OURS:
                by_ours(model, tokenizer, questions, options.max_batch_tokens)
            else:
                by_reference(model, tokenizer, questions)
            seconds[system].append(time.perf_counter() - began)
            foreign.append((foreign_cpu() - before) / seconds[system][-1])
            say(f"{name} {number + 1}/{options.repeats} {system}: {seconds[system][-1]:.1f} s")
    found = {"questions": len(questions), "checked": checked, "seconds": seconds, "foreign_cores": max(foreign)}
    return found | {"post": {OURS: ours, REFERENCE: theirs}, "post_questions": len(processed)}


def table(found: dict[str, dict]) -> list[str]:
    lines = ["| data | what | ours, s | reference, s | ratio | ours, questions/s |", "|" + " --- |" * 6]
    for name, of in found.items():
        for what, times, count in (
            ("end to end", of["seconds"], of["questions"]),
            ("post-processing", of["post"], of["post_questions"]),
        ):
            mine, theirs = statistics.median(times[OURS]), statistics.median(times[REFERENCE])
            lines.append(f"| {name} | {what} | {mine:.3f} | {theirs:.3f} | {theirs / mine:.2f} | {count / mine:.1f} |")
    return lines


def provenance(options: argparse.Namespace, found: dict[str, dict]) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    busy = max(of["foreign_cores"] for of in found.values())
    sizes = ", ".join(f"{name}: {of['questions']} questions, {of['checked']}" for name, of in found.items())
    return (
        f"`{shlex.join(['python', *sys.argv])}`; {platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} "
        f"cores; BERT {options.shape}, {options.dtype}; torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit.strip()}; "
        f"{options.repeats} repeats. {sizes}. Others used at most {busy:.2f} cores meanwhile."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--limit", type=int, help="the first N questions of each")
    parser.add_argument("--check", type=int, default=40, help="questions whose answers are compared in float32 [40]")
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-batch-tokens", type=int, default=BATCH * MAX_LENGTH, help="of ours [as the reference]")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write everything that was measured here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    missing = [str(DATA[name]) for name in options.data if not DATA[name].is_file()]
    if missing:
        sys.exit(f"There is no {', '.join(missing)}.")
    found = {name: measure(name, options) for name in options.data}
    print("\n".join(table(found)))
    print(f"\n{provenance(options, found)}")
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
