"""`rlhf-kit eval perplexity`: how well a model predicts a text, token by token, in windows with a stated stride.

A window reads what the model can read and scores its last `stride` tokens; the first scores all it reads. A smaller
stride gives each token more context and takes longer; numbers of different strides or windows do not compare. A
document begins after BOS, or the end of text where there is none, so that its first token is scored too. As tokens
differ from model to model, the figures by word and by byte are those to compare models by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from numpy.typing import NDArray
from transformers import PreTrainedModel

from rlhf_kit.data.chat import last_tokens, start_ids
from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.eval.items import Item
from rlhf_kit.eval.task import Task, TaskArguments
from rlhf_kit.eval.text.lambada import exponential
from rlhf_kit.generation.generators import encode, first_ids
from rlhf_kit.generation.likelihood import Request, likelihoods, windows
from rlhf_kit.hashes import text_hash
from rlhf_kit.intervals import Figure, mean
from rlhf_kit.options import option

NO_LIMIT = 2048  # tokens a window reads where the model has no fixed number


@dataclass
class PerplexityArguments(TaskArguments):
    dataset_name: str | None = option(
        None, "Documents (column text), or a .txt file, split at WikiText's headings. 測試資料", required=True
    )
    stride: int | None = option(None, "New tokens scored per window. Default: half the model's context. 步幅")


class Perplexity(Task):
    name, protocol, version, unit = "perplexity", "strided", 2, "windows"  # 2: a document begins after BOS, if any
    Arguments = PerplexityArguments

    def read(self) -> list[str]:
        table, _ = load(self.options.dataset_name, ("text",), split=self.options.split)
        return list(table["text"])

    def prepare(self) -> list[str]:
        self.window = window = self.context or NO_LIMIT
        self.stride = stride = self.options.stride or window // 2
        if stride > window:
            raise UserError(
                f"--stride {stride} is more than the {window} tokens that a window reads; give a smaller one."
            )
        self.tokens = [first_ids(self.tokenizer) + encode(self.tokenizer, text) for text in self.rows]
        self.places = {
            f"{number}/{first}": (number, begin, first, end)
            for number, ids in enumerate(self.tokens)
            for begin, first, end in windows(len(ids), window, stride)
        }
        return list(self.places)

    def settings(self) -> dict:
        return {"stride": self.stride, "window": self.window, "dtype": self.options.dtype}

    def ask(self, model: PreTrainedModel, ids: Sequence[str]) -> Iterator[Item]:
        start, tokens = start_ids(self.tokenizer), self.tokens  # `start` stands before every window
        places = [self.places[name] for name in ids]
        requests = [
            Request(last_tokens(tokens[number][:first], first - begin, start), [tokens[number][first:end]])
            for number, begin, first, end in places
        ]
        for at, (likelihood,) in likelihoods(model, requests, self.options.max_batch_tokens):
            number, begin, first, end = places[at]
            yield Item(
                id=ids[at],
                cluster=str(number),
                prompt_hash=text_hash(f"{tokens[number][begin:end]}"),
                output="",
                answer="",
                scores={"nll": -likelihood.total},
                details={"tokens": end - first},
            )

    def figures(self, items: Sequence[Item], clusters: NDArray) -> dict[str, Figure]:
        """Perplexity of a token and of a word (white space divides words), and bits per byte of UTF-8."""
        counted: set[str] = set()
        counts = []
        for item in items:
            # A document's words and bytes are counted once, with its first window.
            text = "" if item.cluster in counted else self.rows[int(item.cluster)]
            counted.add(item.cluster)
            counts.append((item.details["tokens"], len(text.split()), len(text.encode())))
        nll = [item.scores["nll"] for item in items]
        token, word, byte = (_ratio(nll, column, clusters) for column in zip(*counts, strict=True))
        return {
            "perplexity_token": lambda draws: exponential(token, draws),
            "perplexity_word": lambda draws: exponential(word, draws),
            "bits_per_byte": lambda draws: byte(draws) / math.log(2),
        }


def _ratio(values: Sequence[float], counts: Sequence[float], clusters: NDArray) -> Figure:
    """Sum of the values by the sum of the counts."""
    top, bottom = mean(values, clusters), mean(counts, clusters)
    return lambda draws: top(draws) / bottom(draws)
