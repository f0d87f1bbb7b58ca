"""The page Chat: models beside each other answer the same turns; what people think of the answers goes to the store.

The browser keeps the conversation, and sends a model the turns it is to answer. An answer comes back as it is drawn, a
line of JSON for each piece; the last line has a proof, signed by the server, of which model wrote what, to which turns
and how. With that alone an answer becomes a task of the store: none is kept that no model gave.
"""

from __future__ import annotations

import math
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rlhf_kit.data.labels import schema
from rlhf_kit.data.labels.store import Answer
from rlhf_kit.data.messages import Message
from rlhf_kit.escaping import terminal
from rlhf_kit.feedback.assignment import assigned
from rlhf_kit.references import imported
from rlhf_kit.serving.access import NO_MODEL, Person, asked_of_models, visible
from rlhf_kit.serving.chat_texts import CHAT
from rlhf_kit.serving.panel_texts import PANEL
from rlhf_kit.serving.proof import proven
from rlhf_kit.serving.render import render
from rlhf_kit.serving.streaming import Stream

MOST_MODELS = 4  # beside each other
MOST_TURNS, LONGEST = 100, 20_000  # messages of a conversation, and characters of one
MOST_TOKENS = 2048  # of an answer
MOST_ANSWERS = 12  # of a ranking, as many as the terminal takes
ROLES = ("system", "user", "assistant")


class Refusal(Exception):
    """What the page says in the reader's language: a name of CHAT."""


@visible
def chat(request: Request, who: Person | None) -> Response:
    names = list(request.app.state.models)
    if not names:
        raise HTTPException(404, NO_MODEL)
    limits = {"models": MOST_MODELS, "turns": MOST_TURNS, "characters": LONGEST, "tokens": MOST_TOKENS}
    shown = [terminal(name) for name in names]
    return render(
        request, "chat.html", who, page="chat", names=names, shown=shown, limits=limits, texts=CHAT, panel=PANEL,
        by_name=request.app.state.by_name,
    )  # fmt: skip


# --- an answer, as it is drawn --------------------------------------------------------------------------------------


async def answer(request: Request) -> Response:
    """The answer of `model` to `turns`: lines of JSON, each a piece of `text`, the last one with `finish`."""
    sent, _ = await asked_of_models(request)
    try:
        turns = turns_of(sent)
    except Refusal as refusal:
        return JSONResponse({"error": str(refusal)}, 413)
    if sent.get("model") not in request.app.state.models:
        raise HTTPException(404, "there is no such model")
    state = request.app.state
    lines = imported("rlhf_kit.serving.answering:lines")  # which needs torch, as a store alone does not
    return Stream(lines(state.speakers, sent["model"], turns, _settings(sent), state.key))


# --- what goes to the store -----------------------------------------------------------------------------------------


async def tasks(request: Request) -> Response:
    """A task of the answers that `proofs` are of, given to who asks: one for a thumb, or several to be ranked."""
    sent, who = await asked_of_models(request)
    if who is None:
        return JSONResponse({"error": "name"}, 403)
    try:
        return await run_in_threadpool(_task, request, sent, who)
    except Refusal as refusal:
        return JSONResponse({"error": str(refusal)}, 409)


def _task(request: Request, sent: dict[str, Any], who: Person) -> Response:
    state, turns, kind = request.app.state, turns_of(sent), sent.get("kind")
    answers = _answers(state.key, turns, sent.get("proofs"))
    if kind not in schema.KINDS or (kind == schema.THUMBS) != (len(answers) == 1):
        raise HTTPException(400, "a thumb is of one answer, a ranking of several")
    if kind == schema.RANKING and len({each.text for each in answers}) < 2:
        raise Refusal("same")
    given = assigned(state.store, who.id, state.store.add_task(kind, turns, answers), state.policy)
    state.kinds[kind] = True
    return JSONResponse({"assignment": given.id})


def _answers(key: str, turns: list[Message], proofs: Any) -> list[Answer]:
    if not isinstance(proofs, list) or not 1 <= len(proofs) <= MOST_ANSWERS:
        raise HTTPException(400, f"`proofs` of 1 to {MOST_ANSWERS} answers are needed")
    try:
        return [proven(key, turns, proof) for proof in proofs]
    except ValueError as error:
        raise HTTPException(400, str(error)) from None


# --- what is sent ---------------------------------------------------------------------------------------------------


def turns_of(sent: dict[str, Any]) -> list[Message]:
    """Turns that can be answered: perhaps a system's, then a user's, answers between them, and a user's last."""
    turns = sent.get("turns")
    fits = isinstance(turns, list) and bool(turns)
    fits = fits and all(isinstance(turn, dict) and set(turn) == {"role", "content"} for turn in turns)
    fits = fits and all(turn["role"] in ROLES and isinstance(turn["content"], str) for turn in turns)
    if not fits or turns[-1]["role"] != "user" or any(turn["role"] == "system" for turn in turns[1:]):
        raise HTTPException(400, "`turns` must be of `role` and `content`, the last one of the user")
    if len(turns) > MOST_TURNS:
        raise Refusal("turns")
    if any(len(turn["content"]) > LONGEST for turn in turns):
        raise Refusal("long")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _settings(sent: dict[str, Any]) -> dict[str, Any]:
    whole = {name: sent.get(name) for name in ("max_tokens", "top_k", "seed")}
    temperature = sent.get("temperature")
    is_number = type(temperature) in (int, float) and math.isfinite(temperature)
    if not is_number or any(type(value) is not int for value in whole.values()) or whole["max_tokens"] > MOST_TOKENS:
        raise HTTPException(400, f"numbers are needed, and at most {MOST_TOKENS} for `max_tokens`")
    return {"temperature": float(temperature), **whole}
