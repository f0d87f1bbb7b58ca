"""What a request asks for: each field is used, or harmless, or refused by name."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_kit.chat.speakers import Settings
from rlhf_kit.data.faults import describe, half_characters
from rlhf_kit.data.messages import Message
from rlhf_kit.errors import did_you_mean
from rlhf_kit.hashes import text_hash
from rlhf_kit.inputs import doubled, parse_json
from rlhf_kit.options.bounds import number_faults
from rlhf_kit.serving.endpoint.refusals import Refused

MOST_TOP = 20  # candidates told of a token
MOST_STOPS, LONGEST_STOP = 16, 1000
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
SEEDS = 2**32

Prompt = str | list[int] | list[Message]

# Fields that change no answer: who asks, how it is kept or billed.
HARMLESS = {
    *("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    "parallel_tool_calls",
}
# Fields that would change the answer, and what of them says no more than the default.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "min_p": (0,),
    "min_tokens": (0,),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}


@dataclass(frozen=True)
class Asked:
    """A request. `settings.max_tokens`: as asked for; `is_open`: it was not, and what there is room for will do.
    `top`: how many candidates of each token are told; None: no log-probs at all. `seed`: None: any."""

    model: str
    prompts: list[Prompt]
    chats: bool
    settings: Settings
    is_open: bool
    seed: int | None = None
    n: int = 1
    top: int | None = None
    echo: bool = False
    stream: bool = False
    include_usage: bool = False
    ignore_eos: bool = False

    def seeds(self) -> list[int]:
        """One for each answer to a prompt, whatever other prompts there are: the first has the request's own."""
        first = secrets.randbelow(SEEDS) if self.seed is None else self.seed % SEEDS
        return [first, *(int(text_hash(f"{first} {number}"), 16) % SEEDS for number in range(1, self.n))]


def read_body(body: bytes) -> dict[str, Any]:
    """A body as an object of JSON. Raises Refused."""
    try:
        value = parse_json(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise Refused("The body is not UTF-8.") from None
    except ValueError as error:
        raise Refused(f"The body is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise Refused(f"The body is {describe(value)}; give an object.")
    for fault in doubled(value):
        raise Refused(f"In the body {fault}.")
    for fault in half_characters(value):
        raise Refused(f"In the body {fault}.")
    return value


def completion(body: bytes) -> Asked:
    """Of `/v1/completions`. Raises Refused."""
    fields = Fields(read_body(body))
    model, prompts = fields.model(), _prompts(fields.needed("prompt"))
    top, echo = fields.whole("logprobs", 0, MOST_TOP), fields.flag("echo")
    n = fields.whole("n", 1) or 1
    best_of = fields.whole("best_of", 1) or n
    if best_of != n:
        raise Refused(f"best_of is {best_of} and n is {n}: only answers that are all given back are drawn.", "best_of")
    max_tokens = fields.whole("max_tokens", 0)
    if max_tokens == 0 and not echo:
        raise Refused("max_tokens is 0: with echo, the prompt alone is given back; without it, nothing.", "max_tokens")
    return fields.asked(model, prompts, False, max_tokens, 16, n=n, top=top, echo=echo)


def chat(body: bytes) -> Asked:
    """Of `/v1/chat/completions`. Raises Refused."""
    fields = Fields(read_body(body))
    model, messages = fields.model(), _messages(fields.needed("messages"))
    told, top = fields.flag("logprobs"), fields.whole("top_logprobs", 0, MOST_TOP)
    if top and not told:
        raise Refused("top_logprobs needs logprobs: true.", "top_logprobs")
    old, new = (fields.whole(name, 1) for name in ("max_tokens", "max_completion_tokens"))
    if old is not None and new is not None and old != new:
        raise Refused(f"max_tokens is {old} and max_completion_tokens {new}; give one of them.", "max_tokens")
    max_tokens = old if new is None else new
    n = fields.whole("n", 1) or 1
    return fields.asked(model, [messages], True, max_tokens, None, n=n, top=(top or 0) if told else None)


class Fields:
    """Fields of a body, taken one by one; null is as good as left out."""

    def __init__(self, body: dict[str, Any]):
        self.left = {name: value for name, value in body.items() if value is not None}
        self.known: set[str] = set()

    def take(self, name: str, fits: Callable[[Any], bool], form: str) -> Any:
        self.known.add(name)
        value = self.left.pop(name, None)
        if value is not None and not fits(value):
            raise Refused(f"{name} is {describe(value)}; give {form}.", name)
        return value

    def needed(self, name: str) -> Any:
        value = self.take(name, lambda _: True, "")
        if value is None:
            raise Refused(f"{name} is missing.", name, code="missing_required_parameter")
        return value

    def model(self) -> str:
        value = self.needed("model")
        if not isinstance(value, str):
            raise Refused(f"model is {describe(value)}; give a name of /v1/models.", "model")
        return value

    def flag(self, name: str) -> bool:
        return bool(self.take(name, lambda value: isinstance(value, bool), "true or false"))

    def whole(self, name: str, least: int | None = None, most: int | None = None) -> int | None:
        span = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
        value = self.take(name, lambda value: type(value) is int, f"a whole number{span}")
        if value is not None and (least is not None and value < least or most is not None and value > most):
            raise Refused(f"{name} is {value}; give a whole number{span}.", name)
        return value

    def number(self, name: str, default: float) -> float:
        value = self.take(name, lambda value: type(value) in (int, float), "a number")
        return default if value is None else value

    def asked(
        self, model: str, prompts: list[Prompt], chats: bool, max_tokens: int | None, default: int | None, **more: Any
    ) -> Asked:
        """With what both kinds of request have; nothing else may be left."""
        top_k = self.whole("top_k", -1) or 0  # as vLLM: -1 is all
        drawn = {
            "temperature": self.number("temperature", 1.0),
            "top_p": self.number("top_p", 1.0),
            "top_k": max(0, top_k),
            "max_tokens": default if max_tokens is None else max_tokens,
        }
        for name, value in drawn.items():
            if not (name == "max_tokens" and value == 0):
                for fault in number_faults("sample", **{name: value}):
                    raise Refused(f"{fault}.", name)
        top = more["top"] or 0
        settings = Settings(**{**drawn, "max_tokens": drawn["max_tokens"] or 0}, stop=self.stop(), top_logprobs=top)
        stream = self.flag("stream")
        asked = Asked(
            model, prompts, chats, settings, max_tokens is None, self.whole("seed"), stream=stream,
            include_usage=self.usage(stream), ignore_eos=self.flag("ignore_eos"), **more,
        )  # fmt: skip
        self.refuse_others()
        return asked

    def stop(self) -> Sequence[str]:
        value = self.take("stop", lambda value: isinstance(value, str | list), "a text or a list of texts")
        texts = [value] if isinstance(value, str) else value or []
        for text in texts:
            if not isinstance(text, str) or not 0 < len(text) <= LONGEST_STOP:
                shown = f"an item of {len(text)} characters" if isinstance(text, str) else f"an item, {describe(text)}"
                raise Refused(f"stop has {shown}; give texts of 1 to {LONGEST_STOP} characters.", "stop")
        if len(texts) > MOST_STOPS:
            raise Refused(f"stop has {len(texts)} texts; give at most {MOST_STOPS}.", "stop")
        return tuple(texts)

    def usage(self, stream: bool) -> bool:
        value = self.take("stream_options", lambda value: isinstance(value, dict), "an object")
        if value is None:
            return False
        if not stream:
            raise Refused("stream_options needs stream: true.", "stream_options")
        options = Fields(value)
        options.flag("include_obfuscation")
        wanted = options.flag("include_usage")
        if options.left:
            raise Refused(f"stream_options has {sorted(options.left)[0]!r}, which is not known.", "stream_options")
        return wanted

    def refuse_others(self) -> None:
        for name, value in self.left.items():
            if name in HARMLESS:
                continue
            if name not in NEUTRAL:
                hint = did_you_mean(name, [*self.known, *NEUTRAL])
                raise Refused(f"There is no parameter {name[:80]!r}.{hint}", name[:80], code="unknown_parameter")
            if isinstance(value, bool) or value not in NEUTRAL[name]:
                raise Refused(
                    f"{name} is not supported, and would change the answer; leave it out.", name,
                    code="unsupported_parameter",
                )  # fmt: skip


def _prompts(value: Any) -> list[Prompt]:
    """A text, texts, tokens, or lists of tokens, as a list of prompts."""
    form = "a text, a list of texts, a list of token ids, or a list of such lists"
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise Refused(f"prompt is {'an empty list' if value == [] else describe(value)}; give {form}.", "prompt")
    if _are_tokens(value):
        return [value]
    if all(isinstance(each, str) for each in value) or all(isinstance(each, list) for each in value):
        empty = next((at for at, each in enumerate(value) if isinstance(each, list) and not _are_tokens(each)), None)
        if empty is None:
            return value
        raise Refused(f"prompt[{empty}] is no list of token ids.", f"prompt[{empty}]")
    raise Refused(f"prompt is a list of several kinds of things; give {form}.", "prompt")


def _are_tokens(value: list) -> bool:
    return bool(value) and all(type(each) is int for each in value)


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise Refused(f"messages is {'empty' if value == [] else describe(value)}; give a list of turns.", "messages")
    return [_message(each, f"messages[{at}]") for at, each in enumerate(value)]


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise Refused(f"{name} is {describe(value)}; give an object with role and content.", name)
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Refused(f"{name}.role is {describe(role)}; give one of {', '.join(ROLES)}.", f"{name}.role")
    for key in ("tool_calls", "function_call", "audio", "refusal"):
        if value.get(key):
            raise Refused(f"{name}.{key} is not supported; leave it out.", f"{name}.{key}", code="unsupported_value")
    return {"role": ROLES[role], "content": _content(value.get("content"), f"{name}.content")}


def _content(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise Refused(f"{name} is {describe(value)}; give a text, or a list of parts of text.", name)
    for at, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else None
            shown = f"of the type {kind[:40]!r}" if isinstance(kind, str) else "no part"
            message = f"{name}[{at}] is {shown}; this model reads parts of text alone."
            raise Refused(message, f"{name}[{at}]", code="unsupported_value")
    return "".join(part["text"] for part in value)
