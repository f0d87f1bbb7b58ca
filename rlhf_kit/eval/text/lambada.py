"""`rlhf-kit eval lambada`: the last word of a passage, which only the whole passage tells (Paperno et al. 2016).

`last_word`: the word is right when greedy decoding writes all of its tokens (GPT-2 small: 32.6 %). `last_token`: when
it writes the last of them, given those before (46.9 %, near the 45.99 % that GPT-2's paper states; Radford et al.
2019, section 3.3, which also filters stop words for its best figure). Perplexity is that of the word, or of the token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import last_tokens, start_ids
from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.eval.items import Item, percentages
from rlhf_kit.eval.task import Task, TaskArguments
from rlhf_kit.generation.generators import encode_behind
from rlhf_kit.generation.likelihood import Likelihood, Request, likelihoods, room_before
from rlhf_kit.hashes import text_hash
from rlhf_kit.intervals import Figure, mean
from rlhf_kit.options import option


@dataclass
class LambadaArguments(TaskArguments):
    dataset_name: str | None = option(None, "Passages (column text): file, folder or hub id. 測試資料", required=True)


class Lambada(Task):
    name, protocol, version, unit = "lambada", "last-word", 2, "passages"  # 2: tokenized behind its passage
    Arguments = LambadaArguments

    def read(self) -> list[str]:
        table, _ = load(self.options.dataset_name, ("text",), split=self.options.split)
        return list(table["text"])

    def prepare(self) -> list[str]:
        make = partial(request_of, self.tokenizer, limit=self.context)
        self.requests = self.each(make, "passage", range(len(self.rows)))
        return [str(number) for number in range(len(self.rows))]

    def ask(self, model: PreTrainedModel, ids: Sequence[str]) -> Iterator[Item]:
        numbers = [int(name) for name in ids]
        requests = [self.requests[number] for number in numbers]
        for at, (likelihood,) in likelihoods(model, requests, self.options.max_batch_tokens):
            yield item_of(numbers[at], self.rows[numbers[at]], likelihood)

    def figures(self, items: Sequence[Item], clusters: NDArray) -> dict[str, Figure]:
        """Accuracies in percent; perplexities of a word and of its last token."""
        shares = percentages(items, clusters)
        figures = {name: shares[name] for name in ("last_word", "last_token")}
        for name in ("word", "token"):
            nll = mean([item.scores[f"nll_{name}"] for item in items], clusters)
            figures[f"perplexity_{name}"] = partial(exponential, nll)
        return figures


def split_last_word(passage: str) -> tuple[str, str]:
    """(context, continuation): the continuation begins with the space before the word.

    >>> split_last_word("It was Tom .\\n")
    ('It was Tom', ' .')
    """
    context, _, word = passage.strip().rpartition(" ")
    return context, f" {word}"


def request_of(tokenizer: PreTrainedTokenizerBase, passage: str, limit: int | None) -> Request:
    """Of a passage longer than the model reads, the beginning is left out. Raises UserError for a single word."""
    context, word = split_last_word(passage)
    if not context:
        raise UserError("it is a single word, with no context to predict it from.")
    ids, (target,) = encode_behind(tokenizer, context, [word])
    most = max(1, len(ids) - room_before([target], limit).excess(len(ids)))
    return Request(last_tokens(ids, most, start_ids(tokenizer)), [target])


def item_of(number: int, passage: str, likelihood: Likelihood) -> Item:
    context, word = split_last_word(passage)
    scores = {
        "last_word": float(all(likelihood.greedy)),
        "last_token": float(likelihood.greedy[-1]),
        "nll_word": -likelihood.total,
        "nll_token": -likelihood.logprobs[-1],
    }
    return Item(str(number), str(number), text_hash(context), "", word.strip(), scores)


def exponential(figure: Figure, draws: NDArray) -> NDArray:
    with np.errstate(over="ignore"):  # a model that knows nothing of a text: infinite
        return np.exp(figure(draws))
