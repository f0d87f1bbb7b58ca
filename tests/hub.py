"""A hub on loopback: repositories in memory, behind the endpoints that huggingface_hub and datasets ask.

It keeps branches and commits, large files beside small ones, gates, and fails where a test wants it to. `Commands`
runs ours against it as a user does who sets HF_ENDPOINT: in a process whose environment says so from the start.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"
LARGE = (".safetensors", ".bin", ".parquet", ".pt")  # kept as LFS does
Files = dict[str, bytes]
PRELOADS = ("stages.sft", "stages.reward", "stages.ppo", "eval.text.perplexity", "eval.reward.task")
PRELOADS += ("models.revisions",)


@dataclass
class Repo:
    """Commits by their hash, and what the branches and tags stand for. A gated one gives its files to nobody."""

    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, files: Files, *names: str) -> str:
        """Put a new commit at these branches and tags; returns its hash."""
        digest = hashlib.sha1(f"{len(self.commits)} {names}".encode())
        for name in sorted(files):
            digest.update(name.encode() + files[name])
        self.commits[digest.hexdigest()] = dict(files)
        self.refs |= dict.fromkeys(names, digest.hexdigest())
        return digest.hexdigest()

    def at(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


class Hub(ThreadingHTTPServer):
    """The server. Use it as a context.

    `repos`: by kind and name, such as ("models", "tiny/gpt2"). `moved`: the new names of models, to which it sends on.
    `faults`: by a part of a request's path the status to answer, "page" for one of HTML, or "cut" to break off in the
    middle of a file. `asked`: every request, as "GET /api/models/tiny/gpt2".
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.moved: dict[str, str] = {}
        self.large: dict[str, bytes] = {}
        self.faults: dict[str, int | str] = {}
        self.asked: list[str] = []
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.shutdown()
        self.server_close()

    def add(self, name: str, files: Files | Path, *refs: str, kind: str = "models") -> str:
        """A commit of these files, or of a folder's, at these branches (`main` without any); returns its hash."""
        if isinstance(files, Path):
            found = (path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in found}
        return self.repos.setdefault((kind, name), Repo()).commit(files, *(refs or ("main",)))

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no fault of the server's."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None: ...

    def answer(self) -> None:
        """Any request: a fault that is asked for, else what the first part of the path names."""
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            self.server.asked.append(f"{self.command} {path}")
        fault = next((fault for part, fault in self.server.faults.items() if part in path), None)
        self.cut = fault == "cut"
        if isinstance(fault, int):
            return self.tell({"error": "as the test asks"}, fault)
        if fault == "page":
            return self.send(b"<html>Log in</html>", headers={"Content-Type": "text/html"})
        for old, new in self.server.moved.items():
            if f"{path}/".startswith((f"/{old}/resolve/", f"/api/models/{old}/")):
                return self.send(b"", 307, {"Location": self.path.replace(f"/{old}", f"/{new}", 1)})
        parts = path.strip("/").split("/")
        if parts[0] == "lfs":
            self.server.large[parts[1]] = self.body
            return self.send(b"")
        if parts[0] == "api":
            return self.api(parts[1:])
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch()
        kind = parts.pop(0) if parts[0] == "datasets" else "models"
        if "resolve" not in parts:
            return self.tell({"error": "no such page"}, 404)
        at = parts.index("resolve")
        return self.resolve(kind, "/".join(parts[:at]), parts[at + 1 :])

    do_GET = do_HEAD = do_POST = do_PUT = answer

    # --- answers ----------------------------------------------------------------------------------------------------

    def tell(self, value: object, status: int = 200, **headers: str) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})

    def refuse(self, status: int, code: str) -> None:
        self.tell({"error": code}, status, **{"X-Error-Code": code, "X-Error-Message": code})

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        resumes = "Content-Range" in (headers or {})
        self.wfile.write(content[: 0 if resumes else len(content) // 2] if self.cut else content)
        if self.cut:
            self.close_connection = True

    def allowed(self, repo: Repo | None) -> bool:
        """Whether a repository is there for the one who asks; else he is told."""
        token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None:
            self.refuse(404 if token else 401, "RepoNotFound")
        elif repo.gated:
            self.refuse(403 if token else 401, "GatedRepo")
        return repo is not None and not repo.gated

    # --- reading ----------------------------------------------------------------------------------------------------

    def resolve(self, kind: str, name: str, place: list[str]) -> None:
        """A file: /owner/name/resolve/revision/path."""
        repo = self.server.repos.get((kind, name))
        if not self.allowed(repo):
            return
        commit, path = self.split(repo, place)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        content, known = repo.commits[commit].get(path), {"X-Repo-Commit": commit}
        if content is None:
            return self.tell({"error": "no such file"}, 404, **{"X-Error-Code": "EntryNotFound", **known})
        known |= {"ETag": f'"{_oid(path, content)}"', "Accept-Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            known["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send(content[start:], 206 if start else 200, known)

    @staticmethod
    def split(repo: Repo, place: list[str]) -> tuple[str | None, str]:
        """(commit, rest) of "revision/rest", where a revision may hold slashes."""
        for count in range(1, len(place) + 1):
            commit = repo.at("/".join(place[:count]))
            if commit is not None:
                return commit, "/".join(place[count:])
        return None, ""

    def api(self, parts: list[str]) -> None:
        if parts == ["whoami-v2"]:
            return self.tell({"type": "user", "name": "tester", "fullname": "A test", "orgs": [], "auth": {}})
        if parts == ["validate-yaml"]:
            return self.tell({"errors": [], "warnings": []})
        if parts == ["repos", "create"]:
            return self.create()
        if parts[0] not in ("models", "datasets") or len(parts) < 2:
            return self.tell({"error": "no such endpoint"}, 404)
        kind, verbs = parts[0], ("revision", "tree", "paths-info", "preupload", "commit")
        at = next((at for at, part in enumerate(parts) if at > 1 and part in verbs), len(parts))
        name, verb, place = "/".join(parts[1:at]), "".join(parts[at : at + 1]), parts[at + 1 :]
        repo = self.server.repos.get((kind, name))
        if verb in ("preupload", "commit") and repo is not None:
            return getattr(self, verb)(repo, name, "/".join(place))
        if repo is None or (repo.gated and verb == "tree"):
            self.allowed(repo)
            return None
        commit, inside = self.split(repo, place) if place else (repo.at("main"), "")
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        files = repo.commits[commit]
        if verb == "tree":
            return self.tell(list(_entries(files, inside, "recursive=1" in self.path.lower().replace("true", "1"))))
        if verb == "paths-info":
            asked = json.loads(self.body)["paths"] if self.body[:1] == b"{" else _form(self.body)
            found = {entry["path"]: entry for entry in _entries(files, "", True)}
            return self.tell([found[path] for path in asked if path in found])
        siblings = [{"rfilename": path} for path in files]
        gate = "manual" if repo.gated else False
        told = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False, "gated": gate}
        return self.tell(told | {"tags": [], "downloads": 0, "likes": 0, "disabled": False})

    # --- writing ----------------------------------------------------------------------------------------------------

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        kind, prefix = ("datasets", "datasets/") if asked.get("type") == "dataset" else ("models", "")
        if (kind, name) in self.server.repos:
            return self.tell({"error": "exists", "url": f"{self.server.address}/{prefix}{name}"}, 409)
        self.server.add(name, {".gitattributes": b""}, kind=kind)
        return self.tell({"url": f"{self.server.address}/{prefix}{name}"})

    def preupload(self, repo: Repo, name: str, revision: str) -> None:
        files = json.loads(self.body)["files"]
        modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in files}
        told = [{"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None} for path, mode in modes.items()]
        self.tell({"files": told})

    def batch(self) -> None:
        objects = [
            {**one, "authenticated": True, "actions": {"upload": {"href": f"{self.server.address}/lfs/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self.tell({"transfer": "basic", "objects": objects})

    def commit(self, repo: Repo, name: str, revision: str) -> None:
        files = dict(repo.commits[repo.at(revision)])
        for line in self.body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif row["key"] == "deletedFile":
                files.pop(value["path"], None)
        commit = repo.commit(files, revision)
        told = {"success": True, "commitOid": commit, "commitUrl": f"{self.server.address}/{name}/commit/{commit}"}
        self.tell(told | {"hookOutput": ""})


def _oid(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else hashlib.sha1(content).hexdigest()


def _entries(files: Files, inside: str, recursive: bool):
    """The tree below a folder, as the hub tells it."""
    prefix, folders = f"{inside}/" if inside else "", set()
    for path, content in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        folder, slash, _ = path.removeprefix(prefix).partition("/")
        if slash and folder not in folders:
            folders.add(folder)
            oid = hashlib.sha1(folder.encode()).hexdigest()
            yield {"type": "directory", "oid": oid, "path": prefix + folder, "size": 0}
        if slash and not recursive:
            continue
        entry = {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "path": path, "size": len(content)}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 134}
        yield entry


def _form(body: bytes) -> list[str]:
    """The paths of a form, `paths=a&paths=b`."""
    pairs = (pair.partition("=") for pair in body.decode().split("&"))
    return [unquote(value.replace("+", " ")) for name, _, value in pairs if name == "paths"]


# --- commands that ask it -------------------------------------------------------------------------------------------


@dataclass
class Ended:
    status: int
    said: str  # stdout and stderr together


class Commands:
    """`rlhf-kit ...` in forks of a process that was started with the hub's address in its environment.

    Args:
        home: for the hub's cache, and the current folder of the commands.
        preloads: modules that the commands import.
        more: further variables of the environment.
    """

    def __init__(self, address: str, home: Path, preloads: Sequence[str] = PRELOADS, **more: str):
        removed = ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_OFFLINE")
        environment = {name: value for name, value in os.environ.items() if name not in removed}
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment |= {
            "HF_ENDPOINT": address,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "NO_PROXY": "*",
        }
        self.home, self.count, self.environment = home, 0, environment | more
        home.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub_commands", *preloads], cwd=home, env=self.environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, *argv: str, timeout: float = 120, **more: str) -> Ended:
        """Run one command, with `more` in its environment (of what is read when it runs)."""
        self.count += 1
        log = self.home / f"said-{self.count}.log"
        self.process.stdin.write(json.dumps({"argv": [*map(str, argv)], "log": str(log), "environment": more}) + "\n")
        self.process.stdin.flush()
        status = self.process.stdout.readline()
        assert status, f"the process that runs the commands has ended: {log}"
        return Ended(int(status), log.read_text(encoding="utf-8", errors="replace"))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()
