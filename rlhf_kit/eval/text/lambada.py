"""`rlhf-kit eval lambada`: the last word of a passage, which only the whole passage tells (Paperno et al. 2016).

`last_word`: the word is right when greedy decoding writes all of its tokens (GPT-2 small: 32.6 %). `last_token`: when
it writes the last of them, given those before (46.9 %, near the 45.99 % that GPT-2's paper states; Radford et al.
2019, section 3.3, which also filters stop words for its best figure). Perplexity is that of the word, or of the token.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.chat import last_tokens, start_ids
from rlhf_kit.data.formats import SHOWN
from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.eval import results
from rlhf_kit.eval.intervals import Figure, mean
from rlhf_kit.eval.items import Item, Results, Run, Settings, percentages
from rlhf_kit.generation.generators import encode_behind, load_generator
from rlhf_kit.generation.likelihood import Likelihood, Request, likelihoods
from rlhf_kit.hashes import text_hash
from rlhf_kit.models.checkpoints import context_length, load_config, load_tokenizer
from rlhf_kit.models.identity import model_hash
from rlhf_kit.processes import processes, quiet
from rlhf_kit.terminal.console import Console

PROTOCOL, VERSION = "last-word", 2  # 2: the word as it is tokenized behind its passage


def split_last_word(passage: str) -> tuple[str, str]:
    """(context, continuation): the continuation begins with the space before the word.

    >>> split_last_word("It was Tom .\\n")
    ('It was Tom', ' .')
    """
    context, _, word = passage.strip().rpartition(" ")
    return context, f" {word}"


def run(options: argparse.Namespace) -> None:
    """`rlhf-kit eval lambada` with parsed options (`options.lambada`). Raises UserError."""
    quiet()
    rows, _ = load(options.data, ("text",), split=options.split)
    passages = list(rows["text"])[: options.limit]
    limit = context_length(load_config(options.model, what="a causal language model"))
    requests = _requests(options.data, load_tokenizer(options.model), passages, limit)
    state = processes()
    model, _ = load_generator(options.model, options.dtype, state.device)
    settings = Settings(
        "lambada", PROTOCOL, VERSION, options.model, model_hash(options.model), options.data,
        results.fingerprint(passages), options.seed, options.limit, {"dtype": options.dtype},
    )  # fmt: skip
    ids = [str(number) for number in range(len(passages))]
    with Run(options.output, settings, ids, state, unit="passages") as under_way:
        asked = [int(number) for number in under_way.todo]
        for at, (likely,) in likelihoods(model, [requests[number] for number in asked], options.max_batch_tokens):
            under_way.add(_item(asked[at], passages[asked[at]], likely))
    found = under_way.finish(figures)
    if found is not None:
        show(found, options.output is not None)


def _requests(
    source: str, tokenizer: PreTrainedTokenizerBase, passages: Sequence[str], limit: int | None
) -> list[Request]:
    """Raises UserError with all passages that nothing can be asked of."""
    found, faults = [], []
    for number, passage in enumerate(passages):
        if not split_last_word(passage)[0]:
            faults.append(f"passage {number} is one word, with nothing to guess it from.")
            continue
        try:
            found.append(_request(tokenizer, passage, limit))
        except UserError as error:
            faults.append(f"passage {number}: {error}")
    if faults:
        more = f" ... and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(f"{source}: {' '.join(faults[:SHOWN])}{more} Take such passages out.")
    return found


def _request(tokenizer: PreTrainedTokenizerBase, passage: str, limit: int | None) -> Request:
    """Of a passage longer than the model reads, the beginning is left out."""
    context, word = split_last_word(passage)
    ids, (target,) = encode_behind(tokenizer, context, [word])
    return Request(last_tokens(ids, limit and max(1, limit + 1 - len(target)), start_ids(tokenizer)), [target])


def _item(number: int, passage: str, likely: Likelihood) -> Item:
    context, word = split_last_word(passage)
    scores = {
        "last_word": float(all(likely.greedy)),
        "last_token": float(likely.greedy[-1]),
        "nll_word": -likely.total,
        "nll_token": -likely.logprobs[-1],
    }
    return Item(str(number), str(number), text_hash(context), "", word.strip(), scores)


def figures(items: Sequence[Item], clusters: NDArray) -> dict[str, Figure]:
    """Accuracies in percent; the exponential of the mean negative log-likelihood of a word, and of its last token."""
    shares = percentages(items, clusters)
    found = {name: shares[name] for name in ("last_word", "last_token")}
    for name in ("word", "token"):
        nll = mean([item.scores[f"nll_{name}"] for item in items], clusters)
        found[f"perplexity_{name}"] = partial(exponential, nll)
    return found


def exponential(figure: Figure, draws: NDArray) -> NDArray:
    with np.errstate(over="ignore"):  # a model that knows nothing of a text: infinite
        return np.exp(figure(draws))


def show(found: Results, kept: bool) -> None:
    """The figures with their intervals, a line each."""
    console = Console()
    for name, value in found.scores.items():
        interval = found.measured.intervals[name]
        bounds = f"  ({_told(interval[0])} to {_told(interval[1])})" if interval else ""
        console.print(f"{name:>20}  {_told(value)}{bounds}")
    if not found.reportable:
        console.print("--limit was given: no result to report. 只評了一部分，不可當成結果。")
    if kept:
        console.print("Written 已寫入: results.json, items.jsonl")


def _told(value: float) -> str:
    return f"{value:.2f}" if value < 1e6 else f"{value:.2e}"
