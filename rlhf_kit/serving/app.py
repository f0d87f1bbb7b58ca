"""The app: its routes, and what stands around all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from urllib.parse import parse_qs, urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from rlhf_kit.data.labels import schema
from rlhf_kit.data.labels.store import Store
from rlhf_kit.errors import UserError
from rlhf_kit.feedback.assignment import policy_of
from rlhf_kit.references import imported
from rlhf_kit.serving import chatting, labelling, next_token, overview, runs
from rlhf_kit.serving.access import (
    SESSION,
    Guard,
    Limits,
    Person,
    add_link,
    check_token,
    end_sessions,
    is_loopback,
    needs,
    person,
    session_key,
    signed_in,
    use_link,
)
from rlhf_kit.serving.folder import NOTHING, Contents
from rlhf_kit.serving.labelling import unread_guidelines
from rlhf_kit.serving.render import FOLDER, pages_for, render
from rlhf_kit.serving.texts import LANGUAGES

THEMES = ("auto", "light", "dark")


def make_app(
    store: Store,
    hosts: Sequence[str],
    by_name: bool = False,
    reveal_truth: bool = False,
    https: bool = False,
    contents: Contents = NOTHING,
) -> Starlette:
    """The app over a store.

    Args:
        hosts: that are answered, as a browser writes them (`127.0.0.1:7860`).
        by_name: whether a name is enough to sign in as a labeler: on a machine of one's own alone.
        reveal_truth: whether who has ranked answers of the embedded world is told how that compares with its truth.
        https: whether browsers come by HTTPS alone, to a proxy: then the cookie is for that alone.
        contents: models and runs to show. The models' `app.state.speakers` is closed by who made the app.
    """
    kinds, key = {kind: bool(store.tasks(kind)) for kind in schema.KINDS}, session_key(store)
    app = Starlette(
        routes=routes(),
        middleware=[
            Middleware(
                Guard,
                hosts=frozenset(hosts),
                by_address=Limits(rate=500, burst=2000),
                by_session=Limits(rate=20, burst=60),
            ),
            Middleware(SessionMiddleware, secret_key=key, same_site="strict", max_age=SESSION, https_only=https),
        ],
        exception_handlers={HTTPException: refused, UserError: unusable},
    )
    app.state.store, app.state.policy, app.state.kinds, app.state.by_name = store, policy_of(store), kinds, by_name
    app.state.reveal_truth = reveal_truth
    app.state.following = runs.Following()
    app.state.folder, app.state.models, app.state.runs = contents.folder, contents.models, contents.runs
    speakers = imported("rlhf_kit.chat.speakers:Speakers") if contents.models else None  # torch, only where needed
    app.state.speakers, app.state.key = speakers and speakers(contents.models), key
    app.state.replays = cache(next_token.replays)  # trainers, only where they are asked for
    app.state.alone = by_name and all(is_loopback(urlsplit(f"//{host}").hostname or "") for host in hosts)
    app.state.attempts = Limits(rate=1, burst=100)  # to sign in, of one address: a class may be behind it
    return app


def routes() -> list[Route | Mount]:
    return [
        Route("/", start),
        Route("/sign-in", sign_in_page),
        Route("/sign-in", sign_in, methods=["POST"]),
        Route("/sign-out", sign_out, methods=["POST"]),
        Route("/labelers/{labeler:int}/sign-out", sign_labeler_out, methods=["POST"]),
        Route("/join/{link}", join),
        Route("/join", joined, methods=["POST"]),
        Route("/preferences", preferences, methods=["POST"]),
        Route("/guidelines", guidelines),
        Route("/guidelines", acknowledge, methods=["POST"]),
        Route("/next", next_token.page),
        Route("/next/look", next_token.look, methods=["POST"]),
        Route("/next/change", next_token.change, methods=["POST"]),
        Route("/next/write", next_token.write, methods=["POST"]),
        Route("/runs", runs.every),
        Route("/runs/{run:path}", runs.one),
        Route("/charts.css", runs.style),
        Route("/chat", chatting.chat),
        Route("/chat/answers", chatting.answer, methods=["POST"]),
        Route("/chat/tasks", chatting.tasks, methods=["POST"]),
        Route("/rank", labelling.rank),
        Route("/rank/{assignment:int}", labelling.rank),
        Route("/thumbs", labelling.thumbs),
        Route("/thumbs/{assignment:int}", labelling.thumbs),
        Route("/decisions", labelling.decide, methods=["POST"]),
        Route("/answers/{answer:int}", labelling.answer),
        Route("/previous/{kind}", overview.previous),
        Route("/progress", overview.progress),
        Route("/export/{form}", overview.export),
        Mount("/static", StaticFiles(directory=FOLDER / "static")),
    ]


def refused(request: Request, error: HTTPException) -> Response:
    if request.headers.get("content-type") == "application/json":
        return PlainTextResponse(f"{error.detail}\n", error.status_code)
    return render(request, "refused.html", None, error.status_code, detail=error.detail)


def unusable(request: Request, error: UserError) -> Response:
    """The store cannot be written or read just now: the page says so, and keeps what was not saved."""
    return PlainTextResponse(f"{error}\n", 503)


async def form(request: Request) -> dict[str, str]:
    """The fields of a form, its token checked."""
    fields = {name: values[0] for name, values in parse_qs((await request.body()).decode("utf-8", "replace")).items()}
    check_token(request, fields.get("csrf"))
    return fields


def start(request: Request) -> Response:
    """To the first page that there is something for: a labeler's work before all others."""
    who = person(request)
    if who is not None and unread_guidelines(request, who):
        return RedirectResponse("/guidelines", 303)
    there = [page.address for page in pages_for(request.app, who)]
    work = [address for address in ("/rank", "/thumbs") if address in there]
    if who is None and not there:
        return sign_in_page(request)
    return RedirectResponse([*work, *there][0], 303)


def sign_in_page(request: Request) -> Response:
    return render(request, "start.html", person(request), by_name=request.app.state.by_name)


async def sign_in(request: Request) -> Response:
    fields = await form(request)
    if not request.app.state.by_name:
        raise HTTPException(403, "this server takes one-time links alone")
    _count_attempt(request)
    name = " ".join(fields.get("name", "").split())
    names = await run_in_threadpool(request.app.state.store.labelers)
    if any(known == name and role == schema.ADMIN for known, role in names.values()):
        raise HTTPException(403, "the admin signs in by the link that `rlhf-kit ui` printed")
    try:
        labeler = await run_in_threadpool(request.app.state.store.add_labeler, name)
    except UserError as error:
        raise HTTPException(400, str(error)) from None
    return await run_in_threadpool(_join, request, await run_in_threadpool(add_link, request.app.state.store, labeler))


def _count_attempt(request: Request) -> None:
    if not request.app.state.attempts.takes(request.client.host if request.client else "?"):
        raise HTTPException(429, "too many attempts; wait a minute")


async def sign_out(request: Request) -> Response:
    """Also for who has kept a copy of the cookie."""
    await form(request)
    await run_in_threadpool(end_sessions, request.app.state.store, request.session.get("link", ""))
    request.session.clear()
    return RedirectResponse("/", 303)


async def sign_labeler_out(request: Request) -> Response:
    await form(request)
    return await run_in_threadpool(_sign_labeler_out, request)


@needs(schema.ADMIN)
def _sign_labeler_out(request: Request, who: Person) -> Response:
    """Wherever they are signed in; links that they did not use yet are of no use either."""
    end_sessions(request.app.state.store, labeler=request.path_params["labeler"])
    return RedirectResponse("/progress", 303)


def join(request: Request) -> Response:
    """A page with a button: what looks at a link before a person does must not use it up."""
    return render(request, "join.html", None, link=request.path_params["link"])


async def joined(request: Request) -> Response:
    fields = await form(request)
    _count_attempt(request)
    return await run_in_threadpool(_join, request, fields.get("link", ""))


def _join(request: Request, link: str) -> Response:
    session = use_link(request.app.state.store, link)
    if session is None:
        return render(request, "start.html", None, 403, by_name=False, used=True)
    signed_in(request, session)
    return RedirectResponse("/", 303)


async def preferences(request: Request) -> Response:
    """Language and theme, kept in the session."""
    fields = await form(request)
    if fields.get("language") in LANGUAGES:
        request.session["language"] = fields["language"]
    if fields.get("theme") in THEMES:
        request.session["theme"] = fields["theme"]
    back = fields.get("back", "/")
    return RedirectResponse(back if back.startswith("/") and not back.startswith(("//", "/\\")) else "/", 303)


@needs(schema.LABELER)
def guidelines(request: Request, who: Person) -> Response:
    return render(
        request, "guidelines.html", who, page="guidelines", guidelines=request.app.state.store.guidelines(),
        unread=unread_guidelines(request, who), blocks=overview.guideline_blocks(request),
    )  # fmt: skip


async def acknowledge(request: Request) -> Response:
    fields = await form(request)
    return await run_in_threadpool(_acknowledge, request, fields.get("version", ""))


def _acknowledge(request: Request, version: str) -> Response:
    who, latest = person(request), request.app.state.store.guidelines()
    if who is None:
        raise HTTPException(403, "sign in first")
    if latest is None or version != str(latest[0]):
        raise HTTPException(409, "there are newer guidelines; read them first")
    request.app.state.store.acknowledge(who.id, latest[0])
    return RedirectResponse("/", 303)
