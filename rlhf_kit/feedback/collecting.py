"""`rlhf-kit collect`: several answers to each prompt, by one model or several, into a store to be labelled.

Of a prompt, K answers come in turn from all models at all temperatures. Equal ones become one, and where fewer than
two different ones are left, more are drawn. A prompt that was answered by the same settings is not answered again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, product
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.labels import schema
from rlhf_kit.data.labels.store import Answer, Store, open_store
from rlhf_kit.data.loading import load
from rlhf_kit.data.messages import prompt_key
from rlhf_kit.errors import UserError
from rlhf_kit.feedback.assignment import Policy, set_policy
from rlhf_kit.generation.generators import check_generators, encode_prompts, load_generator
from rlhf_kit.generation.sampling import sample
from rlhf_kit.hashes import text_hash
from rlhf_kit.models.checkpoints import end_ids
from rlhf_kit.models.identity import model_hash
from rlhf_kit.models.revisions import pin
from rlhf_kit.options import option
from rlhf_kit.options.bounds import number_faults
from rlhf_kit.processes import processes, quiet
from rlhf_kit.progress import Progress
from rlhf_kit.terminal import say

AGAIN = 3  # times that answers are drawn for prompts that have too few different ones


@dataclass
class CollectOptions:
    models: list[str] = option(
        [],
        "Policies whose answers are ranked, mixed: folders or hub ids. 模型",
        short="model",
        required=True,
        whole=True,
    )
    dataset_name: str | None = option(
        None, "Prompts: file, folder, hub id or world:prompts. 提示", short="prompts", required=True
    )
    output_file: str | None = option(
        None,
        "The store: FILE.db or postgresql://USER@HOST/NAME; made where it is not there. 標註資料庫",
        required=True,
    )
    kind: Literal["ranking", "thumbs"] = option(
        "ranking", "What people will do: rank K answers, or give one a thumb. 排序或讚／噓"
    )
    k: int = option(4, "Answers a prompt; InstructGPT had 4 to 9. 每個提示的回答數")
    temperatures: list[float] = option([1.0], "Of sampling, each in turn. 取樣溫度", whole=True)
    max_completion_length: int = option(128, "Tokens of an answer. 回答的長度上限")
    split: str = option("train", "Split of a folder, a hub dataset or the world. 資料的分割")
    limit: int | None = option(None, "The first N prompts. 只用前 N 個提示")
    batch_size: int = option(32, "Answers sampled at once. 批次大小")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "Type of the weights. 數值精度")
    seed: int = option(0, "Of the answers. 亂數種子")
    minimum: int = option(1, "Labelers a task needs. 每題至少幾人標註")
    overlap_share: float = option(
        0.2, "Share of the tasks that three labelers get, to see how far they agree. 重疊比例"
    )
    trust_remote_code: bool = option(False, "Run code that comes with a hub model. 執行模型自帶的程式碼")
    dry_run: bool = option(False, "Check everything, show the plan, load no weights, write nothing. 只檢查")


@dataclass(frozen=True)
class Writer:
    """One model at one temperature."""

    model: str
    model_hash: str
    temperature: float

    def source(self, settings: str) -> dict[str, Any]:
        return {
            "model": self.model, "model_hash": self.model_hash, "temperature": self.temperature, "settings": settings,
        }  # fmt: skip


def run(options: CollectOptions) -> None:
    """`rlhf-kit collect`. Raises UserError before a weight is loaded where that can be known."""
    quiet()
    pin(options)
    check(options)
    rows, _ = load(options.dataset_name, ("prompts",), options.split, options.seed)
    prompts = list({prompt_key(prompt): prompt for prompt in rows["prompt"][: options.limit]}.values())
    check_generators(options.models)
    pairs = product(options.models, options.temperatures)
    writers = [Writer(model, model_hash(model), temperature) for model, temperature in pairs]
    policy = Policy(minimum=options.minimum, overlap=options.overlap_share, overlap_minimum=max(3, options.minimum))
    if options.dry_run:
        say(
            f"{len(prompts)} prompts of {options.dataset_name}, {options.k} answers each by {len(options.models)} "
            f"models, into {options.output_file}.\nDry run: no weights were loaded, nothing was written. 只檢查。"
        )
        return
    store = open_store(options.output_file, create=True)
    set_policy(store, policy)
    settings = text_hash(repr((sorted(map(repr, writers)), options.k, options.max_completion_length, options.seed)))
    done = answered(store, options.kind, settings)
    left = [prompt for prompt in prompts if prompt_key(prompt) not in done]
    counts = collect(store, left, writers, options, settings)
    told = "".join(f"; {count} {what}" for what, count in counts.items() if count and what != "added")
    say(
        f"{options.output_file}: {counts['added']} tasks added to {len(prompts) - len(left)} that were there{told}.\n"
        f"Label them 開始標註: rlhf-kit ui {options.output_file}"
    )


def check(options: CollectOptions) -> None:
    """Raises UserError with all faults of the options."""
    faults = number_faults(
        "collect", max_completion_length=options.max_completion_length, batch_size=options.batch_size
    )
    needed = 1 if options.kind == schema.THUMBS else 2
    if options.k < needed:
        faults.append(f"--k is {options.k}; a {options.kind} needs {needed} or more")
    if any(not temperature > 0 for temperature in options.temperatures) or not options.temperatures:
        faults.append("--temperatures must be above 0, or all answers are the same")
    if processes().num_processes > 1:
        faults.append("start it as one process: two would answer the same prompts")
    if faults:
        raise UserError(f"collect: {'; '.join(faults)}.")


def answered(store: Store, kind: str, settings: str) -> set[str]:
    """The keys of prompts that the store has answers to by these settings."""
    return {
        prompt_key(task.prompt)
        for task in store.tasks(kind).values()
        if any(source.get("settings") == settings for answer in task.answers for source in answer.sources)
    }


def collect(
    store: Store, prompts: Sequence[Any], writers: Sequence[Writer], options: CollectOptions, settings: str
) -> Counter:
    """Answer the prompts, a batch at a time, kept in the store before the next. Returns what became of them."""
    counts: Counter = Counter(added=0)
    models = {writer.model: None for writer in writers}
    loaded = {name: load_generator(name, options.dtype, processes().device) for name in models} if prompts else {}
    generator = torch.Generator().manual_seed(options.seed)
    size = max(1, options.batch_size * len(writers) // options.k)
    with Progress(len(prompts), "prompts") as progress:
        for start in range(0, len(prompts), size):
            some = prompts[start : start + size]
            for prompt, answers in zip(
                some, answers_to(some, writers, loaded, options, generator, settings), strict=True
            ):
                counts += add(store, options.kind, prompt, answers)
            progress.add(len(some))
    return counts


def add(store: Store, kind: str, prompt: Any, answers: Sequence[Answer]) -> Counter:
    """A task of all answers to be ranked, or one of each to be given a thumb."""
    if kind == schema.THUMBS:
        for answer in answers:
            store.add_task(kind, prompt, [answer])
        return Counter({"added": len(answers)})
    if len({answer.text for answer in answers}) < 2:
        return Counter({"prompts left out, to which all answers are the same": 1})
    store.add_task(kind, prompt, answers)
    return Counter({"added": 1})


def answers_to(
    prompts: Sequence[Any],
    writers: Sequence[Writer],
    loaded: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    options: CollectOptions,
    generator: torch.Generator,
    settings: str,
) -> list[list[Answer]]:
    """K answers to each prompt, and more where fewer than two are different; empty ones are left out."""
    answers: list[list[Answer]] = [[] for _ in prompts]
    wanted = dict.fromkeys(range(len(prompts)), options.k)
    turns = cycle(range(len(writers)))
    for _ in range(1 + AGAIN):
        draws = [(at, next(turns)) for at, count in wanted.items() for _ in range(count)]
        for number, writer in enumerate(writers):
            own = [at for at, turn in draws if turn == number]
            texts = _written(loaded[writer.model], [prompts[at] for at in own], writer.temperature, options, generator)
            for at, text in zip(own, texts, strict=True):
                if text.strip():
                    answers[at].append(Answer(text, [writer.source(settings)]))
        needed = 1 if options.kind == schema.THUMBS else 2
        wanted = {at: options.k for at in wanted if len({answer.text for answer in answers[at]}) < needed}
    return answers


def _written(
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    prompts: Sequence[Any],
    temperature: float,
    options: CollectOptions,
    generator: torch.Generator,
) -> list[str]:
    if not prompts:
        return []
    model, tokenizer = loaded
    rollout = sample(
        model,
        encode_prompts(model, tokenizer, prompts, options.max_completion_length, "collect"),
        eos_ids=end_ids(model, tokenizer),
        pad_id=tokenizer.pad_token_id,
        max_completion_length=options.max_completion_length,
        temperature=temperature,
        generator=generator,
        batch_size=options.batch_size,
    )
    return [text.strip() for text in rollout.texts(tokenizer)]
