"""`rlhf-kit serve`: models behind OpenAI's API, on this machine, or with a key elsewhere."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Literal

import uvicorn
from starlette.concurrency import run_in_threadpool

from rlhf_kit.chat.speakers import Speakers
from rlhf_kit.errors import UserError
from rlhf_kit.generation.engine import SLOTS, WAITING
from rlhf_kit.generation.generators import check_generators
from rlhf_kit.models.revisions import named_models
from rlhf_kit.options import option
from rlhf_kit.processes import processes, quiet
from rlhf_kit.serving.access import is_loopback, listen, names_of
from rlhf_kit.serving.endpoint.api import served
from rlhf_kit.terminal import say

KEY = "RLHF_KIT_API_KEY"


@dataclass
class ServeOptions:
    models: list[str] = option(
        [], "NAME=M or M, folders or hub ids. 模型", positional="MODEL", required=True, whole=True
    )
    host: str = option("127.0.0.1", "Address to listen at. Any other than this machine's own needs a key. 位址")
    port: int = option(8000, "0 takes a free one. 連接埠")
    api_key: str | None = option(
        None, f"What a client must have; better in the environment, as {KEY}: a command line is seen by others. 金鑰"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "Type of the weights. 數值精度")
    slots: int = option(SLOTS, "Answers of a model that are drawn at once. 同時產生的回答數")
    max_waiting: int = option(WAITING, "Answers in line before a request is refused with 429. 排隊的上限")


def run(options: ServeOptions) -> None:
    """`rlhf-kit serve`. Raises UserError."""
    quiet()
    key = key_of(options)
    places = named_models(options)
    check_generators(places.values())
    listening = listen(options.host, options.port)
    port = listening.getsockname()[1]
    speakers = Speakers(places, options.dtype, processes().device, options.slots, len(places), options.max_waiting)
    for name in places:
        speakers[name]
    app = served(speakers, names_of(options.host, port), key)
    say(f"http://{names_of(options.host, port)[0]}/v1")
    for name, place in places.items():
        say(f"    {name} ({place})")
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=10, lifespan="off",
    )  # fmt: skip
    Server(config, speakers).run([listening])


def key_of(options: ServeOptions) -> str | None:
    """Raises UserError where one is needed and there is none."""
    key = options.api_key if options.api_key is not None else os.environ.get(KEY)
    if key is not None and (not key.strip() or not key.isascii()):
        raise UserError(f"--api_key (or {KEY}) is empty or not ASCII. Give a word that nobody guesses.")
    if key is None and not is_loopback(options.host):
        raise UserError(
            f"--host {options.host} can be reached from other machines; give a key that clients must have: {KEY}=KEY "
            "in the environment, or --api_key KEY. 對外開放時，請設定金鑰。"
        )
    return key


class Server(uvicorn.Server):
    """Ends what is at work before it waits for connections to close."""

    def __init__(self, config: uvicorn.Config, speakers: Speakers):
        super().__init__(config)
        self.speakers = speakers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await run_in_threadpool(self.speakers.close)
        await super().shutdown(sockets)
