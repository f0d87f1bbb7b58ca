"""The page that shows how a text is written: what may come next, in one to four models.

The page keeps its state, and tells with each request all that the answer depends on.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rlhf_kit.errors import UserError
from rlhf_kit.escaping import terminal
from rlhf_kit.references import imported
from rlhf_kit.serving import chatting
from rlhf_kit.serving.access import NO_MODEL, Person, asked_of_models, visible
from rlhf_kit.serving.chat_texts import CHAT
from rlhf_kit.serving.next_words import cards
from rlhf_kit.serving.panel_texts import PANEL
from rlhf_kit.serving.render import render
from rlhf_kit.serving.streaming import Stream

MOST_TEXT, MOST_PIECES, MOST_CANDIDATES, MOST_WRITTEN = 20_000, 4096, 50, 512
Sent = dict[str, Any]


@visible
def page(request: Request, who: Person | None) -> Response:
    models = list(request.app.state.models)
    if not models:
        raise HTTPException(404, NO_MODEL)
    return render(request, "next.html", who, page="next token", models=models, cards=cards(models), panel=PANEL)


async def look(request: Request) -> Response:
    """JSON with `model`, `text`, `template`, `path`, `at`, `count` and the settings -> prompt, path, next."""
    return await _answered(request, _look)


async def write(request: Request) -> Response:
    """As `look`, with `max_tokens` and `seed` -> a line of JSON for each piece."""
    return await _answered(request, _write)


async def change(request: Request) -> Response:
    """What PPO did to each token of an answer of `model`, beside `reference`, another model.

    Answered is `text`, or `turns` of a conversation; the answer is what `path` has, or the text `answer`, which has
    `ended` or not.
    """
    return await _answered(request, _change)


async def _answered(request: Request, answer: Callable[[Request, Sent], Response]) -> Response:
    sent, _ = await asked_of_models(request)
    try:
        return await run_in_threadpool(answer, request, sent)
    except UserError as error:
        return JSONResponse({"error": str(error)}, 400)


def _look(request: Request, sent: Sent) -> Response:
    speaker, text, template, path = place_of(request, sent)
    at, count = sent.get("at"), sent.get("count", 10)
    if type(at) is not int or not 0 <= at <= len(path):
        raise HTTPException(400, "`at` is a place of `path`")
    if type(count) is not int or not 1 <= count <= MOST_CANDIDATES:
        raise HTTPException(400, f"`count` is from 1 to {MOST_CANDIDATES}")
    looked = imported("rlhf_kit.chat.branching:look")(speaker, text, template, path, at, count, settings_of(sent))
    return JSONResponse(readable(asdict(looked)))


def _change(request: Request, sent: Sent) -> Response:
    state, answer, ended = request.app.state, sent.get("answer"), sent.get("ended") is not False
    if not isinstance(answer, str | None) or len(answer or "") > MOST_TEXT:
        raise HTTPException(400, f"`answer` has at most {MOST_TEXT} characters")
    try:
        turns = chatting.turns_of(sent) if "turns" in sent else None
    except chatting.Refusal as refusal:
        raise HTTPException(413, CHAT[str(refusal)][0]) from None
    speaker, text, _, path = place_of(request, sent if turns is None else sent | {"text": ""})
    folder, reference = Path(state.models[speaker.name]), state.speakers[str(sent.get("reference"))]
    written = [token for piece in path for token in piece] if answer is None else answer
    replay = state.replays()(folder, speaker, reference, turns or text, written, ended)
    more = {"sure_and_wrong": replay.change.sure_and_wrong, "kl_coef": replay.kl_coef}
    more |= {"temperature": replay.temperature, "score": None}
    if replay.score is not None:
        more["score"] = asdict(replay.score) | {"total": replay.score.total}
    more["missing"] = [getattr(fault, "said", [str(fault)] * 2) for fault in replay.missing]
    return JSONResponse(readable(asdict(replay.change) | more))


def replays() -> Any:
    """What keeps the reward models and value functions of the runs that were asked for."""
    return imported("rlhf_kit.stages.replay:Replays")()


def _write(request: Request, sent: Sent) -> Response:
    speaker, text, template, path = place_of(request, sent)
    pieces = imported("rlhf_kit.chat.branching:write")(speaker, text, template, path, settings_of(sent))

    async def lines() -> AsyncIterator[str]:
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    yield json.dumps(readable(asdict(piece))) + "\n"
        except Exception as error:  # the answer has begun: it ends with what stopped it
            fault = imported("rlhf_kit.serving.answering:fault_of")(error, speaker.name)
            yield json.dumps({"error": " ".join(CHAT[fault])}) + "\n"

    return Stream(lines())


def place_of(request: Request, sent: Sent) -> tuple[Any, str, bool, list[list[int]]]:
    """Model, text, whether it is put by the template, and what was chosen behind it."""
    text, path = sent.get("text"), sent.get("path", [])
    if not isinstance(text, str) or len(text) > MOST_TEXT:
        raise HTTPException(400, f"`text` has at most {MOST_TEXT} characters")
    if not isinstance(path, list) or len(path) > MOST_PIECES or not all(map(_is_piece, path)):
        raise HTTPException(400, f"`path` is a list of at most {MOST_PIECES} lists of tokens")
    return request.app.state.speakers[str(sent.get("model"))], text, sent.get("template") is True, path


def _is_piece(piece: Any) -> bool:
    return isinstance(piece, list) and 0 < len(piece) <= 16 and all(type(token) is int for token in piece)


def settings_of(sent: Sent) -> Any:
    """How tokens are drawn. What is out of range is refused by who draws."""
    numbers = {name: sent.get(name, default) for name, default in (("temperature", 1.0), ("top_p", 1.0))}
    whole = {name: sent.get(name, default) for name, default in (("top_k", 0), ("max_tokens", 1), ("seed", 0))}
    if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers.values()):
        raise HTTPException(400, "`temperature` and `top_p` are numbers")
    if not all(type(value) is int and 0 <= value < 2**53 for value in whole.values()):
        raise HTTPException(400, "`top_k`, `max_tokens` and `seed` are whole numbers")
    whole["max_tokens"] = min(whole["max_tokens"], MOST_WRITTEN)
    return imported("rlhf_kit.chat.speakers:Settings")(**numbers, **whole)


def readable(value: Any) -> Any:
    """Texts with what would reorder or hide others by its number, as templates show them."""
    if isinstance(value, str):
        return terminal(value)
    if isinstance(value, dict):
        return {name: readable(one) for name, one in value.items()}
    return [readable(one) for one in value] if isinstance(value, list) else value
