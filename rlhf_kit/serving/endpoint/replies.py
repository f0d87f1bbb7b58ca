"""Answers in OpenAI's form: as one object, or as a stream of chunks."""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from rlhf_kit.chat.speakers import Said
from rlhf_kit.generation.drawn import Drawn
from rlhf_kit.generation.text import TokenBytes
from rlhf_kit.serving.endpoint.answers import Answers
from rlhf_kit.serving.endpoint.forms import Asked

IMPOSSIBLE = -9999.0  # for minus infinity, which JSON has no number for


class Reply:
    """What both kinds of answer have. `object`, `prefix`: by the kind and whether it is streamed."""

    object, chunk, prefix = "", "", ""

    def __init__(self, asked: Asked, answers: Answers):
        self.asked, self.answers, self.bytes = asked, answers, TokenBytes(answers.speaker.tokenizer)
        self.head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": asked.model}
        self.count = len(answers.prompt_ids) * asked.n

    async def whole(self) -> dict[str, Any]:
        texts: list[list[str]] = [[] for _ in range(self.count)]
        drawn: list[list[Drawn]] = [[] for _ in range(self.count)]
        finishes = ["length"] * self.count
        async for number, said in self.answers.said():
            texts[number].append(said.text)
            drawn[number].append(said.drawn)
            finishes[number] = said.finish or finishes[number]
        choices = [
            self.choice(number, "".join(texts[number]), self.logprobs(number, drawn[number], True), finishes[number])
            for number in range(self.count)
        ]
        return {**self.head, "object": self.object, "choices": choices, "usage": self.answers.usage}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """A chunk a text that is certain; log-probs of tokens that are none yet stand with the next one."""
        head = {**self.head, "object": self.chunk}
        usage: dict[str, Any] = {"usage": None} if self.asked.include_usage else {}
        for number in range(self.count):
            for choice in self.opening(number):
                yield {**head, "choices": [choice], **usage}
        waiting: list[list[Drawn]] = [[] for _ in range(self.count)]
        async for number, said in self.answers.said():
            waiting[number].append(said.drawn)
            if said.text or said.finish is not None:
                logprobs = self.logprobs(number, waiting[number], False)
                yield {**head, "choices": [self.delta(number, said, logprobs)], **usage}
                waiting[number] = []
        if self.asked.include_usage:
            yield {**head, "choices": [], "usage": self.answers.usage}

    def top(self, drawn: Drawn) -> tuple[float, list[tuple[int, float]]]:
        """Of the token itself and of the likeliest: one number where it is one of these."""
        top = [(token, max(IMPOSSIBLE, logprob)) for token, logprob in drawn.top]
        return dict(top).get(drawn.token, max(IMPOSSIBLE, drawn.logprob)), top

    def logprobs(self, number: int, drawn: Sequence[Drawn], with_prompt: bool) -> dict[str, Any] | None:
        raise NotImplementedError

    def choice(self, number: int, text: str, logprobs: dict | None, finish: str) -> dict[str, Any]:
        raise NotImplementedError

    def delta(self, number: int, said: Said, logprobs: dict | None) -> dict[str, Any]:
        raise NotImplementedError

    def opening(self, number: int) -> Iterator[dict[str, Any]]:
        """What a stream begins with."""
        raise NotImplementedError


class Completion(Reply):
    object, chunk, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, asked: Asked, answers: Answers):
        super().__init__(asked, answers)
        self.offsets = [0] * self.count  # of the next token in the text
        self.decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(self.count)]

    def prompt(self, number: int) -> str:
        """As it was given; of tokens, what they write."""
        prompt = self.asked.prompts[number // self.asked.n]
        if isinstance(prompt, str):
            return prompt
        return b"".join(self.bytes[token] for token in prompt).decode("utf-8", "replace")

    def choice(self, number: int, text: str, logprobs: dict | None, finish: str | None) -> dict[str, Any]:
        text = self.prompt(number) + text if self.asked.echo else text
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def delta(self, number: int, said: Said, logprobs: dict | None) -> dict[str, Any]:
        return {"index": number, "text": said.text, "logprobs": logprobs, "finish_reason": said.finish}

    def opening(self, number: int) -> Iterator[dict[str, Any]]:
        if self.asked.echo:
            is_all = not self.asked.settings.max_tokens and not self.asked.is_open
            yield self.choice(number, "", self.logprobs(number, [], True), "length" if is_all else None)

    def logprobs(self, number: int, drawn: Sequence[Drawn], with_prompt: bool) -> dict[str, Any] | None:
        if self.asked.top is None:
            return None
        told: dict[str, list] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        if with_prompt and self.asked.echo:
            at = number // self.asked.n
            ids = self.answers.prompt_ids[at]
            self._add(told, number, ids[0], None, None, self._is_put(at))
            for one in self.answers.echoed[at]:
                self._add_drawn(told, number, one)
        for one in drawn:
            self._add_drawn(told, number, one)
        return told

    def _is_put(self, at: int) -> bool:
        """Whether the first token was put before the text, and is no part of it."""
        prompt, first = self.asked.prompts[at], self.answers.prompt_ids[at][0]
        tokenizer = self.answers.speaker.tokenizer
        return (
            isinstance(prompt, str) and first == tokenizer.bos_token_id and not prompt.startswith(tokenizer.bos_token)
        )

    def _add_drawn(self, told: dict[str, list], number: int, drawn: Drawn) -> None:
        logprob, top = self.top(drawn)
        names = [(self.name(token), value) for token, value in top]
        tops = dict(reversed(names))  # the likelier of two that are called the same
        tops.setdefault(self.name(drawn.token), logprob)
        self._add(told, number, drawn.token, logprob, tops, drawn.token in self.answers.speaker.ends)

    def _add(self, told: dict, number: int, token: int, logprob: float | None, top: dict | None, hidden: bool) -> None:
        told["tokens"].append(self.name(token))
        told["token_logprobs"].append(logprob)
        told["top_logprobs"].append(top)
        told["text_offset"].append(self.offsets[number])
        if not hidden:
            self.offsets[number] += len(self.decoders[number].decode(self.bytes[token]))

    def name(self, token: int) -> str:
        """Its text; where it is no whole characters, its bytes as OpenAI writes them."""
        own = self.bytes[token]
        try:
            return own.decode()
        except UnicodeDecodeError:
            return "bytes:" + _escaped(own)


class Chat(Reply):
    object, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, number: int, text: str, logprobs: dict | None, finish: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": finish}

    def delta(self, number: int, said: Said, logprobs: dict | None) -> dict[str, Any]:
        delta = {"content": said.text} if said.text else {}
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": said.finish}

    def opening(self, number: int) -> Iterator[dict[str, Any]]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        yield {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}

    def logprobs(self, number: int, drawn: Sequence[Drawn], with_prompt: bool) -> dict[str, Any] | None:
        if self.asked.top is None:
            return None
        content = []
        for one in drawn:
            logprob, top = self.top(one)
            tops = [self._token(token, value) for token, value in top]
            content.append({**self._token(one.token, logprob), "top_logprobs": tops})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        own = self.bytes[token]
        try:
            text = own.decode()
        except UnicodeDecodeError:
            text = _escaped(own)
        return {"token": text, "logprob": logprob, "bytes": list(own)}


def _escaped(own: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in own)
