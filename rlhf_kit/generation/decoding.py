"""Continuations of prompts by any causal LM: greedy or by beam search, to a stop string or the end token.

Prompts that are the beginning of one another (the turns of a dialogue) are read once and continued side by side; see
`contexts.py`. The answers are those of transformers' `generate` on each prompt alone, for any batch, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from rlhf_kit.generation.contexts import Contexts, can_cache, can_share
from rlhf_kit.generation.loop import write_on
from rlhf_kit.models.checkpoints import end_ids
from rlhf_kit.models.forward import context_length, pad_right
from rlhf_kit.models.room import Room

DEFAULT_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Decoding:
    """How continuations are written.

    Attributes:
        max_new_tokens: the most that is written.
        stop: it ends with the first of these after leading white space: with "\\n", " \\n 42\\nQ:" answers "42".
        num_beams: 1 is greedy.
        length_penalty: a beam's score is its log-probability / tokens ** length_penalty: transformers' formula. That
            of Wu et al. 2016 (equation 14), which GPT-3 section 2.4 may mean, is ((5 + tokens) / 6) ** length_penalty.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ("\n",)
    num_beams: int = 1
    length_penalty: float = 1.0


@dataclass(frozen=True)
class Continuation:
    """What was written after a prompt."""

    ids: list[int]  # all tokens, the one that ended it included
    text: str  # all of them decoded, but for the end token: the raw output
    answer: str  # the text up to the stop string, without white space around it
    ended: bool  # by a stop string or the end token; False: cut off at max_new_tokens


@torch.inference_mode()
def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    how: Decoding,
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> Iterator[tuple[int, Continuation]]:
    """(number of a prompt, its continuation), batch by batch as they are done: not in the order of the prompts.

    Args:
        prompts: token lists, not empty.
        max_batch_tokens: bounds rows x tokens of a batch, continuations included; a row alone may be longer.

    Raises:
        UserError: for a prompt that leaves no room for `max_new_tokens` in the model's context.
    """
    check_room(model, prompts, how)
    ending = Ending(model, tokenizer, how)
    share = can_share(model)
    cached = share or can_cache(model)
    rows = rows_of(prompts) if share else [[number] for number in range(len(prompts))]
    for batch in batches(rows, prompts, how, max_batch_tokens):
        if share:
            contexts = Contexts(model, [prompts[row[-1]][:-1] for row in batch])
            written = write(contexts, [[prompts[number] for number in row] for row in batch], ending)
        else:
            written = [[ids] for ids in _generate(model, [prompts[row[0]] for row in batch], ending, cached)]
        for row, texts in zip(batch, written, strict=True):
            yield from zip(row, map(ending.continuation, texts), strict=True)


class Dialogues:
    """Prompts that grow by what is answered: each is read on from where it was left.

    A model that can't share its cache (`contexts.can_share`) reads them anew, as is done where a prompt does not begin
    with the one before (its oldest history was dropped).
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, how: Decoding):
        self.model, self.ending = model, Ending(model, tokenizer, how)
        self.share = can_share(model)
        self.cached = self.share or can_cache(model)
        self.contexts: Contexts | None = None

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Continuation]:
        """A continuation of each. From call to call the same dialogues in the same order; the last may be left out."""
        check_room(self.model, prompts, self.ending.how)
        if not self.share:
            return [self.ending.continuation(ids) for ids in _generate(self.model, prompts, self.ending, self.cached)]
        if self.contexts is not None and len(prompts) < len(self.contexts.rows):
            self.contexts.keep(range(len(prompts)))
        if self.contexts is None or not all(map(_begins, self.contexts.rows, prompts)):
            self.contexts = Contexts(self.model, [prompt[:-1] for prompt in prompts])
        else:
            read = [len(row) for row in self.contexts.rows]
            self.contexts.read([prompt[start:-1] for start, prompt in zip(read, prompts, strict=True)])
        written = write(self.contexts, [[prompt] for prompt in prompts], self.ending, read_on=True)
        return [self.ending.continuation(ids) for (ids,) in written]


# --- rows and batches -----------------------------------------------------------------------------------------------


def check_room(model: PreTrainedModel, prompts: Sequence[Sequence[int]], how: Decoding) -> None:
    room = Room(context_length(model.config), how.max_new_tokens, "max_new_tokens")
    sizes = {f"prompt {number}": len(ids) for number, ids in enumerate(prompts, start=1)}
    room.check(sizes, "prompts", "Shorten them or lower max_new_tokens.")


def _begins(start: Sequence[int], whole: Sequence[int]) -> bool:
    """Whether `whole` begins with `start` and goes on."""
    return len(start) < len(whole) and list(whole[: len(start)]) == list(start)


def rows_of(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of prompts in rows, each prompt the beginning of the next in its row (or equal to it).

    >>> rows_of([[5], [7, 8], [5, 6], [7, 9]])
    [[0, 2], [1], [3]]
    """
    rows: list[list[int]] = []
    # Sorted, what begins with a prompt comes right behind it.
    for number in sorted(range(len(prompts)), key=lambda number: list(prompts[number])):
        last = prompts[rows[-1][-1]] if rows else None
        if last is not None and list(prompts[number][: len(last)]) == list(last):
            rows[-1].append(number)
        else:
            rows.append([number])
    return rows


def batches(
    rows: Sequence[list[int]], prompts: Sequence[Sequence[int]], how: Decoding, max_batch_tokens: int
) -> Iterator[list[list[int]]]:
    """Rows in batches, the longest first, so that memory runs out at once or never."""
    tokens = [len(prompts[row[-1]]) + len(row) * how.num_beams * how.max_new_tokens for row in rows]
    order = sorted(range(len(rows)), key=lambda at: -tokens[at])
    while order:
        size = max(1, max_batch_tokens // tokens[order[0]])
        yield [rows[at] for at in order[:size]]
        order = order[size:]


# --- searches -------------------------------------------------------------------------------------------------------


class Ending:
    """What ends a continuation, and what is made of it then."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, how: Decoding):
        self.tokenizer, self.how = tokenizer, how
        self.end_ids = end_ids(model, tokenizer)

    def __call__(self, ids: list[int]) -> bool:
        return ids[-1] in self.end_ids or self._cut(self._text(ids))[1]

    def continuation(self, ids: list[int]) -> Continuation:
        text = self._text(ids)
        answer, stopped = self._cut(text)
        return Continuation(ids, text, answer, stopped or ids[-1] in self.end_ids)

    def _text(self, ids: list[int]) -> str:
        ids = ids[:-1] if ids[-1] in self.end_ids else ids
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def _cut(self, text: str) -> tuple[str, bool]:
        text = text.lstrip()
        places = [at for at in map(text.find, self.how.stop) if at >= 0]
        return text[: min(places, default=None)].rstrip(), bool(places)


class Greedy:
    """One continuation: the likeliest token each time."""

    def __init__(self, ending: Ending):
        self.ending = ending
        self.ids: list[int] = []

    def step(self, candidates: Sequence[Sequence[tuple[float, int]]]) -> list[tuple[int, int]]:
        """The likeliest next tokens of each running beam -> (beam, token) to go on with; none at the end."""
        (((_, token),),) = candidates
        self.ids.append(token)
        ended = len(self.ids) == self.ending.how.max_new_tokens or self.ending(self.ids)
        return [] if ended else [(0, token)]


class Beams:
    """The likeliest of a few continuations kept at a time, as transformers searches (`early_stopping=False`).

    Of the 2 x num_beams likeliest next tokens of all beams, those among the first num_beams that end theirs are
    finished, and the best that do not end it go on. The search is over when the best of them scores, at its present
    length, no more than the worst of num_beams finished.
    """

    def __init__(self, ending: Ending):
        self.ending = ending
        self.running: list[tuple[float, list[int]]] = [(0.0, [])]  # log-probability, tokens
        self.finished: list[tuple[float, list[int]]] = []  # score, tokens; the best first

    @property
    def ids(self) -> list[int]:
        return self.finished[0][1]

    def step(self, candidates: Sequence[Sequence[tuple[float, int]]]) -> list[tuple[int, int]]:
        how = self.ending.how
        pool = [
            (logprob + further, beam, token)
            for beam, ((logprob, _), likely) in enumerate(zip(self.running, candidates, strict=True))
            for further, token in likely
        ]
        pool = sorted(pool, key=lambda candidate: -candidate[0])[: 2 * how.num_beams]
        length = len(self.running[0][1]) + 1
        running, going = [], []
        for rank, (logprob, beam, token) in enumerate(pool):
            ids = [*self.running[beam][1], token]
            if length == how.max_new_tokens or self.ending(ids):
                if rank < how.num_beams:
                    self.finished.append((logprob / length**how.length_penalty, ids))
            elif len(running) < how.num_beams:
                running.append((logprob, ids))
                going.append((beam, token))
        self.finished = sorted(self.finished, key=lambda beam: -beam[0])[: how.num_beams]
        self.running = running
        if len(self.finished) == how.num_beams and running:
            if running[0][0] / length**how.length_penalty <= self.finished[-1][0]:
                return []
        return going


@dataclass(frozen=True)
class _Leaf:
    search: Greedy | Beams
    parent: int  # leaf of the row, a step before
    token: int
    place: int


class Leaves:
    """The places of contexts where searches write; `read_on`: the contexts are used again, no row is let go of."""

    def __init__(self, contexts: Contexts, leaves: list[list[_Leaf]], read_on: bool):
        self.contexts, self.leaves, self.read_on = contexts, leaves, read_on
        self.seen = contexts.leaves([[leaf.place for leaf in row] for row in leaves])

    def read(self) -> tuple[Tensor, None]:
        """Logits (G, W, V) after each leaf."""
        ids = _padded([[leaf.token for leaf in row] for row in self.leaves], self.seen)
        places = _padded([[leaf.place for leaf in row] for row in self.leaves], self.seen)
        logits, self.seen = self.contexts.step(ids, places, self.seen)
        return logits, None

    def write(self, leaves: list[list[_Leaf]]) -> None:
        """Go on with the leaves that grew from those before; rows without one are let go of, by halves."""
        alive = [number for number, row in enumerate(leaves) if row]
        if not self.read_on and 2 * len(alive) <= len(leaves):  # it copies what is kept
            self.contexts.keep(alive)
            leaves, self.seen = [leaves[number] for number in alive], self.seen[alive]
        parents = _padded([[leaf.parent for leaf in row] for row in leaves], self.seen)
        self.seen = self.seen[torch.arange(len(leaves), device=self.seen.device)[:, None], parents]
        self.leaves = leaves


def write(
    contexts: Contexts, prompts: Sequence[Sequence[Sequence[int]]], ending: Ending, read_on: bool = False
) -> list[list[list[int]]]:
    """Continue the prompts of each row, of which the context has read all but the last token of the longest.

    Args:
        read_on: the contexts are used again, and are left as they were.

    Returns: token lists, by row and prompt.
    """
    search = Greedy if ending.how.num_beams == 1 else Beams
    searches = [[search(ending) for _ in row] for row in prompts]
    leaves = [
        [_Leaf(search, 0, prompt[-1], len(prompt) - 1) for search, prompt in zip(of_row, row, strict=True)]
        for of_row, row in zip(searches, prompts, strict=True)
    ]
    reader = Leaves(contexts, leaves, read_on)

    def choose(logits: Tensor, _) -> list[list[_Leaf]] | None:
        likely = likeliest(logits, ending.how)
        grown = [_grown(row, of_row) for row, of_row in zip(reader.leaves, likely, strict=True)]
        return grown if any(grown) else None

    write_on(reader, choose)
    contexts.forget()
    return [[search.ids for search in row] for row in searches]


def _padded(rows: list[list[int]], like: Tensor) -> Tensor:
    return pad_right(rows, 0)[0].to(like.device)


def likeliest(logits: Tensor, how: Decoding) -> list[list[list[tuple[float, int]]]]:
    """(log-probability, token) of the next tokens that a search may need, by row and leaf. logits (G, W, V)."""
    if how.num_beams == 1:
        return [[[(0.0, token)] for token in row] for row in logits.argmax(-1).tolist()]
    logprobs, tokens = torch.log_softmax(logits.float(), -1).topk(2 * how.num_beams)
    rows = zip(logprobs.tolist(), tokens.tolist(), strict=True)
    return [[list(zip(*leaf, strict=True)) for leaf in zip(*row, strict=True)] for row in rows]


def _grown(row: list[_Leaf], likely: list[list[tuple[float, int]]]) -> list[_Leaf]:
    """The leaves of the next step. Padding is behind the row's own in `likely`."""
    grown, start = [], 0
    for search, group in groupby(row, key=lambda leaf: leaf.search):
        group = list(group)
        going = search.step(likely[start : start + len(group)])
        grown += [_Leaf(search, start + beam, token, group[0].place + 1) for beam, token in going]
        start += len(group)
    return grown


# --- models that cannot share ---------------------------------------------------------------------------------------


class _Ended(StoppingCriteria):
    def __init__(self, ending: Ending, start: int):
        self.ending, self.start = ending, start

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        return torch.tensor([self.ending(row[self.start :]) for row in input_ids.tolist()], device=input_ids.device)


def _generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], ending: Ending, cached: bool
) -> list[list[int]]:
    """Token lists by transformers' own loop, each prompt read anew; prompts of one length at a time, since some models
    read padding (RWKV)."""
    how = ending.how
    config = GenerationConfig(
        max_new_tokens=how.max_new_tokens, do_sample=False, num_beams=how.num_beams, length_penalty=how.length_penalty,
        eos_token_id=ending.end_ids, pad_token_id=0, repetition_penalty=1.0, use_cache=cached,
    )  # fmt: skip
    written: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for start, numbers in groupby(order, key=lambda number: len(prompts[number])):
        numbers = list(numbers)
        ids = torch.tensor([prompts[number] for number in numbers], device=model.device)
        stop = [_Ended(ending, start)]
        out = model.generate(ids, config, attention_mask=torch.ones_like(ids), stopping_criteria=stop)
        written |= {number: _until(row[start:], ending) for number, row in zip(numbers, out.tolist(), strict=True)}
    return [written[number] for number in range(len(prompts))]


def _until(ids: list[int], ending: Ending) -> list[int]:
    """Tokens up to the one that ends them: a row that has ended is filled up while others go on."""
    return next((ids[:end] for end in range(1, len(ids) + 1) if ending(ids[:end])), ids)
