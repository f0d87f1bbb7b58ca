"""`rlhf-kit eval tldr`: summaries as GPT-2 was made to write them, with "TL;DR:" after the article.

The first tokens of the article that leave room, a new line and the hint; 100 tokens sampled from the two likeliest at
each step; the first three sentences of that (Radford et al. 2019, section 3.6). Lede-3 and Random-3, the article's
first three sentences and three at random, need no model: run them first, to see that data and ROUGE are right.
The paper's R-L is `rougeLsum` here. What is drawn is decided by (seed, article, step), not by batch or process.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_kit.data import sources
from rlhf_kit.data.chat import start_ids
from rlhf_kit.data.formats import report, told_columns
from rlhf_kit.errors import UserError
from rlhf_kit.eval import results
from rlhf_kit.eval.items import Item, Results
from rlhf_kit.eval.rouge import UNCOUNTED, rouge, units
from rlhf_kit.eval.task import ModelsArguments, Task
from rlhf_kit.generation.generators import encode_begun, encode_behind
from rlhf_kit.hashes import text_hash
from rlhf_kit.models.checkpoints import end_ids
from rlhf_kit.models.forward import pad_right
from rlhf_kit.models.room import Room
from rlhf_kit.options import option
from rlhf_kit.terminal.console import Console

BASELINES = ("lede-3", "random-3")  # which need no model
HINT = "\nTL;DR:"
MAX_NEW_TOKENS, SENTENCES, TOP_K = 100, 3, 2
COLUMNS = (("article", "highlights"), ("document", "summary"), ("text", "summary"))
# CNN/DailyMail's test split, F1 of ROUGE-1, -2 and -L: GPT-2's paper, table 4.
PUBLISHED = {
    "GPT-2 1.5B (paper)": (29.34, 8.27, 26.58),
    "GPT-2 1.5B, no hint (paper)": (21.58, 4.03, 19.47),
    "Random-3 (paper)": (28.78, 8.63, 25.52),
    "Lede-3 (paper)": (40.38, 17.66, 36.62),
}


@dataclass(frozen=True)
class Article:
    id: str
    text: str
    summary: str  # a sentence a line, where the data has lines


def read_articles(source: str, split: str) -> list[Article]:
    """Articles with their reference summaries. Raises UserError with all faults of the source."""
    if source.partition(":")[0] == sources.WORLD:
        raise UserError("The embedded world has no summaries. Give a file, a folder or a hub id with --dataset_name.")
    loaded = sources.read(source, ("summaries",), split, 0)
    first = loaded.rows[0] if loaded.rows and isinstance(loaded.rows[0], Mapping) else {}
    columns = next((pair for pair in COLUMNS if set(pair) <= set(first)), None)
    faults = list(loaded.context.faults)
    if columns is None:
        known = ", or ".join(" and ".join(pair) for pair in COLUMNS)
        faults.append((0, f"the columns are {told_columns(list(first))}; summaries need {known}"))
    articles = []
    for number, row in zip(loaded.context.numbers_of(loaded.rows), loaded.rows, strict=True):
        values = [row.get(column) if isinstance(row, Mapping) else None for column in columns or ()]
        bad = [at for at, value in enumerate(values) if not isinstance(value, str) or not value.strip()]
        faults += [(number, f"`{columns[at]}` must be text, not {str(values[at])[:40]!r}") for at in bad]
        if columns and not bad and not units(values[1]):
            faults.append((number, f"`{columns[1]}` {UNCOUNTED}: {values[1][:40]!r}; remove the row"))
        elif columns and not bad:
            articles.append(Article(str(len(articles)), values[0].strip(), values[1].strip()))
    if faults:
        raise report(loaded.name, faults, len(loaded.rows), loaded.context.unit)
    return articles


def sentences(text: str) -> list[str]:
    """Each ends in a full stop, an exclamation or a question mark, with the quote closed after it, or with its line.

    >>> sentences('He said "no." Then he left! 他走了。她也是。')
    ['He said "no."', 'Then he left!', '他走了。', '她也是。']
    """
    borders = re.compile(r"(?<=[.!?])(?=\s)|(?<=[.!?][\"'”’)])(?=\s)|(?<=[。！？])(?![」』”])|(?<=[。！？][」』”])|\n")
    return [piece.strip() for piece in borders.split(text) if piece and piece.strip()]


def baseline(name: str, article: Article, seed: int) -> str:
    """Three sentences of the article, one a line: the first, or any in the article's order."""
    chosen = sentences(article.text)
    if name == "random-3":
        drawn = _random(seed, article).sample(range(len(chosen)), min(SENTENCES, len(chosen)))
        chosen = [chosen[at] for at in sorted(drawn)]
    return "\n".join(chosen[:SENTENCES])


def _random(seed: int, article: Article) -> random.Random:
    return random.Random(int(text_hash(f"{seed}\x1f{article.id}\x1f{article.text}"), 16))


# --- sampling -------------------------------------------------------------------------------------------------------


class _TopTwo(LogitsProcessor):
    """Leaves the one token that is drawn from the `TOP_K` likeliest by a number of each row's own, (B, steps)."""

    def __init__(self, numbers: Tensor, start: int):
        self.numbers, self.start = numbers, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        values, tokens = scores.float().topk(TOP_K)
        below = values.softmax(-1).cumsum(-1)[:, :-1]  # the last is 1
        at = (self.numbers[:, input_ids.shape[1] - self.start, None] >= below).sum(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens.gather(1, at), 0.0)


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[Sequence[float]],
    max_batch_tokens: int,
) -> Iterator[tuple[int, str]]:
    """(number of a prompt, what follows it), batch by batch, the longest first.

    Args:
        numbers: MAX_NEW_TOKENS of 0 to 1 for each prompt: below the likeliest token's share of the two, it is taken.
    """
    ends = end_ids(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=0,
        repetition_penalty=1.0,
    )  # fmt: skip
    order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
    while order:
        size = max(1, max_batch_tokens // (len(prompts[order[0]]) + MAX_NEW_TOKENS))
        batch, order = order[:size], order[size:]
        flipped, lengths = pad_right([list(reversed(prompts[at])) for at in batch], 0)
        ids = flipped.flip(1)
        mask = torch.arange(ids.shape[1] - 1, -1, -1) < lengths[:, None]
        drawn = _TopTwo(torch.tensor([numbers[at] for at in batch], device=model.device), ids.shape[1])
        out = model.generate(
            ids.to(model.device), config, attention_mask=mask.long().to(model.device),
            logits_processor=LogitsProcessorList([drawn]),
        )  # fmt: skip
        for at, row in zip(batch, out[:, ids.shape[1] :].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in ends), len(row))
            yield at, tokenizer.decode(row[:end], clean_up_tokenization_spaces=False)


# --- measuring ------------------------------------------------------------------------------------------------------


@dataclass
class TLDRArguments(ModelsArguments):
    models: list[str] = option(
        list(BASELINES),
        "Folders, hub ids, and the baselines lede-3 and random-3, which need no model. 模型與基準",
        whole=True,
    )
    dataset_name: str | None = option(
        None,
        "Articles with summaries (article + highlights, document + summary, or text + summary): file, folder or hub "
        "id. 測試資料",
        required=True,
    )
    split: str = option("test", "Split of a folder or a hub dataset. 資料的分割")
    no_hint: bool = option(False, "Leave out the hint TL;DR:, to measure its effect. 不加提示")


class TLDR(Task):
    """Summaries by models and by BASELINES, scored: rouge1, rouge2, rougeL, rougeLsum."""

    name, protocol, unit = "tldr", "gpt2", "articles"
    version = 2  # 2: the hint as it is tokenized behind its article; letters of every script
    Arguments, baselines = TLDRArguments, BASELINES
    written = ("a folder for each model",)

    def read(self) -> list[Article]:
        return read_articles(self.options.dataset_name, self.options.split)

    def prepare(self) -> list[str]:
        self.articles = {article.id: article for article in self.rows}
        if self.model not in BASELINES:
            hint = "" if self.options.no_hint else HINT
            make = partial(prompt_ids, self.tokenizer, hint=hint, limit=self.context)
            prompts = self.each(lambda article: make(article.text), "article", self.articles)
            self.prompts = dict(zip(self.articles, prompts, strict=True))
        return list(self.articles)

    @property
    def model_hash(self) -> str:
        return super().model_hash if self.model not in BASELINES else text_hash(self.model)

    @property
    def data_hash(self) -> str:
        return results.fingerprint([[article.text, article.summary] for article in self.rows])

    def settings(self) -> dict[str, Any]:
        return {"hint": not self.options.no_hint, **super().settings()} if self.model not in BASELINES else {}

    def ask(self, model: PreTrainedModel | None, ids: Sequence[str]) -> Iterator[Item]:
        articles, seed = [self.articles[name] for name in ids], self.options.seed
        if model is None:
            for article in articles:
                summary = baseline(self.model, article, seed)
                yield _item(article, article.text, summary, summary)
            return
        prompts, draws = [self.prompts[name] for name in ids], [_random(seed, article) for article in articles]
        numbers = [[draw.random() for _ in range(MAX_NEW_TOKENS)] for draw in draws]
        for at, text in sample(model, self.tokenizer, prompts, numbers, self.options.max_batch_tokens):
            summary = "\n".join(sentences(text)[:SENTENCES])
            yield _item(articles[at], str(prompts[at]), text, summary)

    def report(self, measured: Mapping[str, Results]) -> None:
        show(measured, self.options.limit)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, article: str, hint: str, limit: int | None) -> list[int]:
    """The article's first tokens, as many as leave room for the hint and the summary, and the hint."""
    context, (after,) = encode_behind(tokenizer, article, [hint])
    prompt, ids = context + after, encode_begun(tokenizer, article)
    room = Room(limit, MAX_NEW_TOKENS, "the summary")
    while not room.holds(len(prompt)):
        kept = len(ids) - room.excess(len(prompt))
        if kept < 1:
            shortest = len(prompt) - len(ids) + 1
            raise UserError(f"its beginning with the hint {room.lacks(shortest)}. Give a model with a longer context.")
        ids = ids[:kept]
        prompt = _hinted(tokenizer, ids, hint)
    return prompt


def _hinted(tokenizer: PreTrainedTokenizerBase, ids: list[int], hint: str) -> list[int]:
    """Ids of a text that was cut, and of the hint behind it, to which tokens of the text go that it is joined with."""
    text = tokenizer.decode(ids[len(start_ids(tokenizer)) :], clean_up_tokenization_spaces=False)
    context, (after,) = encode_behind(tokenizer, text, [hint])
    joined = len(encode_begun(tokenizer, text)) - len(context)
    return ids[: len(ids) - joined] + after


def _item(article: Article, prompt: str, output: str, summary: str) -> Item:
    return Item(article.id, article.id, text_hash(prompt), output, summary, rouge(summary, article.summary))


# --- the table -------------------------------------------------------------------------------------------------------


def show(found: Mapping[str, Results], limit: int | None) -> None:
    """A row for each system, and what GPT-2's paper found on CNN/DailyMail."""
    table = Table(title="ROUGE F1 x 100 (95 % interval of R-1) 摘要評分", title_justify="left")
    for name in ("system 系統", "R-1", "R-2", "R-L (Lsum)", "interval 信賴區間", "articles 篇數"):
        table.add_column(name, justify="left" if name.startswith("system") else "right", overflow="fold")
    for system, measured in found.items():
        values = [f"{measured.scores[name]:.2f}" for name in ("rouge1", "rouge2", "rougeLsum")]
        interval = measured.measured.intervals["rouge1"]
        bounds = f"{interval[0]:.1f}–{interval[1]:.1f}" if interval else "–"
        table.add_row(system, *values, bounds, str(measured.measured.n["items"]))
    for system, values in PUBLISHED.items():
        table.add_row(system, *(f"{value:.2f}" for value in values), "–", "–", style="dim")
    console = Console()
    console.print(table)
    if limit is not None:
        console.print("--limit was given: no result to report. 只評了一部分，不可當成結果。")
