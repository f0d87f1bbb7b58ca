"""A request at work: its rows in the engine's batch, what they write, and that they end with who asked."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

from starlette.concurrency import run_in_threadpool

from rlhf_kit.chat.speakers import Said, Saying, Speaker, Speakers
from rlhf_kit.generation.drawn import Drawn
from rlhf_kit.generation.engine import Engine, Job, Request
from rlhf_kit.generation.prompt_logprobs import batches, prompt_logprobs
from rlhf_kit.serving.endpoint.forms import Asked, Prompt
from rlhf_kit.serving.endpoint.refusals import Refused


class Answers:
    """The answers to a request: `n` to each prompt, one prompt after the other.

    Attributes:
        prompt_ids: of each prompt. echoed: of each, the log-probs of its tokens from the second on, where asked for.
    """

    def __init__(self, asked: Asked, speaker: Speaker, prompt_ids: list[list[int]]):
        self.asked, self.speaker, self.prompt_ids = asked, speaker, prompt_ids
        self.echoed: list[list[Drawn]] = []
        self.completion_tokens = 0
        self._jobs: list[Job] = []
        self._drawn: deque[tuple[int, Drawn | Exception]] = deque()
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        # Who waits for the whole answer need not be woken by each token, unless a stop string may end it.
        self._is_eager = asked.stream or bool(asked.settings.stop)

    async def begin(self) -> None:
        """Stand in line. Raises UserError, Refused, Busy, Closed."""
        asked, engine = self.asked, self.speaker.engine
        most = engine.most_waiting
        if len(self.prompt_ids) * asked.n > most:
            numbers = f"{len(self.prompt_ids)} prompts and n {asked.n} are more than {most} answers"
            raise Refused(f"{numbers}, the most of a request; send several.", "n" if asked.n > 1 else "prompt")
        requests = [self._request(ids, seed) for ids in self.prompt_ids for seed in asked.seeds()]
        for request in requests:
            engine.check(replace(request, max_tokens=max(1, request.max_tokens)))
        if requests[0].max_tokens:
            for number, request in enumerate(requests):
                self._jobs.append(engine.submit(request, partial(self._deliver, number)))
        if asked.echo and asked.top is not None:
            await self._read_prompts(engine)

    def _request(self, ids: list[int], seed: int) -> Request:
        asked, settings = self.asked, replace(self.asked.settings, seed=seed)
        if asked.is_open:
            room = self.speaker.engine.context
            most = settings.max_tokens or (room if room is not None else 4096)
            settings = self.speaker.fitted(replace(settings, max_tokens=most), ids)
        request = self.speaker.request(ids, settings)
        return replace(request, end_ids=frozenset()) if asked.ignore_eos else request

    async def _read_prompts(self, engine: Engine) -> None:
        self.echoed = [[] for _ in self.prompt_ids]
        for numbers in batches(self.prompt_ids):
            rows = [self.prompt_ids[number] for number in numbers]
            read = await asyncio.wrap_future(engine.call(prompt_logprobs, rows, self.asked.settings.top_logprobs))
            for number, drawn in zip(numbers, read, strict=True):
                self.echoed[number] = drawn

    def _deliver(self, number: int, drawn: Drawn | Exception) -> None:
        """In the engine's thread."""
        self._drawn.append((number, drawn))
        if self._is_eager or isinstance(drawn, Exception) or drawn.finish is not None:
            self._loop.call_soon_threadsafe(self._changed.set)

    async def said(self) -> AsyncIterator[tuple[int, Said]]:
        """(number of an answer, what it goes on with), as it is drawn."""
        asked = self.asked
        sayings = [
            Saying(self.speaker, ids, asked.settings.stop, asked.chats)
            for ids in self.prompt_ids
            for _ in range(asked.n)
        ]
        going = set(range(len(self._jobs)))
        while going:
            await self._changed.wait()
            self._changed.clear()
            while self._drawn:
                number, drawn = self._drawn.popleft()
                if isinstance(drawn, Exception):
                    raise drawn
                if number not in going:  # a stop string has ended it
                    continue
                said = sayings[number].push(drawn)
                self.completion_tokens += 1
                if said.finish is not None:
                    going.remove(number)
                    self._jobs[number].cancel()
                yield number, said

    def end(self) -> None:
        """Nothing more is drawn."""
        for job in self._jobs:
            job.cancel()

    @property
    def usage(self) -> dict[str, int]:
        read, written = sum(map(len, self.prompt_ids)), self.completion_tokens
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


async def answers_to(asked: Asked, speakers: Speakers) -> Answers:
    """Raises Refused for a model that is not there, UserError for one that cannot be loaded and for the prompts."""
    if asked.model not in speakers.places:
        message = f"The model {asked.model[:200]!r} does not exist; there are {', '.join(speakers.places)}."
        raise Refused(message, "model", 404, "model_not_found")
    speaker = await run_in_threadpool(lambda: speakers[asked.model])
    return Answers(asked, speaker, await run_in_threadpool(lambda: [_encode(speaker, each) for each in asked.prompts]))


def _encode(speaker: Speaker, prompt: Prompt) -> list[int]:
    if isinstance(prompt, list) and isinstance(prompt[0], int):
        return prompt
    return speaker.encode(prompt)
