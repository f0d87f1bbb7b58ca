"""The golden runs, by name and in order; `python tests/golden/commands.py --write` records them anew.

A name is `chain/run`: the runs of a chain follow one another in one folder, so that a run can go on with what the one
before it left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from places import FIXTURES, furnish
from records import record

QUICK = "--max_steps 3 --save_steps 2 --logging_steps 1 --per_device_train_batch_size 2 --disable_tqdm"
EVAL = "--max-batch-tokens 2048"


@dataclass(frozen=True)
class Run:
    """A command line, without values that hold spaces. `shown`: see `record`."""

    name: str
    words: str
    shown: str = ""

    @property
    def chain(self) -> str:
        return self.name.partition("/")[0]

    @property
    def argv(self) -> list[str]:
        return self.words.split()


STAGES = {
    "pretrain": "--model_name_or_path gpt2 --config_overrides n_layer=1,n_embd=8,n_head=2 "
    f"--tokenizer_name_or_path lm --dataset_name texts.jsonl --eval_dataset_name texts.jsonl --block_size 32 {QUICK}",
    "mlm": "--model_name_or_path bert --config_overrides num_hidden_layers=1,hidden_size=8,num_attention_heads=2,"
    f"intermediate_size=16 --train_tokenizer 80 --dataset_name texts.jsonl {QUICK}",
    "sft": f"--model_name_or_path lm --dataset_name demonstrations.jsonl --learning_rate 1e-3 {QUICK}",
    "reward": "--model_name_or_path lm --dataset_name ranked.jsonl --eval_dataset_name ranked.jsonl "
    f"--gradient_accumulation_steps 1 {QUICK}",
    "ppo": "--model_name_or_path lm --dataset_name ranked.jsonl --rollout_batch_size 4 --mini_batch_size 2 "
    "--num_ppo_epochs 1 --total_episodes 12 --max_completion_length 4 --reward_funcs judge "
    "--save_steps 2 --logging_steps 1 --per_device_train_batch_size 2 --disable_tqdm",
}
LONGER = {"ppo": "--total_episodes 20"}
SAMPLED = "--num_generations 2 --max_completion_length 4 --reward_funcs judge"
METHODS = {  # which share what the stages do
    "dpo": f"--model_name_or_path lm --dataset_name ranked.jsonl --eval_dataset_name ranked.jsonl {QUICK}",
    "kto": f"--model_name_or_path lm --dataset_name ranked.jsonl {QUICK}",
    "rloo": f"--model_name_or_path lm --dataset_name ranked.jsonl {SAMPLED} {QUICK}",
    "grpo": f"--model_name_or_path lm --dataset_name ranked.jsonl {SAMPLED} {QUICK}",
}
EVALS = {
    "icl": f"--models base lm --tasks world-sums world-facts-zh 2D+ reversed-words --shots 0 2 --limit 4 {EVAL}",
    "tldr": f"--models lede-3 base --data articles.jsonl --limit 3 {EVAL}",
    "lambada": f"--model base --data passages.jsonl {EVAL}",
    "perplexity": f"--model base --data texts.jsonl --limit 6 {EVAL}",
    "coqa": f"--model base --data coqa.json {EVAL}",
    "squad": f"--model base --data squad.json --limit 4 {EVAL}",
    "mc": f"--model base --data choices.jsonl {EVAL}",
    "extractive": f"--model reader --data squad.json --scorer squad --max-length 48 --step 12 --n-best 3 {EVAL}",
    "transfer": "--table table.yaml",
    "reward": "--model judge --data ranked.jsonl",
    "suite": "--models first=base second=lm --suite suite.yaml",
}

COLLECT = (
    "collect --model lm base --prompts ranked.jsonl --output_file labels.db --k 3 --limit 4 --max_completion_length 8"
)
# Folders that an earlier version was killed in (`old_folders.py`); they must be gone on with.
OLD_EVALS = {
    task: f"eval {task} {EVALS[task]} --output old-{task}"
    for task in ("icl", "tldr", "lambada", "perplexity", "coqa", "extractive")
}
OLD_STAGES = {
    "sft": f"sft {STAGES['sft']} --max_steps 5 --output_dir old-sft",
    "ppo": f"ppo {STAGES['ppo']} --total_episodes 20 --reward_funcs old-judge --output_dir old-ppo",
}


def stage_runs(stage: str) -> list[Run]:
    words = f"{stage} {STAGES[stage]}"
    out = f"--output_dir out-{stage}"
    return [
        Run(f"{stage}/dry", f"{words} {out} --dry-run"),
        Run(f"{stage}/whole", f"{words} {out}"),
        Run(f"{stage}/again", f"{words} {out}"),
        Run(f"{stage}/resume-ended", f"{words} {out} --resume_from_checkpoint"),
        Run(f"{stage}/resume-longer", f"{words} {out} --resume_from_checkpoint {LONGER.get(stage, '--max_steps 5')}"),
        Run(f"{stage}-yaml/dry", f"{stage} --config {stage}.yaml --output_dir new --dry-run"),
        Run(f"{stage}-refused/no-data", f"{words} --output_dir new --dataset_name nowhere.jsonl"),
        Run(f"{stage}-refused/unknown-option", f"{words} --output_dir new --learning_rat 1e-3"),
        Run(f"{stage}-refused/no-number", f"{words} --output_dir new --learning_rate fast"),
        Run(f"{stage}-refused/no-model", f"{words} --output_dir new --model_name_or_path nowhere/model"),
        Run(f"{stage}-help/help", f"{stage} --help"),
    ]


def method_runs(stage: str) -> list[Run]:
    words, out = f"{stage} {METHODS[stage]}", f"--output_dir out-{stage}"
    return [
        Run(f"{stage}/dry", f"{words} {out} --dry-run"),
        Run(f"{stage}/whole", f"{words} {out}"),
        Run(f"{stage}/resume-longer", f"{words} {out} --resume_from_checkpoint --max_steps 5"),
        Run(f"{stage}-refused/unknown-option", f"{words} --output_dir new --learning_rat 1e-3"),
        Run(f"{stage}-refused/dropout", f"{words} --output_dir new --no_disable_dropout"),
        Run(f"{stage}-help/help", f"{stage} --help"),
    ]


def eval_runs(task: str) -> list[Run]:
    words = f"eval {task} {EVALS[task]}"
    return [
        Run(f"{task}-eval/whole", f"{words} --output out-{task}"),
        Run(f"{task}-eval/again", f"{words} --output out-{task}"),
        Run(f"{task}-eval-refused/unknown-option", f"{words} --output new --limt 3"),
        Run(f"{task}-eval-refused/no-number", f"{words} --output new --limit many"),
        Run(f"{task}-eval-help/help", f"eval {task} --help"),
    ]


RUNS = [
    Run("root/version", "--version"),
    Run("root/help", "--help"),
    Run("root/no-command", "pppo --model lm"),
    *(run for stage in STAGES for run in stage_runs(stage)),
    *(run for stage in METHODS for run in method_runs(stage)),
    Run("sft-config/dry", "sft --config sft.yaml --output_dir out-config --dry-run"),
    Run("sft-config/whole", f"sft --config sft.yaml --output_dir out-config {QUICK}"),
    Run("sft-config/unknown-key", "sft --config bad.yaml --output_dir new"),
    Run("sft-config/no-file", "sft --config nowhere.yaml --output_dir new"),
    Run("sft-refused/no-answer", "sft --model_name_or_path lm --dataset_name no-messages.jsonl --output_dir new"),
    Run(
        "reward-refused/one-answer", "reward --model_name_or_path lm --dataset_name no-answers.jsonl --output_dir new"
    ),
    Run(
        "ppo-world/whole",
        f"ppo {STAGES['ppo']} --model_name_or_path base --dataset_name world "
        "--reward_funcs rlhf_kit.world:truth_reward --max_completion_length 8 --log_completions --output_dir out-w",
    ),
    Run("lora/sft", f"sft {STAGES['sft']} --use_peft --lora_r 2 --output_dir out-lora"),
    Run("lora/merge", "merge out-lora --output_dir out-merged"),
    Run("lora/merge-again", "merge out-lora --output_dir out-merged"),
    Run("lora/merge-no-adapter", "merge lm --output_dir new"),
    Run("lora/merge-help", "merge --help"),
    *(run for task in EVALS for run in eval_runs(task)),
    *(
        Run(f"{task}-eval-refused/no-data", f"eval {task} {EVALS[task]} --output new --data nowhere.jsonl")
        for task in ("tldr", "lambada", "perplexity", "coqa", "squad", "mc", "extractive", "reward")
    ),
    *(
        Run(f"{task}-eval-refused/no-model", f"eval {task} {EVALS[task]} --output new {option} nowhere/model")
        for task, option in (("icl", "--models"), ("lambada", "--model"), ("coqa", "--model"), ("reward", "--model"))
    ),
    Run("icl-eval-refused/no-task", "eval icl --models base --tasks sums --output new"),
    Run(
        "icl-eval-chat/whole",
        "eval icl --models base --tasks world-answers --shots 0 --apply_chat_template --limit 3 --output out-chat",
    ),
    Run("coqa-eval/other-settings", f"eval coqa {EVALS['coqa']} --output out-coqa --preset gpt3"),
    Run("coqa-eval/beams", f"eval coqa {EVALS['coqa']} --output out-beams --preset gpt3 --history model --limit 2"),
    Run(
        "coqa-eval/shots",
        f"eval coqa {EVALS['coqa']} --data world --apply_chat_template --shots 1 --limit 1 --output out-shots",
    ),
    Run("tldr-eval/no-hint", f"eval tldr {EVALS['tldr']} --no-hint --output out-no-hint"),
    Run("perplexity-eval/stride", f"eval perplexity {EVALS['perplexity']} --stride 4 --output out-stride"),
    Run(
        "extractive-eval/trained",
        "eval extractive --model bilingual --data world:squad_zh --scorer drcd --limit 6 --max-length 64 --n-best 3 "
        "--train-data squad.json --epochs 1 --batch-size 8 --seed 1 --output out-trained",
    ),
    *(Run(f"old-{task}/resumed", words) for task, words in OLD_EVALS.items()),
    *(Run(f"old-{stage}/resumed", f"{words} --resume_from_checkpoint") for stage, words in OLD_STAGES.items()),
    Run("transfer-eval-refused/bad-table", "eval transfer --table bad-table.yaml --output new"),
    Run("suite-eval-refused/bad-suite", "eval suite --models base --suite bad-suite.yaml --output new"),
    Run("reward-eval/thumbs", "eval reward --model judge --data thumbs.jsonl --limit 6 --output out-thumbs"),
    Run("eval/no-task", "eval coqq --model base"),
    Run("eval/help", "eval --help"),
    Run("official/coqa", "eval score coqa --references coqa.json --predictions coqa-said.json --subset", "numbers"),
    Run("official/squad", "eval score squad --references squad.json --predictions squad-said.json", "numbers"),
    Run("official/drcd", "eval score drcd --references squad.json --predictions squad-said.json", "numbers"),
    Run("official/no-file", "eval score squad --references nowhere.json --human"),
    Run("official/no-scorer", "eval score squod --references squad.json --human"),
    Run("official/missing", "eval score squad --references squad.json --predictions coqa-said.json"),
    Run("official/help", "eval score --help"),
    Run("compare/first", f"eval lambada {EVALS['lambada']} --output out-a"),
    Run("compare/second", f"eval lambada {EVALS['lambada']} --model lm --output out-b"),
    Run("compare/json", "eval compare out-a out-b --json", "json"),
    Run("compare/text", "eval compare out-a out-b", "numbers"),
    Run("compare/no-folder", "eval compare out-a nowhere"),
    Run("compare/help", "eval compare --help"),
    Run("score/ranked", "score --model judge --data ranked.jsonl --output scored.jsonl"),
    Run("score/again", "score --model judge --data ranked.jsonl --output scored.jsonl"),
    Run(
        "score/ensemble",
        "score --model judge other-judge --data pairs.jsonl --ensemble mean-std --output scored-2.jsonl",
    ),
    Run("score/no-data", "score --model judge --data nowhere.jsonl --output new.jsonl"),
    Run("score/unknown-option", "score --model judge --data ranked.jsonl --outptu new.jsonl"),
    Run("score/help", "score --help"),
    Run("convert/trl", "convert ranked.jsonl out-trl.jsonl --from ranked --to trl"),
    Run("convert/back", "convert out-trl.jsonl out-ranked.jsonl --from trl --merge ranked-pairs"),
    Run("convert/label-studio", "convert ranked.jsonl out-studio.json --from ranked --to label-studio"),
    Run("convert/argilla", "convert ranked.jsonl out-argilla.jsonl --from ranked --to argilla"),
    Run("convert/no-file", "convert nowhere.jsonl new.jsonl --from ranked"),
    Run("convert/no-format", "convert ranked.jsonl new.jsonl --from rankd"),
    Run("convert/bad-rows", "convert no-answers.jsonl new.jsonl --from hh-rlhf"),
    Run("convert/help", "convert --help"),
    Run("labels/collect-dry", f"{COLLECT} --dry-run"),
    Run("labels/collect", COLLECT),
    Run("labels/collect-again", COLLECT),
    Run("labels/none-yet", "convert labels.db new.jsonl"),
    Run("labels/in", "convert ranked.jsonl labels.db --from ranked"),
    Run("labels/trl", "convert labels.db out-labels.jsonl --to trl --data_card out-card.md"),
    Run("labels/ranked", "convert labels.db out-merged.jsonl --anonymise --merge ranked-pairs"),
    Run("labels/best", "convert labels.db out-best.jsonl --to best"),
    Run("labels/reward", f"reward {STAGES['reward']} --dataset_name labels.db --output_dir out-labels"),
    *(
        Run(f"generate/{name}", f"generate lm --data ranked.jsonl --limit 4 --max_completion_length 8 {more}")
        for name, more in (
            ("dry", "--output out-answers.jsonl --dry-run"),
            ("file", "--output out-answers.jsonl --n 2 --top_k 20"),
            ("again", "--output out-answers.jsonl --n 2 --top_k 20"),
            ("other-settings", "--output out-answers.jsonl --n 2"),
            ("no-model", "--model nowhere/model --output new.jsonl"),
            ("too-long", "--output new.jsonl --max_completion_length 100000"),
        )
    ),
    Run("generate/help", "generate --help"),
    Run("chat/help", "chat --help"),
    Run("chat/too-many", "chat a=lm b=lm c=lm d=lm e=lm"),
    Run("chat/twice", "chat lm lm --temperature -1"),
    Run("labels-refused/no-model", f"{COLLECT} --model nowhere/model --output_file new.db"),
    Run("labels-refused/one-answer", f"{COLLECT} --k 1 --output_file new.db"),
    Run("labels-refused/no-store", "reward --model_name_or_path lm --dataset_name nowhere.db --output_dir new"),
    Run("labels-refused/no-format", "convert ranked.jsonl ranked.db --from rankd"),
    Run("labels-refused/label-no-store", "label nowhere.db"),
    Run("labels-refused/label-no-kind", "label nowhere.db --kind best"),
    Run("labels-refused/ui-no-store", "ui nowhere.db"),
    Run("labels-refused/ui-for-all", "ui nowhere.db --host 0.0.0.0"),
    *(Run(f"labels-help/{command}", f"{command} --help") for command in ("collect", "label", "ui")),
    Run("serve/help", "serve --help"),
    Run("serve/for-all", "serve lm --host 0.0.0.0"),
    Run("serve/nowhere", "serve nowhere/model other=lm --slots 0"),
    Run("doctor/healthy", "doctor healthy --json", "json"),
    Run("doctor/endless", "doctor endless --json", "json"),
    Run("doctor/text", "doctor endless"),
    Run("doctor/no-run", "doctor nowhere"),
    Run("doctor/help", "doctor --help"),
    Run("completion/bash", "completion bash"),
    Run("completion/no-shell", "completion fish"),
    Run("plan/sft", f"plan sft {STAGES['sft']} --output_dir new --gpu L4 --price 2 --json", "json"),
    Run("plan/ppo", f"plan ppo {STAGES['ppo']} --output_dir new --gpu T4 --rows 100 --json", "json"),
    Run("plan/text", f"plan reward {STAGES['reward']} --output_dir new --gpu h100 --devices 2", "numbers"),
    Run("plan/no-gpu", f"plan sft {STAGES['sft']} --output_dir new --gpu H1000"),
    Run("plan/no-stage", "plan sfft --config sft.yaml"),
    Run("plan/help", "plan --help"),
    Run("completion/help", "completion --help"),
    Run("comparison/dry", "compare-methods --config compare.yaml --output_dir new --dry-run", "numbers"),
    Run("comparison/unknown-key", "compare-methods --config bad-compare.yaml --output_dir new"),
    Run("comparison/no-data", "compare-methods --config compare.yaml --prompts nowhere.jsonl --output_dir new"),
    Run("comparison/help", "compare-methods --help"),
    Run("demo/help", "demo --help"),
    Run("demo/mistake", "demo --output_dir lm --seed many"),
    Run("demo/not-its-folder", "demo --output_dir lm"),
]
CHAINS = list(dict.fromkeys(run.chain for run in RUNS))


@contextlib.contextmanager
def within(folder: Path):
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


def made(chain: str) -> dict[str, tuple[dict, str]]:
    """The record and the message of each run of a chain, by name; in the current folder, which `furnish` filled."""
    return {run.name: record(run.argv, run.shown) for run in RUNS if run.chain == chain}


def write(only: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    total = 0.0
    with tempfile.TemporaryDirectory() as folder, within(Path(folder)):
        furnish(Path(folder))
        for chain in CHAINS:
            if only not in chain:
                continue
            begin = time.perf_counter()
            records = {name: found for name, (found, _) in made(chain).items()}
            text = json.dumps(records, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
            (FIXTURES / f"{chain}.json").write_text(text, encoding="utf-8")
            total += (took := time.perf_counter() - begin)
            sys.stderr.write(f"{chain}: {took:.1f} s, {len(text) // 1000} kB\n")
    sys.stderr.write(f"{total:.1f} s\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True)
    parser.add_argument("--only", default="", metavar="CHAIN", help="chains whose name holds this")
    write(parser.parse_args().only)
