"""The runs of a folder."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from rlhf_kit.serving.access import Person, visible
from rlhf_kit.serving.render import render


@visible
def runs(request: Request, who: Person | None) -> Response:
    return render(request, "runs.html", who, page="runs", names=list(request.app.state.runs))
