"""Who gets what: every route for every role, links, sessions, other origins and hosts, sizes, rates, headers."""

import base64
import json
import re
import socket
import sqlite3
import time

import pytest
from itsdangerous import TimestampSigner
from sqlalchemy import text

from rlhf_kit.data.labels.store import open_store
from rlhf_kit.errors import UserError
from rlhf_kit.serving.access import HEADERS, Limits, add_link, is_loopback, listen, session_key, use_link
from rlhf_kit.serving.ui import UIOptions, check_url, names, run

# route -> status for nobody, a labeler, an admin
JSON = ("/decisions", "/next/", "/chat/")  # what is posted there
ROUTES = {
    ("GET", "/"): (200, 303, 303),
    ("GET", "/sign-in"): (200, 200, 200),
    ("GET", "/runs"): (200, 200, 200),
    ("GET", "/next"): (404, 404, 404),
    ("GET", "/chat"): (404, 404, 404),
    ("GET", "/runs/nothing"): (404, 404, 404),
    ("GET", "/charts.css"): (200, 200, 200),
    ("GET", "/rank"): (303, 200, 200),
    ("GET", "/thumbs"): (303, 200, 200),
    ("GET", "/rank/999"): (303, 404, 404),
    ("GET", "/thumbs/999"): (303, 404, 404),
    ("GET", "/answers/999"): (303, 404, 404),
    ("GET", "/previous/rank"): (303, 303, 303),
    ("GET", "/progress"): (303, 200, 200),
    ("GET", "/guidelines"): (303, 200, 200),
    ("GET", "/export/ranked"): (303, 403, 409),
    ("GET", "/export/trl"): (303, 403, 409),
    ("GET", "/export/thumbs"): (303, 403, 409),
    ("GET", "/export/nothing"): (303, 403, 404),
    ("GET", "/join/anything"): (200, 200, 200),
    ("GET", "/static/rank.js"): (200, 200, 200),
    ("GET", "/static/../app.py"): (404, 404, 404),
    ("GET", "/nothing"): (404, 404, 404),
    ("POST", "/decisions"): (403, 400, 400),
    ("POST", "/next/look"): (404, 404, 404),
    ("POST", "/next/write"): (404, 404, 404),
    ("POST", "/next/change"): (404, 404, 404),
    ("POST", "/chat/answers"): (404, 404, 404),
    ("POST", "/chat/tasks"): (404, 404, 404),
    ("POST", "/guidelines"): (403, 409, 409),
    ("POST", "/preferences"): (303, 303, 303),
    ("POST", "/sign-in"): (400, 400, 400),
    ("POST", "/labelers/99/sign-out"): (403, 403, 303),
    ("POST", "/join"): (403, 403, 403),
    ("DELETE", "/rank"): (405, 405, 405),
    ("PUT", "/export/ranked"): (405, 405, 405),
    ("POST", "/sign-out"): (303, 303, 303),  # the last: it ends the session
}


@pytest.mark.parametrize(("role", "at"), [("nobody", 0), ("labeler", 1), ("admin", 2)])
def test_every_route_for_every_role(site, role, at):
    statuses = {}
    cookies = {"nobody": site.client, "labeler": lambda: site.labeler("amy"), "admin": site.admin}[role]().cookies
    for method, path in ROUTES:
        client = site.client(cookies=dict(cookies))
        if method == "POST":
            reply = client.json(path, {}) if path.startswith(JSON) else client.form(path)
        else:
            reply = client.send(method, path)
        statuses[method, path] = reply.status
    assert statuses == {route: of_roles[at] for route, of_roles in ROUTES.items()}


def test_the_table_has_every_route(site):
    patterns = {re.sub(r"\{[^}]*\}", "[^/]+", route.path) for route in site.app.routes}
    asked = {path for _, path in ROUTES}
    assert all(any(re.match(pattern, one) for one in asked) for pattern in patterns)


def test_who_is_not_signed_in_is_led_to_sign_in(site):
    assert site.client().get("/rank").headers["location"] == "/sign-in"


# --- one's own work -------------------------------------------------------------------------------------------------


def test_a_labeler_reaches_their_own_work_alone(site):
    amy, bob = site.labeler("amy"), site.labeler("bob")
    decision = amy.decision()
    assert amy.json("/decisions", decision).status == 200
    number = decision["assignment"]
    answer = next(iter(decision["content"]["ranks"]))
    assert (amy.get(f"/rank/{number}").status, bob.get(f"/rank/{number}").status) == (200, 404)
    assert (amy.get(f"/answers/{answer}").status, bob.get(f"/answers/{answer}").status) == (200, 404)
    reply = bob.json("/decisions", decision | {"uid": "another-uid"})
    assert reply.status == 409 and "not given to this labeler" in reply.text
    reply = bob.json("/decisions", decision)
    assert reply.status == 409 and "another labeler" in reply.text
    assert [each.labeler for each in site.store.decisions()] == [1]
    assert str(number) not in re.findall(r'href="/rank/(\d+)"', bob.get("/progress").text)


def test_sources_are_hidden_from_labelers(site):
    amy = site.labeler("amy")
    pages = [amy.get(path).text for path in ("/rank", "/thumbs", "/progress")]
    assert not any("secret-model" in page for page in pages)
    amy.json("/decisions", amy.decision())
    assert "secret-model" in site.admin().get("/progress").text


def test_an_admins_name_is_not_signed_in_by_name(site):
    site.admin()
    reply = site.client().form("/sign-in", name="admin")
    assert reply.status == 403 and "link" in reply.text


# --- links ----------------------------------------------------------------------------------------------------------


def test_a_link_works_once_and_looking_at_it_does_not_use_it(closed_site):
    store = closed_site.store
    link = add_link(store, store.add_labeler("amy"))
    client = closed_site.client()
    assert [client.get(f"/join/{link}").status for _ in range(3)] == [200] * 3
    assert client.join(link).status == 303 and client.get("/rank").status == 200
    other = closed_site.client()
    reply = other.join(link)
    assert reply.status == 403 and "used before" in reply.text and other.get("/rank").status == 303


def test_the_store_keeps_no_link_that_could_be_used(closed_site):
    link = add_link(closed_site.store, closed_site.store.add_labeler("amy"))
    with sqlite3.connect(closed_site.store.name) as connection:
        assert link not in "\n".join(connection.iterdump())


def test_a_link_expires(closed_site, monkeypatch):
    link = add_link(closed_site.store, closed_site.store.add_labeler("amy"))
    later = time.time() + 8 * 86_400
    monkeypatch.setattr("rlhf_kit.serving.access.time.time", lambda: later)
    assert use_link(closed_site.store, link) is None


def test_by_links_alone_a_name_is_not_enough(closed_site):
    assert "name=" not in re.sub(r'name="(csrf|back|language|theme|viewport)"', "", closed_site.client().get("/").text)
    assert closed_site.client().form("/sign-in", name="amy").status == 403


def test_guessing_links_is_slowed_down(closed_site):
    client = closed_site.client()
    closed_site.app.state.attempts = Limits(rate=0, burst=20)
    assert [client.join(f"guess {at}").status for at in range(25)] == [403] * 20 + [429] * 5


# --- requests of others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example", ""])
def test_another_host_is_not_answered(site, host):
    reply = site.client().get("/", Host=host)
    assert reply.status == 421 and "<" not in reply.text


def test_localhost_is_this_server(site):
    assert site.client(host=f"localhost:{site.port}").get("/").status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://127.0.0.1:1"])
def test_a_request_of_another_page_changes_nothing(site, origin):
    amy = site.labeler("amy")
    decision = amy.decision()
    assert amy.json("/decisions", decision, Origin=origin).status == 403
    assert not site.store.decisions()


@pytest.mark.parametrize("given", ["", "wrong", "é"])
def test_a_request_without_the_sessions_token_changes_nothing(site, given):
    amy = site.labeler("amy")
    decision = amy.decision()
    own = {"Content-Type": "application/json", "X-CSRF-Token": given.encode("latin-1").decode("latin-1")}
    assert amy.send("POST", "/decisions", json.dumps(decision).encode(), own).status == 403
    assert not site.store.decisions()
    before = amy.cookies["session"]
    reply = amy.send("POST", "/sign-out", b"csrf=wrong", {"Content-Type": "application/x-www-form-urlencoded"})
    assert reply.status == 403 and amy.get("/rank").status == 200 and before


def test_the_token_is_of_one_session(site):
    amy, bob = site.labeler("amy"), site.labeler("bob")
    assert amy.json("/decisions", amy.decision(), **{"X-CSRF-Token": bob.token()}).status == 403


@pytest.mark.parametrize("cookie", ["", "eyJsYWJlbGVyIjogMX0=.x.y", "x" * 5000])
def test_a_session_that_was_not_signed_here_is_none(site, cookie):
    site.labeler("amy")
    forger = site.client(cookies={"session": cookie})
    assert forger.get("/rank").status == 303


def test_a_session_outlives_the_server_and_not_its_labeler(site):
    amy = site.labeler("amy")
    assert open_store(site.store.name).labelers() == {1: ("amy", "labeler")}
    with site.store.writing() as connection:
        connection.execute(text("DELETE FROM links"))
        connection.execute(text("DELETE FROM labelers"))
    assert amy.get("/rank").status == 303


def test_signing_in_begins_a_session_of_its_own(site):
    """A token that somebody saw, or put there, before is of no use after."""
    client = site.client()
    client.form("/preferences", language="zh-Hant")
    before = client.token()
    client.sign_in("amy")
    decision = client.decision()
    assert client.json("/decisions", decision, **{"X-CSRF-Token": before}).status == 403
    assert client.token() != before and "排序" in client.get("/rank").text  # the language stays


def test_sign_out_ends_the_session(site):
    """Also for who has a copy of the cookie; another session of the same labeler stays."""
    amy, elsewhere = site.labeler("amy"), site.labeler("amy")
    copy = site.client(cookies=dict(amy.cookies))
    assert copy.get("/rank").status == 200
    amy.form("/sign-out")
    assert (amy.get("/rank").status, copy.get("/rank").status, elsewhere.get("/rank").status) == (303, 303, 200)


def test_the_admin_signs_a_labeler_out_everywhere(site):
    sessions = [site.labeler("amy") for _ in range(2)]
    bob, admin, unused = site.labeler("bob"), site.admin(), add_link(site.store, 1)
    assert "/labelers/1/sign-out" in admin.get("/progress").text
    assert "/labelers/1/sign-out" not in bob.get("/progress").text
    assert bob.form("/labelers/1/sign-out").status == 403
    assert [each.get("/rank").status for each in sessions] == [200, 200]
    assert admin.form("/labelers/1/sign-out").status == 303
    assert [each.get("/rank").status for each in (*sessions, bob)] == [303, 303, 200]
    assert site.client().join(unused).status == 403


def test_a_session_expires(site):
    amy = site.labeler("amy")
    for left, status in ((10, 200), (-1, 303)):
        with site.store.writing() as connection:
            connection.execute(text(f"UPDATE links SET expires = {time.time() + left}"))
        assert amy.get("/rank").status == status


def test_a_link_that_nobody_used_is_no_session(closed_site):
    """A cookie of the store's own key that names a link by its hash, before it was used."""
    store, client = closed_site.store, closed_site.client()
    add_link(store, store.add_labeler("amy"))
    with store.reading() as connection:
        hashed = connection.execute(text("SELECT hash FROM links")).scalar_one()
    signer = TimestampSigner(session_key(store))
    client.cookies["session"] = signer.sign(base64.b64encode(json.dumps({"link": hashed}).encode())).decode()
    assert client.get("/rank").status == 303
    with store.writing() as connection:
        connection.execute(text("UPDATE links SET used = 1"))
    assert client.get("/rank").status == 200


def test_preferences_lead_nowhere_else(site):
    amy = site.labeler("amy")
    for back in ("https://evil.example", "//evil.example", "/\\evil.example"):
        assert amy.form("/preferences", back=back, language="zh-Hant").headers["location"] == "/"
    assert amy.form("/preferences", back="/thumbs").headers["location"] == "/thumbs"
    assert "排序" in amy.get("/rank").text and "標註準則" in amy.get("/rank").text


@pytest.mark.parametrize("length", ["300000", "-1", "many"])
def test_a_large_request_is_refused_before_it_is_read(site, length):
    amy = site.labeler("amy")
    own = {"Content-Type": "application/json", "X-CSRF-Token": amy.token(), "Content-Length": length}
    assert amy.send("POST", "/decisions", b"{}", own).status in (400, 413)


def test_too_many_requests_of_one_session_wait(site):
    amy = site.labeler("amy")
    replies = [amy.get("/static/icon.svg") for _ in range(150)]
    assert 429 in {reply.status for reply in replies}
    assert next(reply for reply in replies if reply.status == 429).headers["retry-after"] == "1"
    assert site.client().get("/").status == 200


def test_limits_by_hand():
    now = [0.0]
    limits = Limits(rate=2, burst=3, most=2, clock=lambda: now[0])
    assert [limits.takes("amy") for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5  # one more
    assert [limits.takes("amy"), limits.takes("amy"), limits.takes("bob")] == [True, False, True]
    limits.takes("cat")  # of three senders the oldest is forgotten
    assert limits.takes("amy")


@pytest.mark.parametrize("path", ["/", "/rank", "/static/style.css", "/nothing", "/answers/1"])
def test_every_response_has_the_headers(site, path):
    headers = site.labeler("amy").get(path).headers
    assert {name: headers.get(name) for name in HEADERS} == HEADERS
    assert ("no-store" in headers.get("cache-control", "")) is (not path.startswith("/static"))
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_a_cookie_is_for_this_server_alone(site):
    cookie = site.client().get("/").headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("192.168.1.2", False), ("lab.example", False), ("::", False)],
)  # fmt: skip
def test_loopback(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    "url", ["lab.example", "ftp://lab.example", "https://", "https://lab.example/x", "http://a@b"]
)
def test_a_public_address_is_a_scheme_and_a_host(url):
    with pytest.raises(UserError, match="--public_url .* must be http://HOST"):
        check_url(url)


def test_the_names_of_a_server_are_those_that_browsers_write():
    local = ["127.0.0.1:80", "localhost:80", "[::1]:80"]
    assert names(UIOptions("x.db"), 80) == local
    assert names(UIOptions("x.db", host="::1"), 80) == ["[::1]:80", *local[:2]]
    assert names(UIOptions("x.db", host="0.0.0.0", public_url="https://lab.example"), 80) == [
        "0.0.0.0:80", "lab.example"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 can be reached from other machines; name who may label"),
        ({"port": 99999}, "--port 99999"),
        ({"labelers": ["admin"]}, "'admin' is there already"),
    ],
)
def test_a_server_that_cannot_be_is_refused(site, options, message):
    with pytest.raises(UserError, match=message):
        run(UIOptions(site.store.name, **{"port": 0, **options}))


def test_a_port_that_is_taken_is_refused(site):
    with pytest.raises(UserError, match=f"--port {site.port}: .*in use.* 0 for a free one"):
        run(UIOptions(site.store.name, port=site.port))


def test_what_is_sent_is_not_held_back_until_the_client_confirms_what_came_before():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
