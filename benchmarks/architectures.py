"""Which architectures each stage is right for: tiny random models of transformers' causal LMs through every stage.

    python benchmarks/architectures.py --minutes 15 --markdown docs/architectures.md

What a stage computes is compared with plain forwards of one text each, without padding, mask, positions or cache, and
without the stage's own preflight: losses at learning rate 0, scores, the sampled tokens' log-probs, values, and what
evaluations write. Every model runs in a process of its own. The exit status is 1 where a number is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F
import transformers
from datasets import Dataset
from tiny_models import model_types, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

import rlhf_kit
from rlhf_kit.errors import UserError
from rlhf_kit.generation.decoding import Decoding, continuations
from rlhf_kit.generation.likelihood import Request, likelihoods
from rlhf_kit.models.checkpoints import load_policy, load_tokenizer
from rlhf_kit.models.heads import score_texts
from rlhf_kit.ppo import PPOConfig, PPOTrainer
from rlhf_kit.stages import pretrain, reward, sft

BASE = Path(rlhf_kit.__file__).parent / "world" / "base"
TEXTS = ["Anna lives in Riverton.", "Nora came by bus.", "Kofi was there again.", "Tom was late and so was Anna."]
ANSWERS = [" Yes.", " She has a parrot.", " No, he was not there.", " Late."]
STAGES = ["pretrain", "sft", "sft --packing", "reward", "ppo, shared", "ppo, separate", "evaluation"]
FIRST = """gpt2 gpt_neo gptj gpt_neox gpt_bigcode openai-gpt opt bloom falcon mpt codegen llama mistral mixtral qwen2
qwen2_moe qwen3 qwen3_moe qwen3_5_text qwen3_next gemma gemma2 gemma3_text phi phi3 gpt_oss stablelm
starcoder2 olmo2 lfm2 mamba mamba2 rwkv granite cohere deepseek_v3 biogpt xglm jamba falcon_h1 smollm3 glm4""".split()
CLOSE = 2e-4  # nats, or units of a score


def alone(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Log-probs (T, V) of one text by the model's plain forward."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def nats(model: PreTrainedModel, rows: list[tuple[list[int], int]]) -> float:
    """Mean negative log-likelihood of the tokens of each row from a place on."""
    found = []
    for ids, start in rows:
        logprobs = alone(model, ids)
        found += [-logprobs[at - 1, ids[at]].item() for at in range(start, len(ids))]
    return sum(found) / len(found)


class Wrong(Exception):
    """A stage that trained or measured something else."""


def compare(found, truth, what: str) -> None:
    gap = float((torch.as_tensor(found) - torch.as_tensor(truth)).abs().max())
    if not gap <= CLOSE:
        raise Wrong(f"{what} off by {gap:.2g}")


class Trial:
    """One model, its folder and its rows."""

    def __init__(self, folder: Path, kind: str):
        self.folder, self.tokenizer = folder, load_tokenizer(BASE)
        self.model_folder = folder / "model"
        tiny_model(kind, self.tokenizer).save_pretrained(self.model_folder)
        self.tokenizer.save_pretrained(self.model_folder)
        self.plain = AutoModelForCausalLM.from_pretrained(self.model_folder).float().eval()
        self.encoded = [self.tokenizer(text)["input_ids"] for text in TEXTS]
        self.answers = [self.tokenizer(text)["input_ids"] for text in ANSWERS]
        self.end = self.tokenizer.eos_token_id

    def run(self, stage: Callable, rows: list[dict], *options: str) -> Path:
        """Run a recipe at learning rate 0; its folder. Raises UserError with what it refused."""
        data, out = self.folder / "rows.jsonl", Path(tempfile.mkdtemp(dir=self.folder))
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        argv = ["--model_name_or_path", self.model_folder, "--dataset_name", data, "--output_dir", out, *options]
        argv += "--max_steps 1 --learning_rate 0 --logging_steps 1 --per_device_train_batch_size 8".split()
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            status = main(
                [stage.__name__.rpartition(".")[2], *map(str, argv), "--disable_tqdm", "--save_strategy", "no"]
            )
        if status:
            raise UserError(told.getvalue().strip().splitlines()[-1].split(": ", 1)[-1])
        return out

    def loss(self, out: Path) -> float:
        return json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["loss"]

    def pretrain(self) -> None:
        out = self.run(pretrain, [{"text": text} for text in TEXTS], "--block_size", "48")
        compare(self.loss(out), nats(self.plain, [([*ids, self.end], 1) for ids in self.encoded]), "loss")

    def sft(self, *options: str) -> None:
        rows = [{"prompt": a, "completion": b} for a, b in zip(TEXTS, ANSWERS, strict=True)]
        out = self.run(sft, rows, "--max_length", "48", "--router_aux_loss_coef", "0", *options)
        pairs = zip(self.encoded, self.answers, strict=True)
        compare(self.loss(out), nats(self.plain, [([*a, *b, self.end], len(a)) for a, b in pairs]), "loss")

    def packed_sft(self) -> None:
        self.sft("--packing")

    def reward(self) -> None:
        rows = [{"prompt": text, "chosen": ANSWERS[at], "rejected": ANSWERS[at - 1]} for at, text in enumerate(TEXTS)]
        out = self.run(reward, rows, "--calibrate", "false")
        model = AutoModelForSequenceClassification.from_pretrained(out).eval()
        with torch.no_grad():
            pairs = zip(self.encoded, self.answers, strict=True)
            alone = [model(torch.tensor([[*a, *b]])).logits[0, 0] for a, b in pairs]
            losers = [
                model(torch.tensor([[*a, *self.answers[at - 1]]])).logits[0, 0] for at, a in enumerate(self.encoded)
            ]
        compare(score_texts(model, self.tokenizer, TEXTS, ANSWERS), torch.stack(alone), "scores")
        compare(self.loss(out), -F.logsigmoid(torch.stack(alone) - torch.stack(losers)).mean(), "loss")

    def ppo(self, value_model: str = "shared") -> None:
        args = PPOConfig(
            str(self.folder / "ppo"), rollout_batch_size=4, mini_batch_size=4, per_device_train_batch_size=2,
            total_episodes=4, num_ppo_epochs=1, max_completion_length=6, learning_rate=0.0, logging_steps=1,
            use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        data = Dataset.from_list([{"prompt": text} for text in TEXTS])
        policy = load_policy(self.model_folder)
        trainer = PPOTrainer(policy, brief, args, data, processing_class=self.tokenizer, value_model=value_model)
        trainer.model.value_head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
        experience, _ = trainer.collect(trainer.prompts, torch.Generator().manual_seed(0))
        for row, (prompt, ids) in enumerate(zip(trainer.prompts, experience.rollout.completions(), strict=True)):
            start, whole = len(prompt["prompt_ids"]), [*prompt["prompt_ids"], *ids]
            truth = alone(self.plain, whole)[start - 1 : -1].gather(1, torch.tensor(ids)[:, None])[:, 0]
            compare(experience.logprobs[row, : len(ids)], truth, "log-probs")
        trainer.train()
        logs = next(row for row in trainer.state.log_history if "policy/ratio" in row)
        compare(logs["policy/ratio"], 1.0, "ratio")
        compare(logs["kl"], 0.0, "KL")

    def separate_ppo(self) -> None:
        self.ppo("separate")

    def evaluation(self) -> None:
        how = Decoding(max_new_tokens=5, stop=())
        model = load_policy(self.model_folder).eval()
        for number, found in continuations(model, self.tokenizer, self.encoded, how):
            ids = list(self.encoded[number])
            for token in found.ids:
                logprobs = alone(self.plain, ids)[-1]
                compare(logprobs[token], logprobs.max(), "a written token's log-probability")
                ids.append(token)
        requests = [Request(a, [self.answers[0], self.answers[1]]) for a in self.encoded]
        for number, found in likelihoods(model, requests):
            for likely, ids in zip(found, requests[number].continuations, strict=True):
                logprobs = alone(self.plain, [*self.encoded[number], *ids])
                start = len(self.encoded[number]) - 1
                truth = [logprobs[start + at, token].item() for at, token in enumerate(ids)]
                compare(torch.tensor(likely.logprobs), torch.tensor(truth), "likelihoods")


def brief(prompts, completions, **columns) -> list[float]:
    return [-len(completion) / 20 for completion in completions]


class Said(logging.Handler):
    """What the stages said they fell back to."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def outcome(act: Callable[[], None], said: Said) -> str:
    said.lines.clear()
    try:
        act()
    except UserError as error:
        return f"refused: {error}"
    except Wrong as error:
        return f"WRONG: {error}"
    except Exception as error:
        return f"fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    how = {"a row of its own": "a document a row", "reads its row anew": "no cache"}
    return next((f"right, {short}" for line in said.lines for text, short in how.items() if text in line), "right")


def try_model(kind: str, connection, gibibytes: int) -> None:
    """In a process of its own: the outcome of each stage, or why there is no model."""
    resource.setrlimit(resource.RLIMIT_AS, (gibibytes << 30, gibibytes << 30))
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    torch.set_num_threads(1)
    said = Said()
    logging.getLogger().addHandler(said)
    with tempfile.TemporaryDirectory() as folder:
        try:
            trial = Trial(Path(folder), kind)
            alone(trial.plain, trial.encoded[0])
        except Exception as error:
            connection.send({"not tried": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"})
            return
        acts = (
            trial.pretrain,
            trial.sft,
            trial.packed_sft,
            trial.reward,
            trial.ppo,
            trial.separate_ppo,
            trial.evaluation,
        )
        for stage, act in zip(STAGES, acts, strict=True):
            connection.send({stage: outcome(act, said)})


def results(kinds: list[str], minutes: float, patience: float, gibibytes: int) -> dict[str, dict[str, str]]:
    context, began, found = multiprocessing.get_context("fork"), time.monotonic(), {}
    for kind in kinds:
        if time.monotonic() - began > 60 * minutes:
            found[kind] = {"not tried": "the time was over"}
            continue
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=try_model, args=(kind, there, gibibytes))
        process.start()
        there.close()
        row, ends = {}, time.monotonic() + patience
        with contextlib.suppress(EOFError):
            while here.poll(max(0, ends - time.monotonic())):
                row |= here.recv()
        if process.is_alive():
            process.join(1)
            process.kill()
        process.join()
        missing = [stage for stage in STAGES if stage not in row]
        why = (
            f"took more than {patience:.0f} s"
            if time.monotonic() > ends
            else f"its process ended ({process.exitcode})"
        )
        if "not tried" not in row:
            row |= {stage: f"not tried: {why}" for stage in missing}
        found[kind] = row
        print(kind, row, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help="model types; default: all of transformers' causal LMs")
    parser.add_argument("--minutes", type=float, default=15, help="no further model is begun after these")
    parser.add_argument("--patience", type=float, default=90, help="seconds a model may take")
    parser.add_argument("--gibibytes", type=int, default=12, help="address space of a model's process")
    parser.add_argument("--json", type=Path, help="write all outcomes there")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    known = model_types()
    kinds = options.kinds or [*(k for k in FIRST if k in known), *(k for k in known if k not in FIRST)]
    found = results(kinds, options.minutes, options.patience, options.gibibytes)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    if options.markdown:
        options.markdown.write_text(page(found), encoding="utf-8")
    return int(any("WRONG" in cell for row in found.values() for cell in row.values()))


INTRO = """# Which architectures each stage is right for

Made by `make architectures` (`benchmarks/architectures.py`) with transformers {version}: {tried} of its {known} causal
language models, shrunk by one rule to a few layers of random weights, went through every stage on a CPU in float32.
What a stage computed is compared with plain forwards of one text each: losses at learning rate 0, the scores of a
saved reward model, the log-probs of what PPO sampled, its ratio and KL at learning rate 0, what evaluations write, and
likelihoods.

The stages do not know these names. Before it trains, each tries its model on two short texts of the run
(`rlhf_kit/models/preflight.py`): a model that is not in this table is right, falls back or is refused in the same way.

* **right**: the numbers are those of each text alone.
* **a document a row**: right, and slower: packed documents would have read each other.
* **no cache**: right, and slow: with a cache, or padding on the left, other tokens would have been sampled; each token
  reads its row anew.
* **refused**: with the reason below. **fails**: ends in an error of the model's own code, and nothing is trained.
* **-**: transformers has no such model of this architecture.
"""
NO_MODEL = "Unrecognized configuration class"
VARYING = r"\d+(\.\d+)?(e[-+]\d+)?|\binf\b|\b\w+(CausalLM|HeadModel|Decoder|Classification)\b|'/tmp/\S+'"


def cell(text: str) -> str:
    if NO_MODEL in text:
        return "-"
    return text.removeprefix("right, ") if text.startswith("right") else text.partition(": ")[0]


def page(found: dict[str, dict[str, str]]) -> str:
    """docs/architectures.md."""
    tried = {kind: row for kind, row in found.items() if "not tried" not in row}
    lines = [INTRO.format(version=transformers.__version__, tried=len(tried), known=len(found))]
    lines += [f"| architecture | {' | '.join(STAGES)} |", "| --- " * (len(STAGES) + 1) + "|"]
    for kind, row in sorted(tried.items()):
        lines.append(f"| {kind} | {' | '.join(cell(row[stage]) for stage in STAGES)} |")
    lines += ["", "## Reasons", ""]
    reasons: dict[str, list[str]] = {}
    for kind, row in sorted(tried.items()):
        for stage in STAGES:
            if not row[stage].startswith("right") and NO_MODEL not in row[stage]:
                reason = re.sub(VARYING, "...", row[stage])
                reasons.setdefault(reason, []).append(f"{kind} ({stage})")
    lines += [f"* {reason}: {', '.join(where)}." for reason, where in sorted(reasons.items())]
    lines += ["", "## Not tried", ""]
    why: dict[str, list[str]] = {}
    for kind, row in sorted(found.items()):
        if "not tried" in row:
            why.setdefault(row["not tried"], []).append(kind)
    lines += [f"* {', '.join(kinds)}: {reason}" for reason, kinds in sorted(why.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
