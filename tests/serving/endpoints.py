"""An endpoint on loopback, over two tiny models, and what tests ask of it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from rlhf_kit.chat.speakers import Speakers
from rlhf_kit.data.chat import set_chat_template
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.serving.access import listen, names_of
from rlhf_kit.serving.endpoint.api import served
from rlhf_kit.serving.endpoint.serve import Server


class Endpoint:
    def __init__(self, speakers: Speakers, port: int, key: str | None):
        self.speakers, self.port, self.key = speakers, port, key

    def engine(self, name: str = "base"):
        return self.speakers[name].engine

    def send(self, path: str, body: Any = None, method: str = "", **headers: str) -> tuple[int, dict, Any]:
        """(status, headers, JSON or text)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method or ("GET" if raw is None else "POST"), path, raw, headers)
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        kind = reply.headers.get("content-type", "")
        return reply.status, dict(reply.headers), json.loads(text) if kind == "application/json" else text

    def complete(self, prompt: Any = "the cat", model: str = "base", **more: Any) -> dict:
        status, _, value = self.send("/v1/completions", {"model": model, "prompt": prompt, **more})
        assert status == 200, value
        return value

    def chat(self, *contents: Any, model: str = "sft", **more: Any) -> dict:
        turns = [{"role": "user", "content": content} for content in contents]
        status, _, value = self.send("/v1/chat/completions", {"model": model, "messages": turns, **more})
        assert status == 200, value
        return value


def saved_models(policy, tokenizer_folder, place) -> dict[str, Any]:
    """A model with a chat template, and one without."""
    for name in ("base", "sft"):
        policy.save_pretrained(place / name)
        tokenizer = load_tokenizer(tokenizer_folder)
        (set_chat_template(tokenizer) if name == "sft" else tokenizer).save_pretrained(place / name)
    return {"base": place / "base", "sft": place / "sft"}


@contextmanager
def running(places: dict[str, Any], key: str | None = None, **options: Any) -> Iterator[Endpoint]:
    speakers = Speakers(places, **options)
    with answering(lambda hosts: (served(speakers, hosts, key), speakers)) as endpoint:
        endpoint.key = key
        yield endpoint


@contextmanager
def answering(make: Callable[[list[str]], tuple[ASGIApp, Speakers]]) -> Iterator[Endpoint]:
    """What `make` makes of the names of a server on loopback, at work there."""
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    app, speakers = make(names_of("127.0.0.1", port))
    server = Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"), speakers)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield Endpoint(speakers, port, None)
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
        assert not thread.is_alive()
