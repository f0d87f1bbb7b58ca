"""SIGKILL at random moments, files damaged after it, and the same command again: `make test-kills` (KILLS=40, SEED=0).

Every stage and one evaluation run once unbroken; then each is killed and gone on with, in turn. A resumed run must end
with the weights, steps, metrics and rows of the unbroken one, and where a checkpoint was damaged it must say so.
Runs are forks of this process, which has the imports behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_kit.recipes import evaluate, mlm, ppo, pretrain, reward, sft
from rlhf_kit.training.checkpoints import checkpoints, damage, is_cut_off

ROOT = Path(__file__).parents[1]
STAGES = {"pretrain": pretrain, "mlm": mlm, "sft": sft, "reward": reward, "ppo": ppo}
BERT = "num_hidden_layers=2,hidden_size=32,num_attention_heads=2,intermediate_size=64,max_position_embeddings=64"
TIMED = ("time", "runtime", "per_second", "seconds", "resumed_from", "output", "tokens_per_second")
DAMAGED = 0.4  # share of the kills after which a file of a checkpoint is harmed


@dataclass
class Ended:
    """What a run left: its exit status, what it said, and how long it took."""

    status: int | None
    said: str
    seconds: float


def fork(main, argv: list[str], log: Path, kill_after: float | None = None) -> Ended:
    """`main(argv)` in a process of its own; killed after `kill_after` seconds (status None), unless it has ended."""
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = 70
        try:
            status = main(argv)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    while True:
        done, code = os.waitpid(child, os.WNOHANG)
        seconds = time.perf_counter() - start
        if done:
            return Ended(os.waitstatus_to_exitcode(code), log.read_text(errors="replace"), seconds)
        if kill_after is not None and seconds >= kill_after:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Ended(None, log.read_text(errors="replace"), seconds)
        time.sleep(0.005)


# -- what is run -----------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> dict[str, list[str]]:
    """Data and a tiny model in `folder` -> the command line of each stage, without its output folder."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        ["the cat sat on the mat"], trainers.BpeTrainer(special_tokens=["<end>"], initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", bos_token="<end>")
    tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 128, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes, **ids)).save_pretrained(folder / "base")

    def data(name: str, rows: list[dict]) -> str:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(folder / name)

    texts = data("texts.jsonl", [{"text": f"the cat {i} sat on the mat {i * i} " * (1 + i % 3)} for i in range(60)])
    answers = data("answers.jsonl", [{"prompt": f"say {i}", "completion": f"cat {i}"} for i in range(40)])
    ranked = data(
        "ranked.jsonl",
        [{"prompt": f"say {i}", "completions": ["cat", f"a dog {i}", "mat"], "ranks": [1, 2, 2]} for i in range(40)],
    )
    common = [
        "--max_steps",
        "24",
        "--save_steps",
        "4",
        "--logging_steps",
        "3",
        "--disable_tqdm",
        "--report_to",
        "none",
    ]
    common += ["--per_device_train_batch_size", "2", "--save_total_limit", "3", "--learning_rate", "1e-3"]
    base = ["--model_name_or_path", str(folder / "base"), *common]
    grouped = ["--train_sampling_strategy", "group_by_length"]
    return {
        "pretrain": [*base, "--dataset_name", texts, "--block_size", "16", "--eval_dataset_name", texts],
        "mlm": ["--model_name_or_path", "bert", "--train_tokenizer", "90", "--config_overrides", BERT, *common,
                "--dataset_name", texts],
        "sft": [*base, "--dataset_name", answers, *grouped, "--gradient_accumulation_steps", "2"],
        "reward": [*base, "--dataset_name", ranked, *grouped],
        "ppo": [*base, "--dataset_name", ranked, "--reward_funcs", "short_answers:length", "--rollout_batch_size", "4",
                "--mini_batch_size", "2", "--num_ppo_epochs", "2", "--max_completion_length", "6", "--kl_target", "1",
                "--ema_decay", "0.9", "--reward_scaling"],
        "eval": ["icl", "--models", str(folder / "base"), "--tasks", "1DC", "--shots", "0", "--limit", "100",
                 "--max-batch-tokens", "256"],
    }  # fmt: skip


def command(stage: str, argv: list[str], out: Path, *more: str):
    if stage == "eval":
        return evaluate.main, [*argv, "--output", str(out)]
    return STAGES[stage].main, [*argv, "--output_dir", str(out), *more]


# -- what must be equal ----------------------------------------------------------------------------------------------


def untimed(found):
    if isinstance(found, dict):
        return {
            key: untimed(value)
            for key, value in found.items()
            if not (key.endswith(TIMED) or key.startswith("seconds/"))
        }
    return [untimed(item) for item in found] if isinstance(found, list) else found


def differences(stage: str, whole: Path, again: Path) -> list[str]:
    """What a resumed run left that the unbroken one did not, by file."""
    if stage == "eval":
        # Every item's answer and score; results.json also says how long it took.
        pairs = [(path, again / path.relative_to(whole)) for path in sorted(whole.rglob("items*.jsonl"))]
        if not pairs:
            return ["no items at all"]
        return [one.name for one, two in pairs if rows_of(one) != rows_of(two)]
    found = []
    for path in [*whole.glob("*.safetensors"), *whole.glob("ema/*.safetensors")]:
        one, two = load_file(path), load_file(again / path.relative_to(whole))
        if one.keys() != two.keys() or any(not torch.equal(one[name], two[name]) for name in one):
            found.append(path.name)
    if rows_of(whole / "metrics.jsonl") != rows_of(again / "metrics.jsonl"):
        found.append("metrics.jsonl")
    one, two = (json.loads((folder / "run.json").read_text()) for folder in (whole, again))
    if (one["steps"], untimed(one["metrics"])) != (two["steps"], untimed(two["metrics"])):
        found.append("run.json")
    return found


def rows_of(path: Path) -> list:
    if path.suffix == ".json":
        return untimed(json.loads(path.read_text()))
    return sorted(json.dumps(untimed(json.loads(line)), sort_keys=True) for line in path.read_text().splitlines())


# -- one kill --------------------------------------------------------------------------------------------------------


def harm(out: Path, chance: random.Random) -> str | None:
    """Cut, empty, garble or remove a file of the last whole checkpoint -> its name, None where there is none."""
    found = [path for path in checkpoints(out) if not is_cut_off(path) and damage(path) is None]
    if not found:
        return None
    path = chance.choice(sorted(path for path in found[-1].rglob("*") if path.is_file() and path.stat().st_size))
    content = bytearray(path.read_bytes())
    way = chance.choice(["cut", "empty", "garble", "remove"])
    if way == "remove":
        path.unlink()
    elif way == "garble":
        content[chance.randrange(len(content))] ^= 1 + chance.randrange(255)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: chance.randrange(len(content)) if way == "cut" else 0])
    return f"{found[-1].name}/{path.name}"


def kill_once(stage: str, argv: list[str], folder: Path, seconds: float, chance: random.Random) -> tuple[str, list]:
    """Kill, harm, go on -> what became of it, and what is wrong with it."""
    out, log = folder / "killed", folder / "log.txt"
    shutil.rmtree(out, ignore_errors=True)
    main, options = command(stage, argv, out)
    first = fork(main, options, log, kill_after=chance.uniform(0, 1.05) * seconds)
    if first.status not in (None, 0):
        return "failed before it was killed", [first.said[-2000:]]
    harmed = harm(out, chance) if stage != "eval" and chance.random() < DAMAGED else None
    main, options = command(stage, argv, out, "--resume_from_checkpoint")
    second = fork(main, options, log)
    wrong = []
    if harmed and harmed.partition("/")[0] not in second.said:
        wrong.append(f"{harmed} was damaged, and nothing was said: {second.said[-2000:]}")
    outcome = "went on after damage, from the one before" if harmed else "went on"
    if second.status == 2 and harmed and "no whole checkpoint left" in second.said:
        outcome = "refused: none was whole; begun anew"
        shutil.rmtree(out)
        main, options = command(stage, argv, out)
        second = fork(main, options, log)
    elif "starting from the beginning" in second.said:
        outcome = "nothing was saved: from the beginning"
    if second.status != 0:
        return outcome, [*wrong, f"exit status {second.status}: {second.said[-2000:]}"]
    different = differences(stage, folder / "whole", out)
    return outcome, wrong + [f"{name} is not that of the unbroken run" for name in different]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=int(os.environ.get("KILLS", "40")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "0")))
    options = parser.parse_args()
    torch.set_num_threads(1)
    chance, failures, counts = random.Random(options.seed), 0, Counter()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "short_answers.py").write_text(
            "def length(completions, **_):\n    return [-len(c) / 9 for c in completions]\n"
        )
        os.chdir(root)
        commands = prepare(root)
        seconds = {}
        for stage, argv in commands.items():
            (root / stage).mkdir()
            ended = fork(*command(stage, argv, root / stage / "whole"), root / stage / "log.txt")
            seconds[stage] = ended.seconds
            if ended.status != 0:
                print(f"{stage}: exit status {ended.status}\n{ended.said}")
                return 1
        stages = list(commands)
        for number in range(options.kills):
            stage = stages[number % len(stages)]
            outcome, wrong = kill_once(stage, commands[stage], root / stage, seconds[stage], chance)
            counts[stage, outcome] += 1
            failures += bool(wrong)
            print(
                f"{number + 1:3} {stage:9} {outcome}" + "".join(f"\n    WRONG: {text}" for text in wrong), flush=True
            )
    for (stage, outcome), count in sorted(counts.items()):
        print(f"{count:4}  {stage:9} {outcome}")
    print(f"{options.kills} kills, {failures} wrong (seed {options.seed}).")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
