"""`rlhf-kit eval perplexity`: how well a model predicts a text, token by token, in windows with a stated stride.

A window reads what the model can read and scores its last `stride` tokens; the first scores all it reads. A smaller
stride gives each token more context and takes longer; numbers of different strides or windows do not compare. A
document begins after BOS, or the end of text where there is none, so that its first token is scored too. As tokens
differ from model to model, the figures by word and by byte are those to compare models by.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial

from numpy.typing import NDArray

from rlhf_kit.data.chat import last_tokens, start_ids
from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.eval import results
from rlhf_kit.eval.intervals import Figure, mean
from rlhf_kit.eval.items import Item, Run, Settings
from rlhf_kit.eval.text.lambada import exponential, show
from rlhf_kit.generation.generators import encode, first_ids, load_generator
from rlhf_kit.generation.likelihood import Request, likelihoods, windows
from rlhf_kit.hashes import text_hash
from rlhf_kit.models.checkpoints import context_length
from rlhf_kit.models.identity import model_hash
from rlhf_kit.processes import processes, quiet

PROTOCOL, VERSION = "strided", 2  # 2: a document begins after BOS where there is one
NO_LIMIT = 2048  # tokens a window reads where the model has no fixed number


def run(options: argparse.Namespace) -> None:
    """`rlhf-kit eval perplexity` with parsed options (`options.perplexity`). Raises UserError."""
    quiet()
    rows, _ = load(options.data, ("text",), split=options.split)
    documents = list(rows["text"])[: options.limit]
    state = processes()
    model, tokenizer = load_generator(options.model, options.dtype, state.device)
    window = context_length(model.config) or NO_LIMIT
    stride = options.stride or window // 2
    if stride > window:
        raise UserError(f"--stride {stride} is more than the {window} tokens that a window reads; give a smaller one.")
    start = start_ids(tokenizer)  # which stands before every window
    pieces, plan = [first_ids(tokenizer) + encode(tokenizer, text) for text in documents], {}
    for number, ids in enumerate(pieces):
        for begin, first, end in windows(len(ids), window, stride):
            plan[f"{number}/{first}"] = (number, begin, first, end)
    settings = Settings(
        "perplexity", PROTOCOL, VERSION, options.model, model_hash(options.model), options.data,
        results.fingerprint(documents), options.seed, options.limit,
        {"stride": stride, "window": window, "dtype": options.dtype},
    )  # fmt: skip
    with Run(options.output, settings, list(plan), state, unit="windows") as under_way:
        asked = [plan[name] for name in under_way.todo]
        requests = [
            Request(last_tokens(pieces[number][:first], first - begin, start), [pieces[number][first:end]])
            for number, begin, first, end in asked
        ]
        for at, (likely,) in likelihoods(model, requests, options.max_batch_tokens):
            number, begin, first, end = asked[at]
            under_way.add(
                Item(
                    id=under_way.todo[at],
                    cluster=str(number),
                    prompt_hash=text_hash(f"{pieces[number][begin:end]}"),
                    output="",
                    answer="",
                    scores={"nll": -likely.total},
                    details={"tokens": end - first},
                )
            )
    found = under_way.finish(partial(figures, documents))
    if found is not None:
        show(found, options.output is not None)


def figures(documents: Sequence[str], items: Sequence[Item], clusters: NDArray) -> dict[str, Figure]:
    """Perplexity of a token and of a word (white space divides words), and bits per byte of UTF-8."""
    seen: set[str] = set()
    tokens, words, size = [], [], []
    for item in items:
        # A document's words and bytes are counted once, with its first window.
        text = "" if item.cluster in seen else documents[int(item.cluster)]
        seen.add(item.cluster)
        tokens.append(item.details["tokens"])
        words.append(len(text.split()))
        size.append(len(text.encode()))
    nll = [item.scores["nll"] for item in items]
    per = {name: _ratio(nll, counts, clusters) for name, counts in (("t", tokens), ("w", words), ("b", size))}
    return {
        "perplexity_token": lambda draws: exponential(per["t"], draws),
        "perplexity_word": lambda draws: exponential(per["w"], draws),
        "bits_per_byte": lambda draws: per["b"](draws) / math.log(2),
    }


def _ratio(values: Sequence[float], counts: Sequence[float], clusters: NDArray) -> Figure:
    """Sum of the values by the sum of the counts."""
    top, bottom = mean(values, clusters), mean(counts, clusters)
    return lambda draws: top(draws) / bottom(draws)
