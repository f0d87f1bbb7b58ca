"""The routes under /v1, and what stands before them: who is answered, how long a request may be."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rlhf_kit.chat.speakers import Speakers
from rlhf_kit.errors import UserError
from rlhf_kit.generation.engine import Busy, Closed
from rlhf_kit.serving.endpoint import forms
from rlhf_kit.serving.endpoint.answers import Answers, answers_to
from rlhf_kit.serving.endpoint.refusals import Refused, refusal_of
from rlhf_kit.serving.endpoint.replies import Chat, Completion, Reply

logger = logging.getLogger(__name__)

BODY = 4 * 1024 * 1024  # bytes: a hundred prompts of a thousand tokens each are a tenth of it
BODY_SECONDS = 60  # for which a body may take to come


def endpoint(speakers: Speakers, hosts: Sequence[str] | None = None, key: str | None = None) -> ASGIApp:
    """What answers under /v1.

    Args:
        hosts: that are answered without a key, as clients write them; None: any.
        key: that a request must have.
    """
    began = int(time.time())

    def described(name: str) -> dict[str, Any]:
        place = {"id": name, "object": "model", "created": began, "owned_by": "rlhf_kit"}
        loaded = speakers.loaded(name)
        return place if loaded is None else {**place, "max_model_len": loaded.engine.context}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described(name) for name in speakers.places]})

    async def model(request: Request) -> Response:
        name = unquote(request.path_params["name"])
        if name not in speakers.places:
            raise Refused(f"The model {name[:200]!r} does not exist.", "model", 404, "model_not_found")
        return JSONResponse(described(name))

    app = Starlette(
        routes=[
            Route("/models", models),
            Route("/models/{name:path}", model),
            Route("/completions", _Answering(speakers, forms.completion, Completion), methods=["POST"]),
            Route("/chat/completions", _Answering(speakers, forms.chat, Chat), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _unknown}
        | dict.fromkeys((Refused, UserError, Busy, Closed, Exception), _refuse),
    )
    return Door(app, hosts, key)


def served(speakers: Speakers, hosts: Sequence[str] | None = None, key: str | None = None) -> Starlette:
    """The endpoint alone, with `/health`, which needs no key."""

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    mounted = Mount("/v1", endpoint(speakers, hosts, key))
    return Starlette(routes=[Route("/health", health), mounted], exception_handlers={HTTPException: _unknown})


def _refuse(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


def _unknown(request: Request, error: HTTPException) -> Response:
    what = "does not exist" if error.status_code == 404 else str(error.detail).lower()
    message = f"{request.method} {request.url.path[:200]}: {what}."
    response = _refuse(request, Refused(message, None, error.status_code))
    response.headers.update(error.headers or {})
    return response


class Door:
    """Lets in who has the key; without one, who calls this machine by its own name, and no page of another site."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, key: str | None):
        self.app, self.hosts, self.key = app, hosts, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        answer = self.app if refusal is None else JSONResponse(refusal.body, refusal.status)
        await answer(scope, receive, send)

    def _refusal(self, headers: Headers) -> Refused | None:
        if self.key is not None:
            kind, _, word = headers.get("authorization", "").partition(" ")
            if kind.lower() == "bearer" and hmac.compare_digest(word.strip().encode(), self.key.encode()):
                return None
            return Refused("Give the API key: Authorization: Bearer KEY.", None, 401, "invalid_api_key")
        if self.hosts is None:
            return None
        if headers.get("host", "") not in self.hosts:
            return Refused("This server does not answer to this name.", None, 421)
        if headers.get("origin", "://" + self.hosts[0]).partition("://")[2] not in self.hosts:
            return Refused("A request of another page is not taken.", None, 403)
        return None


class _Answering:
    """An ASGI app: a request read, answered whole or as a stream, and ended at once when its client has gone."""

    def __init__(self, speakers: Speakers, read: Callable[[bytes], forms.Asked], kind: type[Reply]):
        self.speakers, self.read, self.kind = speakers, read, kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _body(request)
        except TimeoutError:
            raise Refused(f"The body did not come within {BODY_SECONDS} seconds.", None, 408) from None
        except ClientDisconnect:
            return
        asked = self.read(body)
        await _while_there(request, self._answer(asked, send))

    async def _answer(self, asked: forms.Asked, send: Send) -> None:
        answers = await answers_to(asked, self.speakers)
        try:
            await answers.begin()
            reply = self.kind(asked, answers)
            await (_stream(reply, send) if asked.stream else _whole(reply, answers, send))
        finally:
            answers.end()


async def _body(request: Request) -> bytes:
    """Raises Refused for one that is too large, before it is read where it says so."""
    too_large = Refused(f"The body is too large; give at most {BODY} bytes.", None, 413)
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > BODY:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY:
            raise too_large
    return bytes(body)


async def _while_there(request: Request, work: Coroutine[Any, Any, None]) -> None:
    """Cancels `work` when the client hangs up."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, watching):
            task.cancel()
            with contextlib.suppress(BaseException):
                await task


async def _whole(reply: Reply, answers: Answers, send: Send) -> None:
    body = json.dumps(await reply.whole(), ensure_ascii=False, allow_nan=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(reply: Reply, send: Send) -> None:
    """Server-sent events; a fault that comes later is one of them."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        async for chunk in reply.chunks():
            await send({"type": "http.response.body", "body": _event(chunk), "more_body": True})
    except Exception as error:
        refusal = refusal_of(error)
        if refusal.status == 500:
            logger.exception("a stream ended with a fault")
        await send({"type": "http.response.body", "body": _event(refusal.body), "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"
