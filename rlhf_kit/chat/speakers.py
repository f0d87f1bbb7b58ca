"""Models that are talked to: each with its tokenizer, its engine and its way to read a conversation."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_kit.data.chat import encode_prompt, start_ids
from rlhf_kit.data.messages import Message
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.generation.drawn import Drawn
from rlhf_kit.generation.engine import SLOTS, WAITING, Closed, Engine, Request
from rlhf_kit.generation.generators import load_generator
from rlhf_kit.generation.text import TextStream
from rlhf_kit.models.checkpoints import end_ids
from rlhf_kit.models.identity import model_hash

MOST_LOADED = 4  # models in memory at once, unless more are named


@dataclass(frozen=True)
class Settings:
    """How an answer is drawn, and where it ends."""

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    top_logprobs: int = 0


class Said(NamedTuple):
    """What a token adds to the text: nothing while a character is not whole, or might begin a stop string. With the
    last one `finish`: "stop" or "length"."""

    text: str
    drawn: Drawn
    finish: str | None = None


@dataclass
class Speaker:
    """A model that is loaded. `chats`: it has a chat template, and answers turns; one without continues text."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    ends: list[int] = field(default_factory=list)
    place: str = ""

    @cached_property
    def model_hash(self) -> str:
        """Of its files, read the first time."""
        return model_hash(self.place)

    @property
    def chats(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def encode(self, prompt: str | Sequence[Message], chats: bool | None = None) -> list[int]:
        """Token ids up to where the model goes on.

        A text is continued as it stands. Turns are put by the chat template; a model without one, or with `chats`
        False, gets their contents as one text. Raises UserError for turns that the template does not take.
        """
        if isinstance(prompt, str):
            prompt, chats = [{"role": "user", "content": prompt}], False
        if self.chats and chats is not False:
            return encode_prompt(self.tokenizer, prompt)
        ids = self.tokenizer(plain_text(prompt), add_special_tokens=False, verbose=False)["input_ids"]
        return start_ids(self.tokenizer) + list(ids)

    def say(self, prompt_ids: list[int], settings: Settings, chats: bool | None = None) -> Iterator[Said]:
        """What comes next, as it is drawn; closing the iterator ends it."""
        saying = Saying(self, prompt_ids, settings.stop, chats)
        for drawn in self.engine.stream(self.request(prompt_ids, settings)):
            said = saying.push(drawn)
            yield said
            if said.finish is not None:
                return

    async def hear(self, prompt_ids: list[int], settings: Settings, chats: bool | None = None) -> AsyncIterator[Said]:
        """As `say`, in an event loop: no thread waits for a token, and who leaves gives up a place in line too."""
        saying = Saying(self, prompt_ids, settings.stop, chats)
        queue, loop = asyncio.Queue(), asyncio.get_running_loop()
        request = self.request(prompt_ids, settings)
        job = self.engine.submit(request, lambda drawn: loop.call_soon_threadsafe(queue.put_nowait, drawn))
        try:
            finish = None
            while finish is None:
                drawn = await queue.get()
                if isinstance(drawn, Exception):
                    raise drawn
                one = saying.push(drawn)
                finish = one.finish
                yield one
        finally:
            job.cancel()

    def request(self, prompt_ids: list[int], settings: Settings) -> Request:
        names = ("max_tokens", "temperature", "top_k", "top_p", "seed", "top_logprobs")
        return Request(prompt_ids, **{name: getattr(settings, name) for name in names})

    def fitted(self, settings: Settings, prompt_ids: list[int]) -> Settings:
        """With as many tokens as the context has room for, where that is fewer."""
        room = settings.max_tokens if self.engine.context is None else self.engine.context - len(prompt_ids)
        return replace(settings, max_tokens=max(1, min(settings.max_tokens, room)))


class Saying:
    """An answer's text as its tokens come, up to a stop string; in turns without white space before it."""

    def __init__(self, speaker: Speaker, prompt_ids: list[int], stop: Sequence[str], chats: bool | None = None):
        in_turns = speaker.chats and chats is not False
        self.stream = TextStream(speaker.tokenizer, stop, behind=() if in_turns else prompt_ids)
        self.begun = not in_turns

    def push(self, drawn: Drawn) -> Said:
        """What is certain since the token before; the end is told once."""
        text = "" if drawn.finish == "stop" else self.stream.push(drawn.token)
        if drawn.finish is not None:
            text += self.stream.finish()
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        return Said(text, drawn, "stop" if self.stream.stopped else drawn.finish)


def plain_text(turns: Sequence[Message]) -> str:
    """The contents of turns as one text, each answer right behind what it answers, each question on a new line.

    >>> plain_text([{"role": "user", "content": "1, 2,"}, {"role": "assistant", "content": " 3"},
    ...             {"role": "user", "content": "A, B,"}])
    '1, 2, 3\\nA, B,'
    """
    text = ""
    for turn in turns:
        text += ("\n" if text and turn["role"] != "assistant" else "") + str(turn["content"])
    return text


class Speakers:
    """Models by name, loaded when they are first asked for; of more than `most` the one longest unused is let go."""

    def __init__(
        self, places: Mapping[str, str | Path], dtype: str = "float32", device: torch.device | str = "cpu",
        slots: int = SLOTS, most: int = MOST_LOADED, waiting: int = WAITING,
    ):  # fmt: skip
        self.places = {name: str(place) for name, place in places.items()}
        self.dtype, self.device, self.slots, self.most, self.waiting = dtype, device, slots, most, waiting
        self._loaded: OrderedDict[str, Speaker] = OrderedDict()
        self._lock, self._is_closed = Lock(), False

    def __getitem__(self, name: str) -> Speaker:
        """Raises UserError for a name that is not there, and for a model that cannot be loaded or sampled from; after
        `close`, `Closed`."""
        if name not in self.places:
            raise UserError(f"There is no model {name!r}.{did_you_mean(name, self.places)}")
        with self._lock:
            if self._is_closed:
                raise Closed("the server is closing")
            if name not in self._loaded:
                idle = [other for other, speaker in self._loaded.items() if not speaker.engine.is_busy]
                if len(self._loaded) >= self.most and idle:
                    self._loaded.pop(idle[0]).engine.close()
                # In a thread that ends, and its OpenMP threads with it: where more are there than processors, all of
                # them sleep after each operation, the engine's too, a quarter of the time of a token.
                with ThreadPoolExecutor(1) as loading:
                    self._loaded[name] = loading.submit(self._load, name).result()
            self._loaded.move_to_end(name)
            return self._loaded[name]

    def loaded(self, name: str) -> Speaker | None:
        """One that is in memory already."""
        return self._loaded.get(name)

    def _load(self, name: str) -> Speaker:
        model, tokenizer = load_generator(self.places[name], self.dtype, self.device)
        ends = end_ids(model, tokenizer)
        engine = Engine(model, ends, tokenizer.pad_token_id, self.slots, self.waiting)
        return Speaker(name, tokenizer, engine, ends, self.places[name])

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            while self._loaded:
                self._loaded.popitem()[1].engine.close()

    def __enter__(self) -> Speakers:
        return self

    def __exit__(self, *_) -> None:
        self.close()
