"""`rlhf-kit ui`: the pages over a store, on this machine, or for named labelers elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from rlhf_kit.data.labels import POSTGRESQL, schema
from rlhf_kit.data.labels.store import Store, open_store
from rlhf_kit.errors import UserError
from rlhf_kit.inputs import missing, read_text
from rlhf_kit.options import option
from rlhf_kit.references import imported
from rlhf_kit.serving.access import add_link, is_loopback, listen, names_of
from rlhf_kit.serving.app import make_app
from rlhf_kit.serving.folder import NOTHING, Contents, contents_of, refuse_empty, store_in, with_models
from rlhf_kit.terminal import say

OWNER = "admin"


@dataclass
class UIOptions:
    dataset_name: str | None = option(
        None,
        "A folder of runs and models, whose labels are kept in labels.db; or a store: FILE.db, "
        "postgresql://USER@HOST/NAME. 訓練的資料夾，或標註資料庫",
        positional="FOLDER",
        required=True,
    )
    models: list[str] = option([], "More models: NAME=M or M, folders or hub ids. 其他模型", short="model", whole=True)
    host: str = option("127.0.0.1", "Address to listen at. Any other than this machine's own needs --labelers. 位址")
    port: int = option(7860, "0 takes a free one. 連接埠")
    labelers: list[str] = option([], "Names: each gets a link that signs in once. 標註者的名字", whole=True)
    public_url: str | None = option(
        None, "The address in browsers, such as https://lab.example of a proxy, if it is not --host. 對外的網址"
    )
    reveal_truth: bool = option(
        False, "After each ranking of the embedded world: how it compares with the truth. 排完後顯示與真相的差距"
    )
    guidelines: Path | None = option(None, "Markdown; a changed text is a new version, to be read again. 標註準則")


def run(options: UIOptions) -> None:
    """`rlhf-kit ui`. Raises UserError."""
    local = is_loopback(options.host)
    if not local and not options.labelers:
        raise UserError(
            f"--host {options.host} can be reached from other machines; name who may label: --labelers AMY BOB. Each "
            "gets a link that works once. 對外開放時，請用 --labelers 列出標註者。"
        )
    check_url(options.public_url)
    contents, store = opened(options)
    if options.guidelines is not None:
        store.add_guidelines(read_text(options.guidelines))
    listening = listen(options.host, options.port)
    port = listening.getsockname()[1]
    address = options.public_url or f"http://{names(options, port)[0]}"
    app = make_app(
        store,
        names(options, port),
        local and not options.labelers,
        options.reveal_truth,
        address.startswith("https:"),
        contents,
    )
    if contents.models:
        imported("rlhf_kit.processes:quiet")()
    for line in links(store, options.labelers, address, contents):
        say(line)
    config = uvicorn.Config(
        with_endpoint(app, names(options, port)),
        log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=10,  # an answer that is being written ends with the server
    )  # fmt: skip
    try:
        uvicorn.Server(config).run([listening])
    finally:
        if app.state.speakers is not None:
            app.state.speakers.close()


def with_endpoint(app: Starlette, hosts: Sequence[str]) -> ASGIApp:
    """`app`, and on this machine alone its models under /v1, as `rlhf-kit serve` answers there."""
    if not app.state.alone or app.state.speakers is None:
        return app
    endpoint = imported("rlhf_kit.serving.endpoint.api:served")(app.state.speakers, hosts)

    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        is_asked = scope["type"] == "http" and scope["path"].startswith("/v1/")
        await (endpoint if is_asked else app)(scope, receive, send)

    return both


def opened(options: UIOptions) -> tuple[Contents, Store]:
    """What there is to show, and where labels are kept: in a folder, from its first start on. Raises UserError."""
    source = Path(options.dataset_name)
    is_folder = source.is_dir()
    if not source.exists() and not source.suffix and not options.dataset_name.startswith(POSTGRESQL):
        raise missing(source)
    contents = contents_of(source) if is_folder else NOTHING
    contents = replace(contents, models=with_models(contents, options.models))
    if is_folder:
        refuse_empty(source, contents)
    return contents, open_store(store_in(source), create=True) if is_folder else open_store(options.dataset_name)


def names(options: UIOptions, port: int) -> list[str]:
    """What browsers write for this server: host and port, without the port where the scheme tells it."""
    public = [urlsplit(options.public_url).netloc] if options.public_url else []
    return list(dict.fromkeys([*names_of(options.host, port), *public]))


def check_url(url: str | None) -> None:
    """Raises UserError for what is no address of a server."""
    parts = urlsplit(url or "http://host")
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query or "@" in parts.netloc:
        raise UserError(f"--public_url {url!r} must be http://HOST, https://HOST or ...:PORT, with nothing after it.")


def links(store: Store, labelers: list[str], address: str, contents: Contents = NOTHING) -> list[str]:
    """A line for the owner, and one for each labeler: links that sign in once."""
    owner = add_link(store, store.add_labeler(OWNER, schema.ADMIN))
    lines = []
    if not labelers and contents != NOTHING:
        lines += [f"{address}/", "    models and runs; by name to label 模型與訓練；標註時用名字登入"]
    lines += [f"{address}/join/{owner}", "    for you, once: all progress, export 給你自己用，一次有效"]
    for name in labelers:
        lines.append(f"{address}/join/{add_link(store, store.add_labeler(name))}")
        lines.append(f"    for {name}, once 一次有效")
    if not labelers and contents == NOTHING:
        lines += [f"{address}/", "    for labelers on this machine, by name 本機標註者用名字登入"]
    return lines
