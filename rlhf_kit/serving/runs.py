"""The runs of a folder at a glance, and each with its charts and the doctor's findings, live while it trains.

A page is a shell; `static/runs.js` asks for its parts again and again, by `?seen=VERSION` of what it shows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rlhf_kit.errors import UserError
from rlhf_kit.pages import charts
from rlhf_kit.report.doctor import METRICS, REMEDIES, SERIOUS, Run, judge, read_record
from rlhf_kit.report.following import RUNNING, Glance, Log, glance
from rlhf_kit.report.page import curves
from rlhf_kit.report.symptoms import LEAST, Finding
from rlhf_kit.serving.access import Person, visible
from rlhf_kit.serving.folder import contents_of
from rlhf_kit.serving.render import render, render_blocks

MOST_ROWS = 200_000  # that are kept in memory, of the runs that were looked at last: 100,000 of PPO are 200 MB
RESOLUTION = 200  # a run is drawn anew when its rows are more by a 200th, which is as much as can be seen
OFTEN, SELDOM = 2, 10  # seconds between two questions of a page; what does not run may begin again
THEMES = (
    f".charts{{{charts.LIGHT}}}[data-theme=dark] .charts{{{charts.DARK}}}"
    f"@media(prefers-color-scheme:dark){{[data-theme=auto] .charts{{{charts.DARK}}}}}"
)


class Followed:
    """A run, and what is drawn of it."""

    def __init__(self, folder: Path):
        self.folder, self.log, self.lock = folder, Log(folder / METRICS), threading.Lock()
        self.version, self.rows_drawn = "", 0
        self.curves, self.findings, self.logs = "", list[Finding](), 0

    def draw(self, state: str) -> None:
        """Read what is new, and draw all of it where there is enough of it. Raises UserError."""
        with self.lock:
            self.log.read()
            rows = self.log.rows
            is_more = (len(rows) - self.rows_drawn) * RESOLUTION > self.rows_drawn
            if not is_more and self.version.startswith(f"{self.log.begun}-{state}-"):
                return
            run = Run(self.folder, rows, read_record(self.folder))
            self.curves = Markup(curves({self.folder.name: rows}, {}))  # escaped where it is drawn
            self.findings, self.logs = judge(run, run.held_out), len(run.logs)
            self.rows_drawn, self.version = len(rows), f"{self.log.begun}-{state}-{len(rows)}"


class Following:
    """The runs that are followed, the last that were looked at."""

    def __init__(self) -> None:
        self.runs: OrderedDict[Path, Followed] = OrderedDict()
        self.lock = threading.Lock()

    def of(self, folder: Path) -> Followed:
        with self.lock:
            followed = self.runs.pop(folder, None) or Followed(folder)
            self.runs[folder] = followed
            while len(self.runs) > 1 and sum(len(one.log.rows) for one in self.runs.values()) > MOST_ROWS:
                self.runs.popitem(last=False)
        return followed


@visible
def every(request: Request, who: Person | None) -> Response:
    """All runs, those that go on first."""
    glances = {name: glance(folder) for name, folder in _runs(request).items()}
    glances = dict(sorted(glances.items(), key=lambda item: item[1].state != RUNNING))
    if "seen" not in request.query_params:
        return render(request, "runs.html", who, page="runs", glances=glances)
    pause = OFTEN if any(one.state == RUNNING for one in glances.values()) else SELDOM
    parts = render_blocks(request, "runs.html", who, ["list"], glances=glances)
    return JSONResponse({"version": "", "pause": pause, "parts": parts})


@visible
def one(request: Request, who: Person | None) -> Response:
    name, state = request.path_params["run"], request.app.state
    folder = state.runs.get(name) or _runs(request).get(name)
    if folder is None or not folder.is_dir():
        raise HTTPException(404, "there is no such run")
    at_a_glance = glance(folder)
    values = {"run": name, "glance": at_a_glance}
    seen = request.query_params.get("seen")
    if seen is None:
        return render(request, "run.html", who, page="runs", **values)
    return JSONResponse(_parts(request, who, folder, seen, values))


def _parts(request: Request, who: Person | None, folder: Path, seen: str, values: dict) -> dict:
    """What has changed since `seen`; the line of last figures always."""
    at_a_glance: Glance = values["glance"]
    followed, blocks = request.app.state.following.of(folder), ["now"]
    try:
        followed.draw(at_a_glance.state)
    except UserError as error:
        values, blocks, version = values | {"fault": str(error)}, ["now", "fault"], seen
    else:
        version = followed.version
        blocks = ["now"] if seen == version else ["now", "fault", "findings", "curves"]
        values = values | {"followed": followed, "remedies": REMEDIES, "serious": SERIOUS, "least": LEAST}
    pause = OFTEN if at_a_glance.state == RUNNING else SELDOM
    return {"version": version, "pause": pause, "parts": render_blocks(request, "run.html", who, blocks, **values)}


def style(request: Request) -> Response:
    """The shapes and colours of the charts, in the themes of these pages."""
    return Response(THEMES + charts.SHAPES, media_type="text/css")


def _runs(request: Request) -> dict[str, Path]:
    """By name; those that have begun since are found too."""
    state = request.app.state
    if state.folder is not None:
        state.runs = contents_of(state.folder).runs
    return state.runs
