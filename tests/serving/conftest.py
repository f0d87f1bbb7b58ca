"""A server of the app over a small store, on loopback, and a client that keeps its cookies as a browser does."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import pytest
import uvicorn

from rlhf_kit.data.labels.store import Answer, Store, open_store
from rlhf_kit.feedback.assignment import Policy, set_policy
from rlhf_kit.serving.access import add_link
from rlhf_kit.serving.app import make_app


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    text: str


@dataclass
class Client:
    """One person's browser. `host`: as it is written in the address."""

    port: int
    host: str = ""
    cookies: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.host = self.host or f"127.0.0.1:{self.port}"

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        own = {"Host": self.host, "Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        own |= {"Origin": f"http://{self.host}"} if method == "POST" else {}
        connection.request(method, path, body, own | (headers or {}))
        answer = connection.getresponse()
        reply = Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, "")
        reply.text = answer.read().decode()
        for name, value in re.findall(r"(\w+)=([^;]*)", reply.headers.get("set-cookie", ""))[:1]:
            self.cookies[name] = value
        connection.close()
        return reply

    def get(self, path: str, **headers: str) -> Reply:
        return self.send("GET", path, headers=headers)

    def token(self) -> str:
        """Of the session, as its pages have it."""
        if "session" not in self.cookies:
            self.get("/sign-in")
        return json.loads(base64.b64decode(self.cookies["session"].partition(".")[0]))["csrf"]

    def form(self, path: str, **fields: str) -> Reply:
        body = urlencode({"csrf": self.token(), **fields}).encode()
        return self.send("POST", path, body, {"Content-Type": "application/x-www-form-urlencoded"})

    def json(self, path: str, value: object, **headers: str) -> Reply:
        own = {"Content-Type": "application/json", "X-CSRF-Token": self.token()} | headers
        return self.send("POST", path, json.dumps(value).encode(), own)

    def sign_in(self, name: str) -> Client:
        assert self.form("/sign-in", name=name).status == 303
        return self

    def join(self, link: str) -> Reply:
        return self.form("/join", link=link)

    def decision(self, kind: str = "ranked", page: str = "/rank", **more: object) -> dict:
        """What the page at `page` would send: the answers in the order they are shown."""
        return self.decision_of(self.get(page).text, kind, **more)

    @staticmethod
    def decision_of(text: str, kind: str = "ranked", **more: object) -> dict:
        answers = re.findall(r'data-answer="(\d+)"', text)
        ranks = {answer: rank for rank, answer in enumerate(answers, start=1)}
        content = {"ranked": {"ranks": ranks}, "thumb": {"label": True}}.get(kind, {})
        uid, assignment = re.search(r'data-uid="([^"]+)" data-assignment="(\d+)"', text).groups()
        return {"uid": uid, "assignment": int(assignment), "kind": kind, "content": content, "seconds": 3, **more}


@dataclass
class Site:
    """A server that runs, and its store."""

    store: Store
    port: int
    app: object

    def client(self, **options) -> Client:
        return Client(self.port, **options)

    def labeler(self, name: str) -> Client:
        return self.client().sign_in(name)

    def admin(self) -> Client:
        client = self.client()
        assert client.join(add_link(self.store, self.store.add_labeler("admin", "admin"))).status == 303
        return client


HOSTILE = (
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'><svg onload='window.hacked = 1'></svg>",
    "[a link](javascript:window.hacked=1) <a href='javascript:window.hacked=1'>b</a> ${window.hacked=1} {{7*7}}",
    "\u202eevil txet\u202c \u2066isolated\u2069 \x1b[31mred\x07",
    "مرحبا بالعالم, this goes the other way",
    '" onmouseover="window.hacked=1" data-x="',
)


def filled(store: Store, lists: int = 12, thumbs: int = 4) -> Store:
    for at in range(lists):
        texts = [HOSTILE[(at + k) % len(HOSTILE)] + f" {k}" for k in range(4)]
        answers = [Answer(text, [{"model": f"secret-model-{k}"}]) for k, text in enumerate(texts)]
        store.add_task("ranking", [{"role": "user", "content": f"Question {at}? <b>bold</b>"}], answers)
    for at in range(thumbs):
        store.add_task("thumbs", f"Good {at}?", [Answer(f"Answer {at} <script>window.hacked=1</script>")])
    set_policy(store, Policy(overlap=0, gold=0, repeats=0))
    return store


def served(store: Store, by_name: bool = True, reveal_truth: bool = False, hosts=(), **options) -> Iterator[Site]:
    """`hosts`: that are answered beside loopback's."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    port = listening.getsockname()[1]
    app = make_app(store, [f"127.0.0.1:{port}", f"localhost:{port}", *hosts], by_name, reveal_truth, **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield Site(store, port, app)
    server.should_exit = True
    thread.join(10)


SIZES = {"desktop": {"width": 1200, "height": 900}, "phone": {"width": 390, "height": 780}}


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: no browser test ran")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium here: no browser test was run")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium):
    """A function that opens a page of a site; in the end no script failed and none of a model's ran."""
    pages, faults = [], []

    def opened(at: Site, path: str = "/", size: str = "desktop", **options):
        page = chromium.new_context(viewport=SIZES[size], has_touch=size == "phone", **options).new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on("request", lambda one: faults.append(one.url) if f":{at.port}/" not in one.url else None)
        page.goto(f"http://127.0.0.1:{at.port}{path}")
        pages.append(page)
        return page

    opened.faults = faults
    yield opened
    for page in pages:
        assert page.evaluate("window.hacked") is None
        page.context.close()
    assert faults == []


def picture(page, name: str, full: bool = False) -> None:
    """Kept where SCREENS says, for the documents."""
    if "SCREENS" in os.environ:
        page.screenshot(path=Path(os.environ["SCREENS"]) / f"{name}.png", full_page=full)


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    yield from served(filled(open_store(tmp_path / "labels.db", create=True)))


@pytest.fixture
def closed_site(tmp_path) -> Iterator[Site]:
    """One that takes links alone."""
    yield from served(filled(open_store(tmp_path / "labels.db", create=True)), by_name=False)
