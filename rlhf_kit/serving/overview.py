"""What was done so far: one's own decisions, all labelers' agreement, the merged rankings, and the export."""

from __future__ import annotations

from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from rlhf_kit.data.labels import schema
from rlhf_kit.data.labels.export import FORMS, Files
from rlhf_kit.data.labels.reader import merged
from rlhf_kit.data.labels.store import Store
from rlhf_kit.data.messages import as_messages
from rlhf_kit.errors import UserError
from rlhf_kit.feedback.assignment import last_assignment
from rlhf_kit.references import imported
from rlhf_kit.serving.access import Person, needs
from rlhf_kit.serving.render import render

LAST = 20  # own decisions shown, and merged rankings
BEGINNING, ANSWER = 160, 400  # characters of a prompt in a list, and of an answer


def guideline_blocks(request: Request) -> Markup:
    """The guidelines' Markdown as HTML: tags in it are text, and its links are no scripts."""
    latest = request.app.state.store.guidelines()
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(latest[1])) if latest else Markup()


@needs(schema.LABELER)
def progress(request: Request, who: Person) -> Response:
    """One's own figures, for an admin everybody's."""
    store = request.app.state.store
    tasks, decisions = store.tasks(), store.decisions()
    own = [each for each in decisions if each.labeler == who.id]
    labelled = any(each.kind in (schema.RANKED, schema.THUMB) for each in decisions)
    # evalica and pandas are read when somebody looks, not before the first page
    agreement = "rlhf_kit.data.labels.agreement"
    own_agreement = imported(f"{agreement}:own_agreement", "feedback")(store, who.id) if labelled else None
    report = imported(f"{agreement}:report_of", "feedback")(store) if labelled and who.is_admin else None
    last = [
        {
            "assignment": each.assignment,
            "page": "thumbs" if tasks[each.task].kind == schema.THUMBS else "rank",
            "prompt": as_messages(tasks[each.task].prompt)[-1]["content"][:BEGINNING],
            "kind": each.kind,
        }
        for each in sorted(own, key=lambda each: -each.event)[:LAST]
    ]
    counts = [
        (number, name, sum(each.labeler == number for each in decisions))
        for number, (name, _) in store.labelers().items()
    ]
    return render(
        request, "progress.html", who, page="progress", last=last, report=report, own_agreement=own_agreement,
        counts=counts,
        tasks=len(tasks), decisions=len(decisions), forms=FORMS if who.is_admin else (),
        merged=_merged(store) if who.is_admin else [],
    )  # fmt: skip


def _merged(store: Store) -> list[tuple[str, list[tuple[int, str]]]]:
    """(prompt, answers with their ranks, best first) of the last lists: as much as a page has room for."""
    return [
        (
            as_messages(row["prompt"])[-1]["content"][:BEGINNING],
            sorted((rank, text[:ANSWER]) for rank, text in zip(row["ranks"], row["completions"], strict=True)),
        )
        for row in merged(store)[-LAST:]
    ]


@needs(schema.LABELER)
def previous(request: Request, who: Person) -> Response:
    """To the labeler's last decision of a kind of task."""
    kind = request.path_params["kind"]
    pages = {"rank": schema.RANKING, "thumbs": schema.THUMBS}
    if kind not in pages:
        raise HTTPException(404, "no such page")
    last = last_assignment(request.app.state.store, who.id, pages[kind])
    return RedirectResponse(f"/{kind}" if last is None else f"/{kind}/{last.id}", 303)


@needs(schema.ADMIN)
def export(request: Request, who: Person) -> Response:
    """A file of one form; `?anonymise=1` takes the names off."""
    form = request.path_params["form"]
    if form not in FORMS:
        raise HTTPException(404, f"no such form; there are {', '.join(FORMS)}")
    try:
        files = Files(request.app.state.store, anonymise=request.query_params.get("anonymise") == "1")
        text = files.lines(form)
    except UserError as error:
        raise HTTPException(409, str(error)) from None
    headers: dict[str, Any] = {"content-disposition": f'attachment; filename="{form}.jsonl"'}
    return Response(text, media_type="application/octet-stream", headers=headers)
