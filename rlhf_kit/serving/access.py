"""Who may do what: sessions, one-time links, CSRF, the hosts that are answered, rates, a response's headers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from sqlalchemy import insert, select, update
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlhf_kit.data.labels import schema
from rlhf_kit.data.labels.store import Store
from rlhf_kit.errors import UserError

NO_MODEL = "there is no model here: `rlhf-kit ui FOLDER`, or --models NAME=M"
BODY = 256 * 1024  # bytes of a request; a decision on nine answers with a long comment is a tenth of it
DAY = 86_400  # seconds
LINK, SESSION = 7 * DAY, 30 * DAY  # for which they can be used
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class Person:
    id: int
    name: str
    role: str

    @property
    def is_admin(self) -> bool:
        return self.role == schema.ADMIN


def person(request: Request) -> Person | None:
    """Who is signed in; asked of the store each time, so that a session that was ended is none at once."""
    session = request.session.get("link")
    if session is None:
        return None
    store: Store = request.app.state.store
    links, labelers = schema.links, schema.labelers
    going = (links.c.hash == session) & links.c.used.is_not(None) & (links.c.expires > time.time())
    with store.reading() as connection:
        row = connection.execute(select(labelers).join(links, links.c.labeler == labelers.c.id).where(going)).first()
    return None if row is None else Person(row.id, row.name, row.role)


def signed_in(request: Request, session: str) -> None:
    """Give the browser a session; nothing of one before stays but the language."""
    kept = {name: request.session[name] for name in ("language",) if name in request.session}
    request.session.clear()
    request.session.update(kept, link=session, csrf=secrets.token_urlsafe(24))


def token(request: Request) -> str:
    """Of the session, in every form and request that changes something."""
    return request.session.setdefault("csrf", secrets.token_urlsafe(24))


Endpoint = Callable[[Request], Response]


def needs(role: str) -> Callable[[Callable[[Request, Person], Response]], Endpoint]:
    """An endpoint for those who are signed in, or for admins alone. Others are led to sign in, or get 403."""

    def guarded(endpoint: Callable[[Request, Person], Response]) -> Endpoint:
        @wraps(endpoint)
        def checked(request: Request) -> Response:
            who = person(request)
            if who is None:
                return _to_sign_in(request)
            if role == schema.ADMIN and not who.is_admin:
                raise HTTPException(403, "for the admin alone")
            return endpoint(request, who)

        return checked

    return guarded


def visible(endpoint: Callable[[Request, Person | None], Response]) -> Endpoint:
    """A page of models and runs: on this machine alone for everybody, else for those who are signed in."""

    @wraps(endpoint)
    def checked(request: Request) -> Response:
        who = person(request)
        if who is None and not request.app.state.alone:
            return _to_sign_in(request)
        return endpoint(request, who)

    return checked


def _to_sign_in(request: Request) -> Response:
    if request.method == "GET":
        return RedirectResponse("/sign-in", 303)
    raise HTTPException(403, "sign in first")


# --- links, each of which becomes a session ------------------------------------------------------------------------


def add_link(store: Store, labeler: int) -> str:
    """A token by which a labeler signs in once. The store keeps its hash."""
    made = secrets.token_urlsafe(24)
    row = {"hash": _hash(made), "labeler": labeler, "expires": time.time() + LINK}
    with store.writing() as connection:
        connection.execute(insert(schema.links).values(row))
    return made


def use_link(store: Store, made: str) -> str | None:
    """The session that a link begins which was not used before; None for any other."""
    links, now = schema.links, time.time()
    fresh = (links.c.hash == _hash(made)) & links.c.used.is_(None) & (links.c.expires > now)
    with store.writing() as connection:
        changed = connection.execute(update(links).where(fresh).values(used=now, expires=now + SESSION))
    return _hash(made) if changed.rowcount else None


def end_sessions(store: Store, session: str | None = None, labeler: int | None = None) -> None:
    """End one session, or all of a labeler's with the links that were not used yet."""
    links = schema.links
    ended = links.c.hash == session if session is not None else links.c.labeler == labeler
    with store.writing() as connection:
        connection.execute(update(links).where(ended).values(expires=0.0))


def _hash(made: str) -> str:
    return hashlib.sha256(made.encode()).hexdigest()


def session_key(store: Store) -> str:
    """The key that signs sessions: of the store, so that a server that begins again knows its labelers."""
    name = "session key"
    with store.writing() as connection:
        known = connection.execute(select(schema.store.c.value).where(schema.store.c.name == name)).scalar()
        if known is None:
            known = secrets.token_urlsafe(32)
            connection.execute(insert(schema.store).values(name=name, value=known))
        return known


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listening = socket.create_server((host, port), family=found[0][0], backlog=256)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a body waited 40 ms behind its headers
        return listening
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: {error}. Give another port, or 0 for a free one.") from error


def names_of(host: str, port: int) -> list[str]:
    """What clients write for a server at this address: all names of this machine where it listens to itself alone."""
    own = f"[{host}]" if ":" in host else host
    local = [f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"] if is_loopback(host) else []
    return list(dict.fromkeys([f"{own}:{port}", *local]))


# --- around every request -------------------------------------------------------------------------------------------


@dataclass
class Limits:
    """Requests of one sender: `burst` at once, `rate` a second after that. Of the senders the last are remembered."""

    rate: float = 20.0
    burst: float = 60.0
    most: int = 10_000
    clock: Callable[[], float] = time.monotonic
    _left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def takes(self, sender: str) -> bool:
        now = self.clock()
        left, last = self._left.pop(sender, (self.burst, now))
        left = min(self.burst, left + (now - last) * self.rate)
        self._left[sender] = (left - 1 if left >= 1 else left, now)
        while len(self._left) > self.most:
            self._left.popitem(last=False)
        return left >= 1


class Guard:
    """Refuses what no page of ours sends: another Host, another Origin, no token, a large body, too many requests.

    Args:
        hosts: as a browser writes them, with the port.
        by_address: for all of a class behind one address; by_session: for one of them.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], by_address: Limits, by_session: Limits):
        self.app, self.hosts, self.by_address, self.by_session = app, hosts, by_address, by_session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if not scope["path"].startswith("/static/"):
                    headers["cache-control"] = "no-store"
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None and scope["method"] == "POST":
            refusal, receive = await self._read(receive)
        answer = self.app if refusal is None else refusal
        await answer(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if headers.get("host", "") not in self.hosts:
            return PlainTextResponse("This server does not answer to this name.\n", 421)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("Method not allowed.\n", 405)
        address = (scope.get("client") or ("?", 0))[0]
        senders = ((self.by_address, address), (self.by_session, headers.get("cookie", address)))
        if not all(limits.takes(sender) for limits, sender in senders):
            return PlainTextResponse("Too many requests; wait a moment.\n", 429, {"retry-after": "1"})
        if scope["method"] == "POST":
            origin = headers.get("origin", "")
            if origin.partition("://")[2] not in self.hosts:
                return PlainTextResponse("A request of another page is not taken.\n", 403)
            if not headers.get("content-length", "").isdigit() or int(headers["content-length"]) > BODY:
                return PlainTextResponse(f"Give at most {BODY} bytes, with their number.\n", 413)
        return None

    async def _read(self, receive: Receive) -> tuple[Response | None, Receive]:
        """The body, which is short, at once: a slow or endless one never reaches an endpoint."""
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return PlainTextResponse("", 400), receive
            body += message.get("body", b"")
            if len(body) > BODY:
                return PlainTextResponse(f"Give at most {BODY} bytes.\n", 413), receive
            if not message.get("more_body", False):
                break
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        return None, again


async def asked_of_models(request: Request) -> tuple[dict[str, Any], Person | None]:
    """The JSON of a request that may be made, and by whom: on this machine alone by anybody."""
    who = await run_in_threadpool(person, request)
    if who is None and not request.app.state.alone:
        raise HTTPException(403, "sign in first")
    check_token(request, request.headers.get("x-csrf-token"))
    if not request.app.state.models:
        raise HTTPException(404, NO_MODEL)
    try:
        sent = json.loads(await request.body())
    except ValueError:
        raise HTTPException(400, "JSON is needed") from None
    return (sent if isinstance(sent, dict) else {}), who


def check_token(request: Request, given: Any) -> None:
    """Raises 403 unless `given` is the session's token."""
    expected = request.session.get("csrf", "")
    if not isinstance(given, str) or not expected or not hmac.compare_digest(given.encode(), expected.encode()):
        raise HTTPException(403, "the page is too old: load it again")
