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
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

HARNESS_VERSION = "0.4.13"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
HARNESS_AT = CACHE / "rlhf_kit-bench" / f"lm-eval-{HARNESS_VERSION}"
STORY, QUESTION, ANSWER, TURNS = 351, 8, 4, 15  # tokens: CoQA's means in words x 1.3, and its turns
BATCH = 16  # prompts at once, where a system takes them
OURS, GENERATE, BATCHED, HARNESS = "ours", "generate", f"generate, {BATCH} at once", "lm-evaluation-harness"
SYSTEMS = (OURS, GENERATE, BATCHED, HARNESS)
DTYPES = ("float32", "bfloat16")


# --- one system, in a process of its own ---------------------------------------------------------------------------


def tokenizer_of(vocabulary: int):
    """Words w0, w1, ... and the layout's own, with white space between them."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    words = ["Q:", "A:", *(f"w{i}" for i in range(vocabulary - 3)), "</s>"]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="</s>", eos_token="</s>", pad_token="</s>", padding_side="left"
    )


def stories_of(count: int, vocabulary: int, seed: int) -> list:
    import random  # noqa: PLC0415

    from rlhf_kit.eval.coqa_data import Story  # noqa: PLC0415

    draw = random.Random(seed)

    def text(size: int) -> str:
        return " ".join(f"w{draw.randrange(vocabulary - 3)}" for _ in range(size))

    return [
        Story(
            str(at), "generated", text(STORY), tuple(text(QUESTION) for _ in range(TURNS)),
            tuple((text(ANSWER),) for _ in range(TURNS)),
        )
        for at in range(count)
    ]  # fmt: skip


def answers(system: str, model, tokenizer, stories: list, new_tokens: int) -> list[str]:
    """Of every turn of every story, in order."""
    from rlhf_kit.eval.coqa_turns import Prompts, answer_by_gold, gold  # noqa: PLC0415
    from rlhf_kit.eval.decoding import DEFAULT_BATCH_TOKENS, Decoding  # noqa: PLC0415

    how, prompts = Decoding(new_tokens), Prompts(tokenizer, model.config.n_positions, new_tokens)
    if system == OURS:
        found = answer_by_gold(model, prompts, stories, how, DEFAULT_BATCH_TOKENS)
        by_turn = {(one.story.id, one.turn): one.continuation.answer for one in found}
        return [by_turn[story.id, turn] for story in stories for turn in range(TURNS)]
    asked = [prompts.prompt(story, turn, gold(story)).text for story in stories for turn in range(TURNS)]
    if system == HARNESS:
        return by_harness(model, tokenizer, asked, new_tokens)
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


def by_harness(model, tokenizer, asked: list[str], new_tokens: int) -> list[str]:
    from lm_eval.api.instance import Instance  # noqa: PLC0415
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    options = {"until": ["\n"], "max_gen_toks": new_tokens, "do_sample": False}
    requests = [Instance("generate_until", {}, (text, dict(options)), at) for at, text in enumerate(asked)]
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=BATCH)
    return [text.strip() for text in wrapped.generate_until(requests, disable_tqdm=True)]


def worker(options: argparse.Namespace) -> None:
    import torch  # noqa: PLC0415
    from ppo_work import SHAPES, _config, foreign_cpu  # noqa: PLC0415
    from transformers import GPT2LMHeadModel, set_seed  # noqa: PLC0415

    shape = SHAPES[options.shape[0]]
    set_seed(0)
    model = GPT2LMHeadModel(_config(shape, shape.layers, shape.width, shape.heads))
    model = model.to(getattr(torch, options.dtype[0])).eval()
    tokenizer = tokenizer_of(shape.vocabulary)
    with torch.inference_mode():
        answers(options.worker, model, tokenizer, stories_of(1, shape.vocabulary, 1), 2)  # warms up
        stories = stories_of(options.stories, shape.vocabulary, 0)
        before, began = foreign_cpu(), time.perf_counter()
        said = answers(options.worker, model, tokenizer, stories, options.new_tokens)
        seconds = time.perf_counter() - began
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    found = {
        "seconds": seconds,
        "foreign_cores": (foreign_cpu() - before) / seconds,
        "peak_gib": int(peak.split()[1]) / 2**20,
        "answers": said,
    }
    options.json.write_text(json.dumps(found))


# --- all of them ----------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(f"[{datetime.now():%H:%M:%S}] {text}", file=sys.stderr, flush=True)


def has_harness() -> bool:
    """Only the package itself: its backend needs nothing that is not here."""
    if (HARNESS_AT / "lm_eval").is_dir():
        return True
    say(f"installing lm-eval {HARNESS_VERSION} in {HARNESS_AT}")
    wanted = f"lm-eval=={HARNESS_VERSION}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(HARNESS_AT), wanted]
    return subprocess.run(command).returncode == 0


def run_worker(key: tuple[str, str, str], options: argparse.Namespace) -> dict:
    """One worker's report; its output is shown if it fails."""
    shape, dtype, system = key
    extra = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads), "CUDA_VISIBLE_DEVICES": ""}
    extra |= {"PYTHONPATH": str(HARNESS_AT)} if system == HARNESS else {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, __file__, "--worker", system, "--shape", shape, "--dtype", dtype]
        command += ["--stories", str(options.stories), "--new-tokens", str(options.new_tokens), "--json", str(report)]
        done = subprocess.run(command, env={**os.environ, **extra}, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            sys.exit(f"{system} ({shape}, {dtype}) failed:\n" + "\n".join(done.stderr.splitlines()[-25:]))
        return json.loads(report.read_text())


def run_all(options: argparse.Namespace, systems: list[str]) -> dict:
    """(shape, dtype, system) -> reports, one a repeat; the systems take turns."""
    kinds = list(itertools.product(options.shape, options.dtype))
    plan = [(*kind, system) for kind in kinds for _ in range(options.repeats) for system in systems]
    found: dict = {}
    began = time.perf_counter()
    for number, key in enumerate(plan):
        spent = time.perf_counter() - began
        left = f", about {spent / number * (len(plan) - number) / 60:.0f} min left" if number else ""
        say(f"{number + 1}/{len(plan)} {', '.join(key)}{left}")
        found.setdefault(key, []).append(run_worker(key, options))
    return found


def table(options: argparse.Namespace, systems: list[str], found: dict) -> list[str]:
    lines = [
        "| shape | weights | system | s (range) | questions/s | ours to it | peak GiB | same answers as ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for shape, dtype in itertools.product(options.shape, options.dtype):
        seconds = {name: [run["seconds"] for run in found[shape, dtype, name]] for name in systems}
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        ours = found[shape, dtype, OURS][0]["answers"]
        for name in systems:
            runs, times = found[shape, dtype, name], seconds[name]
            same = sum(map(str.__eq__, runs[0]["answers"], ours)) / len(ours)
            lines.append(
                f"| {shape} | {dtype} | {name} | {middle[name]:.1f} ({min(times):.1f}-{max(times):.1f}) | "
                f"{options.stories * TURNS / middle[name]:.2f} | {middle[name] / middle[OURS]:.2f} | "
                f"{statistics.median(run['peak_gib'] for run in runs):.2f} | {same:.0%} |"
            )
    return lines


def provenance(options: argparse.Namespace, found: dict) -> str:
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    root = Path(__file__).resolve().parents[1]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True).stdout
    busy = max(run["foreign_cores"] for runs in found.values() for run in runs)
    return (
        f"`{shlex.join(['python', *sys.argv])}`; {platform.machine()}, {options.threads} of {os.cpu_count()} cores; "
        f"torch {torch.__version__}, transformers {transformers.__version__}, lm-eval {HARNESS_VERSION}; "
        f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, commit {commit.strip()}; {options.repeats} repeats of "
        f"{options.stories} stories x {TURNS} turns, answers of {options.new_tokens} tokens; others used at most "
        f"{busy:.2f} cores meanwhile."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=("small", "tiny"), default=["small"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stories", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="one repeat of two stories, the tiny shape")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write everything that was measured here")
    parser.add_argument("--worker", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options)
    if options.quick:
        options.shape, options.repeats, options.stories = ["tiny"], 1, 2
    systems = [name for name in SYSTEMS if name != HARNESS or has_harness()]
    found = run_all(options, systems)
    print("\n".join(table(options, systems, found)))
    print(f"\n{provenance(options, found)}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({" ".join(key): runs for key, runs in found.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
