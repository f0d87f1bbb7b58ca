"""`rlhf-kit ui` as a process: what it imports, who is let in, and what a missing extra is told by."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from serving.conftest import Client, filled
from sqlalchemy import text
from stores import new_store

from rlhf_kit.data.labels.store import Store
from rlhf_kit.errors import UserError
from rlhf_kit.serving.access import session_key
from rlhf_kit.serving.ui import UIOptions, links, names, run
from rlhf_kit.world import BASE

MODELS = {"torch", "transformers", "trl", "datasets", "pandas", "evalica"}  # slow, and of no use to who ranks


@pytest.fixture
def store(tmp_path) -> Store:
    return filled(new_store(tmp_path))


def test_lists_are_ranked_without_a_model_in_memory(store, tmp_path):
    """Ready in 0.9 s on a busy machine of two cores, and in many with torch."""
    command = [sys.executable, "-X", "importtime", "-m", "rlhf_kit", "ui", store.name, "--port", "0"]
    with open(tmp_path / "imports.txt", "w") as imports:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=imports, text=True)
        try:
            port = int(re.search(r":(\d+)/", server.stdout.readline())[1])
            amy = Client(port).sign_in("amy")
            assert amy.json("/decisions", amy.decision()).status == 200
            assert amy.json("/decisions", amy.decision("thumb", "/thumbs")).status == 200
        finally:
            server.kill()
            server.communicate()
    names = re.findall(r"\|\s*([\w.]+)$", (tmp_path / "imports.txt").read_text(), re.MULTILINE)
    roots = {name.partition(".")[0] for name in names}
    assert "starlette" in roots and not roots & MODELS


def test_loading_a_model_prints_no_bar(tmp_path):
    shutil.copytree(BASE, tmp_path / "runs" / "base")
    command = [sys.executable, "-m", "rlhf_kit", "ui", str(tmp_path / "runs"), "--port", "0"]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            client = Client(int(re.search(r":(\d+)/", server.stdout.readline())[1]))
            assert client.json("/next/look", {"model": "base", "text": "Lakeside", "at": 0}).status == 200
        finally:
            server.kill()
            server.communicate()
    assert (tmp_path / "log").read_text() == ""


def test_no_secret_and_no_label_reaches_a_log(store, tmp_path):
    """Neither where all goes well, nor where the database refuses a decision and the traceback is logged."""
    command = [sys.executable, "-m", "rlhf_kit", "ui", store.name, "--port", "0", "--labelers", "amy"]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            shown = [server.stdout.readline() for _ in range(4)]
            port, link = re.search(r":(\d+)/join/([\w-]+)", shown[2]).groups()
            amy = Client(port := int(port))
            assert amy.join(link).status == 303 and Client(port).join("a-guess").status == 403
            assert amy.json("/decisions", amy.decision()).status == 200
            with store.writing() as connection:
                refuse = "CREATE TRIGGER refuse BEFORE INSERT ON {} BEGIN SELECT RAISE(ABORT, 'no'); END"
                connection.execute(text(refuse.format("events")))
            decision = amy.decision()
            decision["content"]["comment"] = "a private comment"
            assert amy.json("/decisions", decision).status == 500
        finally:
            server.terminate()
            rest, _ = server.communicate()
    logged = (tmp_path / "log").read_text() + rest
    secrets = [link, "a-guess", amy.token(), amy.cookies["session"], "a private comment", session_key(store)]
    assert "Traceback" in logged and not [secret for secret in secrets if secret in logged]


def test_a_password_reaches_no_message():
    command = [sys.executable, "-m", "rlhf_kit", "ui", "postgresql://amy@127.0.0.1:1/labels", "--port", "0"]
    done = subprocess.run(command, env=os.environ | {"PGPASSWORD": "hunter2"}, capture_output=True, text=True)
    assert done.returncode == 2 and "cannot be used" in done.stderr and "hunter2" not in done.stdout + done.stderr


# --- extras ---------------------------------------------------------------------------------------------------------

HIDDEN = """
import sys
sys.modules[{package!r}] = None  # as if it were not installed
from rlhf_kit.cli import main
for command in {commands!r}:
    print(main(command), file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize(
    ("package", "extra", "commands"),
    [
        ("starlette", "ui", ["ui labels.db"]),
        ("uvicorn", "ui", ["ui labels.db"]),
        (
            "sqlalchemy",
            "feedback",
            [
                "label labels.db",
                f"collect --model {BASE} --prompts world:prompts --output_file labels.db",
                f"reward --model_name_or_path {BASE} --dataset_name labels.db --output_dir out",
                "convert labels.db out.jsonl",
                "convert in.jsonl labels.db --from ranked",
            ],
        ),
    ],
)
def test_a_command_whose_extra_is_missing_says_how_to_install_it(tmp_path, package, extra, commands):
    (tmp_path / "in.jsonl").write_text('{"prompt": "P", "completions": ["a", "b"], "ranks": [1, 2]}\n')
    program = HIDDEN.format(package=package, commands=[command.split() for command in commands])
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    messages = done.stderr.split("\n2\n")
    assert len(messages) == len(commands) + 1, done.stderr
    for command, message in zip(commands, messages, strict=False):
        said = " ".join(message.split())
        assert f"rlhf-kit {command.split()[0]}: This needs the package {package}" in said
        assert f'pip install "rlhf_kit[{extra}]"' in said and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


# --- who is let in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "lab.example", "::"])
def test_an_address_for_others_is_refused_without_named_labelers(store, host):
    with pytest.raises(UserError, match="name who may label: --labelers AMY BOB"):
        run(UIOptions(store.name, host=host))
    assert not store.labelers()


def test_a_port_that_is_taken_is_told(store):
    with pytest.raises(UserError, match="--port 70000.*Give another port, or 0"):
        run(UIOptions(store.name, port=70000))


def test_named_labelers_get_a_link_each_and_no_address_without_one(store):
    lines = links(store, ["amy", "bob"], "http://lab.example:80")
    made = [line for line in lines if line.startswith("http")]
    assert len(made) == 3 and all(re.fullmatch(r"http://lab\.example:80/join/[\w-]{32}", line) for line in made)
    assert list(store.labelers().values()) == [("admin", "admin"), ("amy", "labeler"), ("bob", "labeler")]
    assert "http://lab.example:80/" not in made and "http://lab.example:80/" in links(
        store, [], "http://lab.example:80"
    )


@pytest.mark.parametrize(
    ("host", "public", "expected"),
    [
        ("127.0.0.1", None, ["127.0.0.1:9", "localhost:9", "[::1]:9"]),
        ("::1", None, ["[::1]:9", "127.0.0.1:9", "localhost:9"]),
        ("192.168.1.2", None, ["192.168.1.2:9"]),
        ("0.0.0.0", "https://lab.example", ["0.0.0.0:9", "lab.example"]),
        ("0.0.0.0", "http://lab.example:80", ["0.0.0.0:9", "lab.example:80"]),
    ],
)
def test_the_names_that_are_answered(host, public, expected):
    assert names(UIOptions("labels.db", host=host, public_url=public), 9) == expected
