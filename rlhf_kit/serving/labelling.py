"""Where people label: a list to rank, an answer to give a thumb, and the decision that is kept."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from rlhf_kit.data.labels import schema
from rlhf_kit.data.labels.content import FLAGS, LIKERT
from rlhf_kit.data.labels.store import Event, StoreFault
from rlhf_kit.data.messages import as_messages
from rlhf_kit.errors import UserError
from rlhf_kit.feedback.assignment import Assignment, assignment_of, next_assignment, standing
from rlhf_kit.references import imported
from rlhf_kit.serving.access import Person, check_token, needs, person
from rlhf_kit.serving.render import render
from rlhf_kit.serving.texts import KEYS, THUMB_KEYS

SHOWN = 20_000  # characters of an answer on the page; the rest is a link away
PAGES = {schema.RANKING: ("rank", "rank.html", KEYS), schema.THUMBS: ("thumbs", "thumbs.html", THUMB_KEYS)}


@needs(schema.LABELER)
def rank(request: Request, who: Person) -> Response:
    return _label(request, who, schema.RANKING)


@needs(schema.LABELER)
def thumbs(request: Request, who: Person) -> Response:
    return _label(request, who, schema.THUMBS)


def _label(request: Request, who: Person, kind: str) -> Response:
    """The next task of a kind, or with `assignment` in the path one of one's own again."""
    store, policy = request.app.state.store, request.app.state.policy
    if unread_guidelines(request, who):
        return RedirectResponse("/guidelines", 303)
    number = request.path_params.get("assignment")
    if number is None:
        chosen, was = next_assignment(store, who.id, kind, policy), None
    else:
        chosen, was = assignment_of(store, number, who.id)
        if chosen is None or store.task(chosen.task).kind != kind:
            raise HTTPException(404, "no such task of yours")
    name, page, keys = PAGES[kind]
    counts = standing(store, who.id, kind, policy)
    if chosen is None:
        return render(request, "done.html", who, page=name, counts=counts)
    return render(
        request,
        page,
        who,
        page=name,
        counts=counts,
        keys=keys,
        uid=secrets.token_urlsafe(18),
        content=was.content if was else {},
        again=was is not None,
        **_shown(request, chosen),
    )


def _shown(request: Request, chosen: Assignment) -> dict[str, Any]:
    task = request.app.state.store.task(chosen.task)
    by_id = {answer.id: answer for answer in task.answers}
    answers = [
        {"id": number, "text": by_id[number].text[:SHOWN], "cut": len(by_id[number].text) > SHOWN}
        for number in chosen.presented
    ]
    explained = None
    if task.mode == schema.EXAMPLE:
        gold = {str(answer.id): value for answer, value in zip(task.answers, task.gold or (), strict=True)}
        explained = {"gold": gold, "text": task.explanation or ""}
    return {
        "assignment": chosen,
        "turns": as_messages(task.prompt),
        "answers": answers,
        "explained": explained,
        "flags": FLAGS,
        "likert": LIKERT,
    }


async def decide(request: Request) -> Response:
    """Keep a decision: JSON with `uid`, `assignment`, `kind`, `content`, `seconds` (that it took). 200 means kept."""
    try:
        sent = json.loads(await request.body())
    except ValueError:
        raise HTTPException(400, "JSON is needed") from None
    return await run_in_threadpool(_decide, request, sent if isinstance(sent, dict) else {})


def _decide(request: Request, sent: dict[str, Any]) -> Response:
    who = person(request)
    if who is None:
        raise HTTPException(403, "sign in first")
    check_token(request, request.headers.get("x-csrf-token"))
    uid, assignment, seconds = sent.get("uid"), sent.get("assignment"), sent.get("seconds", 0)
    if not isinstance(uid, str) or not 8 <= len(uid) <= 64 or type(assignment) is not int:
        raise HTTPException(400, "`uid` and `assignment` are needed")
    now = time.time()
    took = min(max(float(seconds), 0.0), 86_400.0) if isinstance(seconds, int | float) else 0.0
    guidelines = request.app.state.store.guidelines()
    event = Event(
        uid=uid,
        kind=str(sent.get("kind")),
        labeler=who.id,
        content=sent["content"] if isinstance(sent.get("content"), dict) else {},
        assignment=assignment,
        guideline=guidelines[0] if guidelines else None,
        opened=now - took,
        submitted=now,
    )
    if event.kind not in schema.DECISIONS:
        raise HTTPException(400, f"`kind` must be one of {', '.join(schema.DECISIONS)}")
    try:
        is_new = request.app.state.store.add_event(event)
    except StoreFault:
        raise  # nothing is wrong with the decision: the page tries again
    except UserError as error:
        raise HTTPException(409, str(error)) from None
    return JSONResponse({"kept": True, "new": is_new, "truth": _truth(request, assignment, who, event)})


def _truth(request: Request, assignment: int, who: Person, event: Event) -> str | None:
    """How a ranking that was just kept compares with the truth of the world; None where nobody is to be told."""
    if not request.app.state.reveal_truth:
        return None
    store = request.app.state.store
    given, _ = assignment_of(store, assignment, who.id)
    compared = imported("rlhf_kit.feedback.truth:compare_decision")(store.task(given.task), event.content)
    return None if compared is None else str(compared)


@needs(schema.LABELER)
def answer(request: Request, who: Person) -> Response:
    """The whole text of an answer that the labeler was given."""
    number = request.path_params["answer"]
    text = request.app.state.store.answer_given(number, who.id)
    if text is None:
        raise HTTPException(404, "no such answer of yours")
    return PlainTextResponse(text)


def unread_guidelines(request: Request, who: Person) -> bool:
    """Whether there are guidelines whose present version the labeler has not acknowledged."""
    store = request.app.state.store
    latest = store.guidelines()
    return latest is not None and not store.acknowledged(who.id, latest[0])
