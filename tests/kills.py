"""SIGKILL at random moments, files damaged after it, and the same command again: `make test-kills` (KILLS=40, SEED=0).

Every stage, one evaluation and `generate` run once unbroken; then each is killed, some twice, and gone on with, in
turn. It must leave the files that the unbroken one left, with the same in them: weights, steps, metrics, items,
figures, answers, and the checkpoints with all they hold. Where a checkpoint was damaged it must say which. Runs are
forks of this process, which has the imports behind it.

`--processes 2` (ARGS) runs the stages by `--accelerate cpu-2`; what is killed is all of a run or one of its processes,
which must end the other.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import psutil
import torch
from forked import forked
from safetensors.torch import load_file
from tiny_stages import STAGES, run_command
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_kit.cli import main as cli
from rlhf_kit.training.checkpoints import checkpoints, damage, is_cut_off

ROOT = Path(__file__).parents[1]
BERT = "num_hidden_layers=2,hidden_size=32,num_attention_heads=2,intermediate_size=64,max_position_embeddings=64"
# Of one run and no other: how long it took, what it went on from, and the state of the checkout (git) at its end.
OWN = re.compile(r"commit|time|seconds(/.*)?|.*(runtime|per_second)|resumed(_from)?|resume_from_checkpoint")
KEPT = ("checkpoint-*/checkpoint.json", "items-*", "*.part")  # by a stage, an evaluation, `generate`
OWN_FILES = {".rlhf_kit", "checkpoint.json", "training_args.bin"}
SAVED, TWICE, DAMAGED = 0.75, 0.25, 0.4  # shares: killed after something was saved, killed again, a file harmed then
ONE = 0.5  # share of the kills of several processes that strike a single one of them


@dataclass
class Ended:
    """What a run left: its exit status (None: killed), what it said, its seconds, and those until it had saved."""

    status: int | None
    said: str
    seconds: float
    saved: float


def fork(
    main, argv, log: Path, out: Path, kill_after: float | None = None, since_saving: bool = False, share: float = 0.0
) -> Ended:
    """`main(argv)`, writing into `out`, in a process of its own; killed after so many seconds, or since it saved.

    share: of its processes, if it has started some, which one is killed; 0: all.
    """
    start = time.perf_counter()
    log.write_bytes(b"")
    child = forked(main, argv, log)
    status, saved = None, None
    while True:
        done, code = os.waitpid(child, os.WNOHANG)
        seconds = time.perf_counter() - start
        if saved is None and any(file for kept in KEPT for file in out.rglob(kept)):
            saved = seconds
        if done:
            status = os.waitstatus_to_exitcode(code)
            break
        begun = (saved if since_saving else 0.0) if kill_after is not None else None
        if begun is not None and seconds - begun >= kill_after:
            kill(child, share)
            os.waitpid(child, 0)
            break
        time.sleep(0.005)
    return Ended(status, log.read_text(errors="replace"), seconds, saved or 0.0)


def kill(child: int, share: float) -> None:
    """SIGKILL to a process and all that it has started; or to one of these, which is to end the others."""
    parent = psutil.Process(child)
    started = parent.children(recursive=True)
    if share and started:
        started[int(share * len(started))].kill()
        return
    for process in (parent, *started):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(started)


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
    common = ["--max_steps", "24", "--save_steps", "4", "--logging_steps", "3", "--disable_tqdm",
              "--report_to", "none", "--per_device_train_batch_size", "2", "--save_total_limit", "3",
              "--learning_rate", "1e-3"]  # fmt: skip
    base = ["--model_name_or_path", str(folder / "base"), *common]
    grouped = ["--train_sampling_strategy", "group_by_length"]
    return {
        "pretrain": [*base, "--dataset_name", texts, "--block_size", "16", "--eval_dataset_name", texts],
        "mlm": ["--model_name_or_path", "bert", "--train_tokenizer", "90", "--config_overrides", BERT, *common,
                "--dataset_name", texts],
        "sft": [*base, "--dataset_name", answers, *grouped, "--gradient_accumulation_steps", "2",
                "--use_peft", "--lora_r", "4", "--lora_dropout", "0.1"],
        "reward": [*base, "--dataset_name", ranked, *grouped],
        "ppo": [*base, "--dataset_name", ranked, "--reward_funcs", "short_answers:length", "--rollout_batch_size", "4",
                "--mini_batch_size", "2", "--num_ppo_epochs", "2", "--max_completion_length", "6", "--kl_target", "1",
                "--ema_decay", "0.9", "--reward_scaling"],
        "eval": ["icl", "--models", str(folder / "base"), "--tasks", "1DC", "world-facts-en", "--shots", "0", "1",
                 "--limit", "30", "--max-batch-tokens", "256"],
        "generate": [str(folder / "base"), "--dataset_name", ranked, "--n", "5", "--max_completion_length", "12",
                     "--batch_size", "4"],
    }  # fmt: skip


def command(stage: str, argv: list[str], out: Path, *more: str):
    if stage == "eval":
        return cli, ["eval", *argv, "--output_dir", str(out)]
    if stage == "generate":
        return cli, ["generate", *argv, "--output_file", str(out / "answers.jsonl")]
    return partial(run_command, stage), [*argv, "--output_dir", str(out), *more]


# -- what must be equal ----------------------------------------------------------------------------------------------


def untimed(found):
    """JSON values without what is of one run alone."""
    if isinstance(found, dict):
        return {key: untimed(value) for key, value in found.items() if not OWN.fullmatch(key)}
    return [untimed(item) for item in found] if isinstance(found, list) else found


def content(path: Path):
    """What a file holds, whatever way it was written."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in (".pt", ".pth"):
        return torch.load(path, weights_only=False)
    if path.suffix == ".json":
        return untimed(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [untimed(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".md":
        return re.sub(r"\d+ s$", "", path.read_text(), flags=re.MULTILINE)
    return path.read_bytes()


def is_same(one, two) -> bool:
    if type(one) is not type(two):
        return False
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(is_same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(is_same, one, two))
    return bool((one == two).all()) if hasattr(one, "all") else one == two


def differences(whole: Path, again: Path) -> list[str]:
    """What is not the same in two folders, by file."""
    names = {
        path.relative_to(folder).as_posix()
        for folder in (whole, again)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in OWN_FILES
    }
    found = []
    for name in sorted(names):
        missing = [folder.name for folder in (whole, again) if not (folder / name).is_file()]
        if missing:
            found.append(f"{name} is not in {missing[0]}")
        elif not is_same(content(whole / name), content(again / name)):
            found.append(f"{name} is not that of the unbroken run")
    return found


# -- one kill --------------------------------------------------------------------------------------------------------


def harm(out: Path, chance: random.Random) -> str | None:
    """Cut, empty, garble or remove a file of the last whole checkpoint -> its name, None where there is none."""
    for path in [*out.rglob("items-*"), *out.rglob("*.part")]:  # the last of them were not on the disk yet
        path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size + 1)])
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


def kill_once(stage: str, argv: list[str], folder: Path, whole: Ended, chance: random.Random) -> tuple[str, list]:
    """Kill, harm, go on -> what became of it, and what is wrong with it."""
    out, log = folder / "out", folder / "log.txt"
    shutil.rmtree(out, ignore_errors=True)
    begin, go_on = command(stage, argv, out), command(stage, argv, out, "--resume_from_checkpoint")
    since_saving = chance.random() < SAVED
    moment = chance.uniform(0, 1.05 * (whole.seconds - whole.saved) if since_saving else whole.saved)
    share = chance.random() if "--accelerate" in argv and chance.random() < ONE else 0.0
    ended = fork(*begin, log, out, moment, since_saving, share)
    if ended.status is None and chance.random() < TWICE:
        ended = fork(*go_on, log, out, kill_after=chance.uniform(0, whole.seconds))
    if ended.status not in (None, 0):
        return "failed before it was killed", [ended.said[-2000:]]
    harmed = harm(out, chance) if chance.random() < DAMAGED else None
    ended = fork(*go_on, log, out)
    wrong = []
    if harmed and harmed.partition("/")[0] not in ended.said:
        wrong.append(f"{harmed} was damaged, and nothing was said: {ended.said[-2000:]}")
    outcome = "went on after damage, from the one before" if harmed else "went on"
    if ended.status == 2 and harmed and "no complete checkpoint left" in ended.said:
        outcome = "refused: none was whole; begun anew"
        shutil.rmtree(out)
        ended = fork(*begin, log, out)
    elif "starting from the beginning" in ended.said:
        outcome = "nothing was saved: from the beginning"
    if ended.status != 0:
        return outcome, [*wrong, f"exit status {ended.status}: {ended.said[-2000:]}"]
    return outcome, wrong + differences(folder / "whole", out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=int(os.environ.get("KILLS", "40")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "0")))
    parser.add_argument("--processes", type=int, choices=[1, 2], default=1)
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
        if options.processes > 1:
            commands = {stage: [*argv, "--accelerate", "cpu-2"] for stage, argv in commands.items() if stage in STAGES}
        unbroken = {}
        for stage, argv in commands.items():
            (root / stage).mkdir()
            out = root / stage / "out"
            ended = unbroken[stage] = fork(*command(stage, argv, out), root / stage / "log.txt", out)
            out.rename(root / stage / "whole")
            if ended.status != 0:
                print(f"{stage}: exit status {ended.status}\n{ended.said}")
                return 1
        stages = list(commands)
        for number in range(options.kills):
            stage = stages[number % len(stages)]
            outcome, wrong = kill_once(stage, commands[stage], root / stage, unbroken[stage], chance)
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
