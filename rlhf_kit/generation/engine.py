"""A model at work for many at once: requests come and go, and share the batch of one thread.

submit, stream   a prompt to be continued: a row of the batch, from the next token on
call             any other use of the model: between two tokens

Who asks waits in a line; a row that ends makes room for the next one (`loop.Begun`). All that touches the model does
so in the engine's thread, so nobody needs a lock. In float32 a row's tokens are those of `sampling.sample` with its
seed, whatever shares its batch.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_kit.errors import UserError
from rlhf_kit.generation.attention import wide_attention
from rlhf_kit.generation.drawing import choose
from rlhf_kit.generation.drawn import Drawn, Told
from rlhf_kit.generation.loop import Begun, Step, write_on
from rlhf_kit.generation.reading import Anew, Cached, check_sampling
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.prepacked import prepacked
from rlhf_kit.models.room import Room
from rlhf_kit.options.bounds import number_faults

logger = logging.getLogger(__name__)

SLOTS, WAITING = 16, 256
PROMPT_TOKENS = 4096  # of prompts that begin together, padding counted: others wait for them, and they need memory
ROOM = 128  # tokens that the cache has room for at first, beyond the prompts

STOP, LENGTH = "stop", "length"


class Busy(Exception):
    """So many requests wait that another one would wait too long."""


class Closed(Exception):
    """The engine was closed before the request was done."""


@dataclass(frozen=True)
class Request:
    """A prompt to be continued, drawn as `choose` and `sample` say. `top_logprobs`: how many candidates of each token
    are told; with any, its rank and the entropy too. `end_ids`: in place of the engine's own."""

    prompt_ids: list[int]
    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    top_logprobs: int = 0
    end_ids: frozenset[int] | None = None


Deliver = Callable[["Drawn | Exception"], Any]


class Job:
    """A request in line or at work. `deliver` is called in the engine's thread: with each token, or a fault."""

    def __init__(self, request: Request, deliver: Deliver):
        self.request, self.deliver = request, deliver
        self.drawn, self.is_cancelled = 0, False
        self.uniforms = torch.rand(request.max_tokens, generator=torch.Generator().manual_seed(request.seed))

    def cancel(self) -> None:
        """It gets nothing more, and its row ends with the present token. From any thread, any number of times."""
        self.is_cancelled = True


class Engine:
    """
    Args:
        end_ids: any of these ends a row. pad_id: fills, and is never looked at.
        slots: rows of the batch. waiting: requests in line before `submit` refuses more.

    Raises:
        UserError: for a model that cannot be sampled from.
    """

    def __init__(
        self, model: PreTrainedModel, end_ids: Iterable[int], pad_id: int, slots: int = SLOTS, waiting: int = WAITING
    ):
        self.model, self.end_ids, self.pad_id = model, frozenset(end_ids), pad_id
        self.slots, self.most_waiting = slots, waiting
        self.context = context_length(model.config)
        self.vocabulary = model.config.get_text_config().vocab_size
        some = torch.randint(self.vocabulary, (11,), generator=torch.Generator().manual_seed(0)).tolist()
        self.reader = Anew if check_sampling(model, [some[:8], some[8:]]) else Cached
        self.going = 0  # rows at work
        self._waiting: deque[Job] = deque()
        self._calls: deque[tuple[Callable, Future]] = deque()
        self._changed, self._is_closed = Condition(), False
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    # -- from any thread ---------------------------------------------------------------------------------------------

    def submit(self, request: Request, deliver: Deliver) -> Job:
        """Stand in line. Raises UserError for what cannot be asked, `Busy`, `Closed`."""
        self.check(request)
        job = Job(request, deliver)
        with self._changed:
            if self._is_closed:
                raise Closed("the server is closing")
            if self.waiting >= self.most_waiting:
                raise Busy(f"{self.waiting} requests are waiting; try again in a moment")
            self._waiting.append(job)
            self._changed.notify()
        return job

    def stream(self, request: Request) -> Iterator[Drawn]:
        """The tokens as they are drawn; closing the iterator ends the row."""
        queue: SimpleQueue = SimpleQueue()
        job = self.submit(request, queue.put)
        try:
            while True:
                drawn = queue.get()
                if isinstance(drawn, Exception):
                    raise drawn
                yield drawn
                if drawn.finish is not None:
                    return
        finally:
            job.cancel()

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Future:
        """`function(model, *args, **options)`, without gradients, between two tokens of the rows at work. Raises
        `Busy`, `Closed`."""
        result: Future = Future()
        with self._changed:
            if self._is_closed:
                raise Closed("the server is closing")
            if len(self._calls) >= self.most_waiting:
                raise Busy(f"{len(self._calls)} requests are waiting; try again in a moment")
            self._calls.append((lambda: function(self.model, *args, **options), result))
            self._changed.notify()
        return result

    def check(self, request: Request) -> None:
        """Raises UserError for what cannot be asked."""
        faults = number_faults(
            "sample", max_tokens=request.max_tokens, temperature=request.temperature, top_k=request.top_k,
            top_p=request.top_p, seed=request.seed, top_logprobs=request.top_logprobs,
        )  # fmt: skip
        if not request.prompt_ids:
            faults.append("the prompt has no tokens to continue from")
        elif not all(0 <= token < self.vocabulary for token in request.prompt_ids):
            faults.append(f"the prompt has tokens beyond the vocabulary of {self.vocabulary}")
        room = Room(self.context, request.max_tokens, "max_tokens")
        if not faults and not room.holds(len(request.prompt_ids)):
            faults.append(f"the prompt {room.lacks(len(request.prompt_ids))}; shorten it, or ask for fewer tokens")
        if faults:
            raise UserError(f"{'; '.join(faults)}.")

    @property
    def waiting(self) -> int:
        """Requests in line that are still wanted."""
        return sum(not job.is_cancelled for job in self._waiting)

    @property
    def is_busy(self) -> bool:
        """Whether anything is at work or in line."""
        return bool(self.going or self.waiting or self._calls)

    def close(self) -> None:
        """What is at work or in line gets `Closed`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # -- in the engine's thread --------------------------------------------------------------------------------------

    @torch.no_grad()
    def _run(self) -> None:
        with prepacked(self.model), wide_attention(self.model):
            while self._wait():
                rows = _Rows(self, self.take(self.slots))
                if not rows.jobs:
                    continue
                try:
                    reader = self.reader(self.model, rows.prompts(), self.pad_id, ROOM)
                    rows.refills = reader.refills
                    write_on(reader, rows)
                except Exception as error:  # of the model, or of memory: who waits for these rows is told
                    logger.exception("%d rows ended with a fault", len(rows.jobs))
                    rows.fail(error)
                self.going = 0
        with self._changed:
            left, calls = [*self._waiting], [*self._calls]
        for job in left:
            _told(job, Closed("the server is closing"))
        for _, result in calls:
            result.cancel()

    def _wait(self) -> bool:
        """Until there is something to do; False: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._calls or self._is_closed)
        return self.answer_calls()

    def answer_calls(self) -> bool:
        """Those that wait. False: closed."""
        while self._calls and not self._is_closed:
            function, result = self._calls.popleft()
            if not result.set_running_or_notify_cancel():
                continue
            try:
                result.set_result(function())
            except BaseException as error:  # it belongs to who asked
                result.set_exception(error)
        return not self._is_closed

    def take(self, count: int) -> list[Job]:
        """The first that wait, at most so many and no more than may begin together."""
        taken: list[Job] = []
        longest = 0
        with self._changed:
            while self._waiting and len(taken) < count:
                job = self._waiting[0]
                longest = max(longest, len(job.request.prompt_ids))
                if not job.is_cancelled:
                    if taken and longest * (len(taken) + 1) > PROMPT_TOKENS:
                        break
                    taken.append(job)
                self._waiting.popleft()
        return taken


class _Rows:
    """The rows of a batch, a job each: draws the next token of all, and says which end and what begins."""

    def __init__(self, engine: Engine, jobs: list[Job]):
        self.engine, self.jobs, self.refills = engine, jobs, False
        self.settings = _Settings(jobs)

    def prompts(self) -> list[list[int]]:
        return [job.request.prompt_ids for job in self.jobs]

    def __call__(self, logits: Tensor, _: Tensor) -> Step | None:
        engine, jobs = self.engine, self.jobs
        engine.going = len(jobs)
        uniforms = torch.tensor([float(job.uniforms[job.drawn]) for job in jobs], device=logits.device)
        tokens, _ = choose(logits, uniforms, *self.settings.columns(logits.device))
        for job, drawn in zip(jobs, self._drawn(logits, tokens), strict=True):
            job.drawn += 1
            _told(job, drawn)
            job.is_cancelled |= drawn.finish is not None
        if not engine.answer_calls():
            self.fail(Closed("the server is closing"))
        ended = [place for place, job in enumerate(jobs) if job.is_cancelled]
        if len(ended) == len(jobs):
            return None
        new = engine.take(engine.slots - len(jobs) + len(ended)) if self.refills else []
        if not new and not ended:
            return Step(tokens)
        return self._changed(tokens, ended, new)

    def _changed(self, tokens: Tensor, ended: list[int], new: list[Job]) -> Step:
        """New jobs in the places of those that have ended, or behind the last; or fewer rows."""
        places = [*ended, *range(len(self.jobs), len(self.jobs) + len(new))][: len(new)]
        gone = set(ended[len(new) :])
        self.jobs += [None] * (len(new) - len(ended))  # type: ignore[list-item]
        for place, job in zip(places, new, strict=True):
            self.jobs[place] = job
        rows = None
        if gone:  # they stand behind those that begin, whose places stay
            kept = [place for place in range(len(self.jobs)) if place not in gone]
            self.jobs = [self.jobs[place] for place in kept]
            rows = torch.tensor(kept, device=tokens.device)
            tokens = tokens[rows]
        self.settings = _Settings(self.jobs)
        prompts = [job.request.prompt_ids for job in new]
        return Step(tokens, rows, Begun(torch.tensor(places, device=tokens.device), prompts) if new else None)

    def _drawn(self, logits: Tensor, tokens: Tensor) -> Iterator[Drawn]:
        told = Told(logits, tokens, max(job.request.top_logprobs for job in self.jobs))
        for row, (job, token) in enumerate(zip(self.jobs, told.tokens, strict=True)):
            ends = self.engine.end_ids if job.request.end_ids is None else job.request.end_ids
            is_last = job.drawn + 1 == job.request.max_tokens
            finish = STOP if token in ends else LENGTH if is_last else None
            yield told.of(row, job.request.top_logprobs, finish)

    def fail(self, error: Exception) -> None:
        for job in self.jobs:
            _told(job, error)
            job.cancel()


class _Settings:
    """Temperature, top-k and top-p of rows, as `choose` takes them: one number where all rows have the same."""

    def __init__(self, jobs: list[Job]):
        requests = [job.request for job in jobs]
        self.of_all = [[r.temperature for r in requests], [r.top_k for r in requests], [r.top_p for r in requests]]

    def columns(self, device: torch.device) -> list[float | Tensor]:
        return [row[0] if len(set(row)) == 1 else torch.tensor(row, device=device) for row in self.of_all]


def _told(job: Job, drawn: Drawn | Exception) -> None:
    if job.is_cancelled:
        return
    try:
        job.deliver(drawn)
    except Exception:  # who asked has gone
        job.cancel()
