"""What a page sends is kept as it was meant: once, whole, with who, when and under which guidelines."""

import json
import re
import threading

import pytest
from sqlalchemy import event

from rlhf_kit.data.labels.store import Answer
from rlhf_kit.feedback.assignment import Policy
from rlhf_kit.serving.labelling import SHOWN


def shown(page: str) -> list[str]:
    return re.findall(r'data-answer="(\d+)"', page)


def test_a_ranking_is_kept_with_all_that_was_said(site):
    site.store.add_guidelines("# Be true")
    amy = site.labeler("amy")
    assert amy.get("/rank").headers["location"] == "/guidelines"
    assert amy.form("/guidelines", version="2").status == 409
    assert amy.form("/guidelines", version="1").status == 303
    decision = amy.decision()
    one, *others = decision["content"]["ranks"]
    decision["content"] |= {"ratings": {one: 7}, "flags": {one: ["opinion"]}, "comment": "fine <b>"}
    reply = amy.json("/decisions", decision)
    assert (reply.status, json.loads(reply.text)) == (200, {"kept": True, "new": True, "truth": None})
    (kept,) = site.store.decisions()
    assert kept.content == decision["content"] and kept.guideline == 1 and kept.interface == "web"
    assert 2.9 < kept.submitted - kept.opened < 3.1
    assert [str(number) for number in kept.presented] == [one, *others]


def test_a_double_click_is_one_decision(site):
    amy = site.labeler("amy")
    decision, replies = amy.decision(), []
    threads = [threading.Thread(target=lambda: replies.append(amy.json("/decisions", decision))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.status for reply in replies] == [200] * 8
    assert sum(json.loads(reply.text)["new"] for reply in replies) == 1 and len(site.store.decisions()) == 1


def test_two_labelers_at_once_are_given_different_tasks(site):
    people = [site.labeler(f"labeler {at}") for at in range(6)]
    given = []
    threads = [threading.Thread(target=lambda who=who: given.append(who.decision()["assignment"])) for who in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tasks = {site.store.task(task).id for task in {assignment_task(site, number) for number in given}}
    assert len(tasks) == 6


def assignment_task(site, number: int) -> int:
    with site.store.reading() as connection:
        return connection.exec_driver_sql("SELECT task FROM assignments WHERE id = ?", (number,)).scalar()


def test_a_decision_can_be_revised_and_is_shown_as_it_was(site):
    amy = site.labeler("amy")
    decision = amy.decision()
    amy.json("/decisions", decision)
    assert amy.get("/previous/rank").headers["location"] == f"/rank/{decision['assignment']}"
    page = amy.get(f"/rank/{decision['assignment']}").text
    assert shown(page) == list(decision["content"]["ranks"]) and 'data-again="1"' in page
    again = amy.decision(page=f"/rank/{decision['assignment']}")
    turned = {answer: 5 - rank for answer, rank in decision["content"]["ranks"].items()}
    amy.json("/decisions", again | {"content": {"ranks": turned}})
    (kept,) = site.store.decisions()
    assert kept.content["ranks"] == turned


@pytest.mark.parametrize("kind", ["skipped", "unrankable"])
def test_what_cannot_be_ranked_is_left_and_the_next_one_comes(site, kind):
    amy = site.labeler("amy")
    first = amy.decision(kind)
    assert amy.json("/decisions", first).status == 200
    assert amy.decision()["assignment"] != first["assignment"]


def test_thumbs_are_kept(site):
    amy = site.labeler("amy")
    for label in (True, False):
        decision = amy.decision("thumb", "/thumbs") | {"content": {"label": label}}
        assert amy.json("/decisions", decision).status == 200
    assert [each.content["label"] for each in site.store.decisions("thumbs")] == [True, False]


def test_an_example_is_explained_and_a_task_with_known_answers_is_like_any_other(site):
    site.app.state.policy = Policy(overlap=0, gold=0.9, repeats=0)
    for mode in ("gold", "example"):
        site.store.add_task("ranking", f"{mode}?", [Answer("p"), Answer("q")], mode, [2, 1], f"{mode} is short")
    amy = site.labeler("amy")
    example = amy.get("/rank").text
    assert "example?" in example and "data-gold" in example and "example is short" in example
    amy.json("/decisions", amy.decision_of(example))
    pages = []
    while "gold?" not in (page := amy.get("/rank").text):
        pages.append(page)
        amy.json("/decisions", amy.decision_of(page))
    assert not any("data-gold" in one or "is short" in one for one in (page, *pages))


def test_after_the_last_task_comes_thanks(site):
    amy = site.labeler("amy")
    for _ in range(4):
        amy.json("/decisions", amy.decision("thumb", "/thumbs"))
    assert "Nothing is left" in amy.get("/thumbs").text


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"kind": "acknowledged"}, 400, "must be one of ranked"),
        ({"kind": None}, 400, "must be one of"),
        ({"uid": "short"}, 400, "needed"),
        ({"uid": 12345678}, 400, "needed"),
        ({"assignment": "1"}, 400, "needed"),
        ({"assignment": True}, 400, "needed"),
        ({"assignment": 999}, 409, "not given to this labeler"),
        ({"content": []}, 409, "one for each answer"),
        ({"content": {"ranks": {}}}, 409, "one for each answer"),
    ],
)
def test_what_no_page_sends_is_refused(site, change, status, message):
    amy = site.labeler("amy")
    reply = amy.json("/decisions", amy.decision() | change)
    assert reply.status == status and message in reply.text and not site.store.decisions()


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff\xfe", b'"text"', b"1e999"])
def test_what_is_no_decision_is_refused(site, body):
    amy = site.labeler("amy")
    own = {"Content-Type": "application/json", "X-CSRF-Token": amy.token()}
    assert amy.send("POST", "/decisions", body, own).status == 400


@pytest.mark.parametrize("seconds", [-5, "long", None, 1e9, True])
def test_a_time_that_cannot_be_is_bounded(site, seconds):
    amy = site.labeler("amy")
    assert amy.json("/decisions", amy.decision(seconds=seconds)).status == 200
    (kept,) = site.store.decisions()
    assert 0 <= kept.submitted - kept.opened <= 86_401


def test_no_text_of_a_model_is_markup(site):
    amy = site.labeler("amy")
    for page in ("/rank", "/thumbs"):
        text = amy.get(page).text
        own = re.sub(r'<script src="/static/\w+\.js" defer></script>', "", text)
        assert (
            "<script" not in own
            and "<img" not in own
            and "onerror=" not in re.sub("&#39;|&lt;[^;]*", "", own).split("main")[0]
        )
        assert "&lt;" in text and "\u202e" not in text and "\x1b" not in text


def test_an_answer_of_a_megabyte_is_shown_in_part_and_whole_behind_a_link(site):
    long = "word " * 200_000
    task = site.store.add_task("ranking", "Long?", [Answer(long), Answer("short")])
    amy = site.labeler("amy")
    pages = []
    while "Nothing is left" not in (page := amy.get("/rank").text):
        pages.append(page)
        amy.json("/decisions", amy.decision())
    page = next(page for page in pages if "Long?" in page)
    (number,) = re.findall(r'href="/answers/(\d+)"', page)
    assert len(page) < SHOWN + 20_000 and task
    reply = amy.get(f"/answers/{number}")
    assert reply.text == long and reply.headers["content-type"].startswith("text/plain")


def test_guidelines_are_markdown_without_tags_or_scripts(site):
    site.store.add_guidelines("# Title\n\n<script>x</script> [a](javascript:x) [b](https://example.com) **bold**")
    text = site.labeler("amy").get("/guidelines").text
    assert "<h1>Title</h1>" in text and "<strong>bold</strong>" in text and 'href="https://example.com"' in text
    assert "&lt;script&gt;x" in text and 'href="javascript' not in text


def test_a_new_version_of_the_guidelines_is_read_before_the_next_task(site):
    site.store.add_guidelines("one")
    amy = site.labeler("amy")
    amy.form("/guidelines", version="1")
    assert amy.get("/rank").status == 200
    site.store.add_guidelines("two")
    assert amy.get("/rank").headers["location"] == "/guidelines"


def test_the_first_page_is_small(site):
    amy = site.labeler("amy")
    sizes = {
        path: len(amy.get(path).text.encode())
        for path in ("/rank", "/static/style.css", "/static/common.js", "/static/rank.js", "/static/icon.svg")
    }
    assert sum(sizes.values()) < 150_000, sizes


def test_nothing_is_asked_of_another_machine(site):
    amy = site.labeler("amy")
    for path in (
        "/rank",
        "/thumbs",
        "/progress",
        "/guidelines",
        "/static/style.css",
        "/static/rank.js",
        "/static/common.js",
    ):
        text = amy.get(path).text
        assert not re.findall(r"""(?:src|href|url\()=?["'(]?(?:https?:)?//""", text), path


def test_a_full_disk_loses_nothing_that_was_acknowledged(site):
    amy = site.labeler("amy")
    assert amy.json("/decisions", amy.decision()).status == 200
    decision = amy.decision()
    decision["content"]["comment"] = "x" * 9_000
    with site.store.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    most = [pages]

    def bounded(connection, _):
        connection.execute(f"PRAGMA max_page_count = {most[0]}")

    event.listen(site.store.engine, "connect", bounded)
    site.store.engine.dispose()
    reply = amy.json("/decisions", decision)
    assert reply.status == 503 and "full" in reply.text and len(site.store.decisions()) == 1
    most[0] = 1 << 30
    site.store.engine.dispose()
    assert amy.json("/decisions", decision).status == 200 and len(site.store.decisions()) == 2
