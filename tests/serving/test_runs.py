"""The Runs page: what it shows of a folder, what it sends again, and that no name or number is markup."""

import json
import re
from pathlib import Path

import pytest
from serving.conftest import HOSTILE, served
from stores import new_store
from test_doctor import logs, rising

from rlhf_kit.report.doctor import REMEDIES
from rlhf_kit.serving import runs, texts
from rlhf_kit.serving.access import HEADERS
from rlhf_kit.serving.folder import contents_of
from rlhf_kit.serving.next_words import WORDS


def put_run(folder: Path, rows: list[dict], record: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if record is not None:
        (folder / "run.json").write_text(json.dumps(record))
    return folder


HACKED = logs(rewards__truth=rising(0.5, 0.1))
WEIGHTS = {"stage": "ppo", "config": {"reward_weights": [1.0, 0.0]}}


@pytest.fixture
def top(tmp_path) -> Path:
    put_run(tmp_path / "top" / "ppo", HACKED, WEIGHTS)
    put_run(tmp_path / "top" / "sft", [{"step": step, "loss": 3 - step / 10} for step in range(1, 20)])
    return tmp_path / "top"


@pytest.fixture
def at(tmp_path, top):
    yield from served(new_store(tmp_path), contents=contents_of(top))


def ask(client, path: str, seen: str = "") -> dict:
    return json.loads(client.get(f"{path}?seen={seen}").text)


def test_the_list_shows_each_run(at):
    page = at.client().get("/runs").text
    assert re.findall(r'href="/runs/(\w+)"', page) == ["ppo", "sft"]
    assert re.findall(r'class="state \w+">(\w+)<', page) == ["ended", "stopped"]
    assert re.search(r"loss</span> 1\.1", page) and re.search(r"reward</span> [\d.]+", page)


def test_a_run_that_begins_later_is_found(at, top):
    client = at.client()
    assert client.get("/runs/later").status == 404
    put_run(top / "later", [{"step": 1, "loss": 2.0}])
    assert 'href="/runs/later"' in ask(client, "/runs")["parts"]["list"] and client.get("/runs/later").status == 200


def test_a_run_shows_its_charts_and_what_the_doctor_sees(at):
    client = at.client()
    parts = ask(client, "/runs/ppo")["parts"]
    assert parts["curves"].count("<svg") >= 8 and REMEDIES["reward_hacking"].title in parts["findings"]
    assert "Raise --kl_coef or set --kl_target" in parts["findings"] and "serious" in parts["findings"]
    assert "style=" not in parts["curves"]  # which the page's own policy forbids
    client.form("/preferences", language="zh-Hant")
    findings = ask(client, "/runs/ppo")["parts"]["findings"]
    assert "獎勵作弊" in findings and "並改進獎勵模型" in findings and "Raise --kl_coef" not in findings


def test_only_what_has_changed_is_sent(at, top):
    client = at.client()
    first = ask(client, "/runs/sft")
    assert list(first["parts"]) == ["now", "fault", "findings", "curves"] and first["pause"] == runs.SELDOM
    again = ask(client, "/runs/sft", first["version"])
    assert again["version"] == first["version"] and list(again["parts"]) == ["now"]
    with (top / "sft" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "loss": 99.0}\n')
    third = ask(client, "/runs/sft", first["version"])
    assert "99" in third["parts"]["now"] and third["parts"]["curves"] != first["parts"]["curves"]
    put_run(top / "sft", [{"step": 1, "loss": 7.0}])  # begun anew
    assert "curves" in ask(client, "/runs/sft", third["version"])["parts"]


def test_a_long_run_is_drawn_anew_by_its_two_hundredth_part(tmp_path):
    followed = runs.Followed(put_run(tmp_path / "long", [{"step": step, "loss": 1.0} for step in range(1000)]))
    versions = []
    for step in range(1000, 1012):
        followed.draw("running")
        versions.append(followed.version)
        with (tmp_path / "long" / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": 1.0}) + "\n")
    assert [version.rpartition("-")[2] for version in dict.fromkeys(versions)] == ["1000", "1006"]
    followed.draw("ended")
    assert followed.version == "1-ended-1012"


def test_the_rows_of_runs_that_were_looked_at_long_ago_are_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "MOST_ROWS", 25)
    following = runs.Following()
    folders = [put_run(tmp_path / str(number), [{"step": step} for step in range(10)]) for number in range(4)]
    for folder in [*folders, folders[2]]:
        following.of(folder).draw("ended")
    assert [*following.runs] == [folders[3], folders[2]]


def test_a_broken_record_is_told_and_the_page_stays(at, top):
    (top / "ppo" / "run.json").write_text("[]")
    parts = ask(at.client(), "/runs/ppo")["parts"]
    assert "is not the record of a run" in parts["fault"] and "curves" not in parts
    (top / "ppo" / "run.json").unlink()
    assert ask(at.client(), "/runs/ppo")["parts"]["fault"] == ""


def test_numbers_that_are_none_are_told_and_drawn_around(at, top):
    rows = [row | ({"kl": None, "loss": None} if at > 20 else {}) for at, row in enumerate(HACKED)]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 999, "kl": NaN, "reward": -Infinity}\n'
    (top / "ppo" / "metrics.jsonl").write_text(text)
    parts = ask(at.client(), "/runs/ppo")["parts"]
    assert REMEDIES["not_a_number"].title in parts["findings"] and "nan" not in parts["curves"].lower()


def test_no_name_or_number_is_markup(at, top):
    names = [text.replace("/", "|") for text in HOSTILE]
    for name in names:
        rows = [row | {f"rewards/{name}": 1.0, "kl": row["kl"], "reward": name} for row in HACKED]
        put_run(top / name, rows, {"stage": name, "config": {}, "stopped": name})
    client = at.client()
    pages = [client.get("/runs").text]
    for address in re.findall(r'href="(/runs/[^"]+)"', pages[0]):
        reply = client.get(address)
        assert reply.status == 200 and reply.headers["content-security-policy"] == HEADERS["content-security-policy"]
        pages += [reply.text, *ask(client, address)["parts"].values()]
    assert len(pages) > 5 * len(names)
    for page in pages:
        page = re.sub(r'<script src="/static/\w+\.js" defer></script>', "", page)
        assert not re.search(r"<script|<img|<svg on|<a href=.javascript|\" onmouseover=", page)
        assert "\u202e" not in page and "\x1b" not in page


def test_the_style_of_the_charts_is_a_file(at):
    reply = at.client().get("/charts.css")
    assert reply.headers["content-type"].startswith("text/css") and ".blue{--c:var(--blue)}" in reply.text


def test_no_word_of_a_page_stands_for_two_things():
    """The pages' words are one table: a name that two of them had would show the other's text."""
    (table,) = re.findall(r"^TEXTS.*?^}", Path(texts.__file__).read_text(), re.MULTILINE | re.DOTALL)
    names = re.findall(r'^    "([^"]+)": \(', table, re.MULTILINE)
    assert len(names) > 50 and not WORDS.keys() & set(names)


def test_a_run_that_is_nowhere_is_not_found(at):
    for path in ("/runs/nothing", "/runs/../top", "/runs/", "/runs//etc", "/runs/ppo/checkpoint-1"):
        assert at.client().get(path).status == 404, path
