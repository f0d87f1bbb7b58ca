"""A page from its template. Every value is escaped, and what would reorder or hide text is shown by its number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
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


def render(request: Request, name: str, who: Person | None, status: int = 200, **values: Any) -> HTMLResponse:
    """The page in the session's language."""
    language = request.session.get("language")
    if language not in LANGUAGES:
        language = language_of(request.headers.get("accept-language", ""))
    html = TEMPLATES.get_template(name).render(
        **{"page": "", **values},
        who=who,
        t=say_in(language),
        language=language,
        languages=LANGUAGES,
        theme=request.session.get("theme", "auto"),
        csrf=token(request),
        path=request.url.path,
        has_thumbs=request.app.state.kinds["thumbs"],
        has_ranking=request.app.state.kinds["ranking"],
    )
    return HTMLResponse(html, status)
