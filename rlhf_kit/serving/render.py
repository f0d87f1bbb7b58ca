"""A page from its template. Every value is escaped, and what would reorder or hide text is shown by its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse

from rlhf_kit import escaping
from rlhf_kit.serving.access import Person, token
from rlhf_kit.serving.texts import LANGUAGES, language_of, say_in

FOLDER = Path(__file__).parent


def shown(value: Any) -> Any:
    """Text with controls and bidirectional overrides by their numbers; anything else as it is."""
    return escaping.terminal(value) if isinstance(value, str) and not isinstance(value, Markup) else value


TEMPLATES = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    finalize=shown,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Page:
    """One of the navigation. `name`: of TEXTS, and of the page as its template is given it."""

    name: str
    address: str


def pages_for(app: Starlette, who: Person | None) -> list[Page]:
    """Those that there is something for, in their order; on this machine alone some for who is not signed in."""
    state, seen = app.state, who is not None or app.state.alone
    shown = {
        Page("next token", "/next"): seen and state.models,
        Page("chat", "/chat"): seen and state.models,
        Page("runs", "/runs"): seen and state.folder,
        Page("rank", "/rank"): who and state.kinds["ranking"],
        Page("thumbs", "/thumbs"): who and state.kinds["thumbs"],
        Page("progress", "/progress"): who,
        Page("guidelines", "/guidelines"): who,
    }
    return [page for page, there in shown.items() if there]


def render(request: Request, name: str, who: Person | None, status: int = 200, **values: Any) -> HTMLResponse:
    """The page in the session's language."""
    return HTMLResponse(TEMPLATES.get_template(name).render(context(request, who, values)), status)


def render_blocks(
    request: Request, name: str, who: Person | None, blocks: Sequence[str], **values: Any
) -> dict[str, str]:
    """Some blocks of a page, by name: what is put in the place of what it shows."""
    template = TEMPLATES.get_template(name)
    shared = template.new_context(context(request, who, values))
    return {block: "".join(template.blocks[block](shared)) for block in blocks}


def context(request: Request, who: Person | None, values: dict[str, Any]) -> dict[str, Any]:
    """What all templates have, with the values of one."""
    language = request.session.get("language")
    if language not in LANGUAGES:
        language = language_of(request.headers.get("accept-language", ""))
    return {
        "page": "",
        **values,
        "who": who,
        "t": say_in(language),
        "language": language,
        "languages": LANGUAGES,
        "theme": request.session.get("theme", "auto"),
        "csrf": token(request),
        "path": request.url.path,
        "pages": pages_for(request.app, who),
    }
