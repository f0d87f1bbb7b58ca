"""Reward models that are measured or put to use: loading, what they can read, scores of many lists of completions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import Message, encode_completion, encode_each, encode_prompt
from rlhf_kit.models import heads
from rlhf_kit.models.checkpoints import check_scorer, load_config, load_reward_model, load_tokenizer
from rlhf_kit.models.forward import context_length
from rlhf_kit.progress import Progress

Prompt = str | Sequence[Message]
BATCHES = 8  # scored at a time, sorted by length within


def load_scorer(
    name: str, prompts: Iterable[Prompt] = (), source: str = ""
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained reward model (or its adapter, merged) in eval mode, and its tokenizer.

    Args:
        prompts: of `source`, that it is to read: what its chat template refuses is told before it is loaded.

    Raises:
        UserError: also for a language model, whose scores would come from a head that nobody trained.
    """
    tokenizer = checked_tokenizer(name, prompts, source)
    return load_reward_model(name, tokenizer=tokenizer).eval(), tokenizer


def checked_tokenizer(name: str, prompts: Iterable[Prompt], source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a reward model, all of whose checks but those of its weights are made. See `load_scorer`."""
    check_scorer(name, load_config(name, what="a reward model"))
    tokenizer = load_tokenizer(name, needs_eos=False)
    encode_each(prompts, partial(encode_prompt, tokenizer), source)
    return tokenizer


@dataclass(frozen=True)
class Reading:
    """How a reward model reads one completion: its length in tokens, whether it fits, whether its prompt is cut."""

    length: int
    fits: bool
    prompt_cut: bool


class Reader:
    """What `heads.score_texts` will make of texts, by the same rules: those of a model of this `config`."""

    def __init__(self, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self.limit = tokenizer, context_length(config)
        self.form = heads.row_format(config, tokenizer)
        self.room = self.form.room(self.limit)  # of a completion

    def __call__(self, prompt: Prompt, completions: Sequence[str]) -> list[Reading]:
        prompt_ids = encode_prompt(self.tokenizer, prompt)
        readings = []
        for completion in completions:
            completion_ids = encode_completion(self.tokenizer, completion, eos=False)
            ids = heads.fit_context(prompt_ids, completion_ids, self.limit, self.form)
            whole = heads.fit_context(prompt_ids, completion_ids, None, self.form)
            cut = ids is not None and len(ids) < len(whole)
            readings.append(Reading(len(completion_ids), ids is not None, cut))
        return readings

    def check_padding(self, model: PreTrainedModel, lists: Iterable[tuple[Prompt, Sequence[str]]]) -> None:
        """Raises UserError for a model whose scores change with the padding of a batch: tried on the first rows."""
        rows = (
            heads.fit_context(
                encode_prompt(self.tokenizer, prompt),
                encode_completion(self.tokenizer, completion, eos=False),
                None,
                self.form,
            )
            for prompt, completions in lists
            for completion in completions
        )
        heads.check_scores(model, rows, self.form)


def score_each(
    score: Callable[[list[Prompt], list[str]], Tensor], lists: Sequence[tuple[Prompt, Sequence[str]]], batch_size: int
) -> Iterator[tuple[int, list[float]]]:
    """(place of a list, the scores of its completions) of all lists, a few batches at a time, the longest first.

    Lists of one prompt are scored together and a text they share is scored once, so that equal texts have equal
    scores to the last bit, whatever stands beside them in a batch.

    Args:
        score: (prompts, completions) of N completions -> (N,).
    """
    keys = [json.dumps(prompt) for prompt, _ in lists]
    of_prompt: dict[str, list[int]] = {}
    for at, key in enumerate(keys):
        of_prompt.setdefault(key, []).append(at)
    sizes = {key: sum(len(text) for at in places for text in lists[at][1]) for key, places in of_prompt.items()}
    part: dict[tuple[str, str], Prompt] = {}
    waiting: list[int] = []
    longest_first = sorted(of_prompt, key=lambda key: -sizes[key])  # so the time left is rather too long a guess
    for number, key in enumerate(longest_first, start=1):
        waiting += of_prompt[key]
        part |= {(key, text): lists[at][0] for at in of_prompt[key] for text in lists[at][1]}
        if len(part) < BATCHES * batch_size and number < len(of_prompt):
            continue
        scores = score(list(part.values()), [text for _, text in part]).tolist() if part else []
        by_row = dict(zip(part, scores, strict=True))
        for at in waiting:
            yield at, [by_row[keys[at], text] for text in lists[at][1]]
        part, waiting = {}, []


def score_lists(
    score: Callable[[list[Prompt], list[str]], Tensor], lists: Sequence[tuple[Prompt, Sequence[str]]], batch_size: int
) -> list[list[float]]:
    """The scores of each list in the given order, by `score_each`, with progress."""
    results: list[list[float]] = [[] for _ in lists]
    with Progress(len(lists), "lists") as progress:
        for at, scores in score_each(score, lists, batch_size):
            results[at] = scores
            progress.add(1)
    return results
