"""Who the endpoint answers, what it refuses in form, and that a client who leaves leaves no work behind."""

import json
import socket
import threading
import time

import openai
import pytest
from serving.endpoints import running, saved_models

from rlhf_kit.errors import UserError
from rlhf_kit.serving.endpoint.serve import KEY, ServeOptions, key_of

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
ASK = {"model": "base", "prompt": "the cat", "max_tokens": 3}
TALK = {"model": "sft", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 3}


@pytest.fixture
def places(policy, tokenizer_folder, tmp_path):
    return saved_models(policy, tokenizer_folder, tmp_path)


@pytest.fixture
def server(places):
    with running(places, slots=4, waiting=24) as endpoint:
        yield endpoint


def until(condition):
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def deep(levels):
    return b'{"model": "base", "prompt": ' + b"[" * levels + b"]" * levels + b"}"


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        (COMPLETIONS, b"", 400, None, "not JSON"),
        (COMPLETIONS, b"[1]", 400, None, "give an object"),
        (COMPLETIONS, b'{"a": "\xff"}', 400, None, "not UTF-8"),
        (COMPLETIONS, deep(100_000), 400, None, "nested too deeply"),
        (COMPLETIONS, b"x" * (4 * 2**20 + 1), 413, None, "too large"),
        (COMPLETIONS, b'{"model": "base", "model": "sft"}', 400, None, "twice"),
        (COMPLETIONS, b'{"model": "base", "prompt": "\\ud800"}', 400, None, "half a character"),
        (COMPLETIONS, b'{"model": "base", "prompt": "a", "temperature": NaN}', 400, "temperature", "finite"),
        (COMPLETIONS, ASK | {"model": "bose"}, 404, "model", "does not exist"),
        (COMPLETIONS, ASK | {"model": 3}, 400, "model", "the number 3"),
        (COMPLETIONS, {"model": "base"}, 400, "prompt", "missing"),
        (COMPLETIONS, ASK | {"prompt": ""}, 400, None, "no tokens"),
        (COMPLETIONS, ASK | {"prompt": []}, 400, "prompt", "empty list"),
        (COMPLETIONS, ASK | {"prompt": [1, "a"]}, 400, "prompt", "several kinds"),
        (COMPLETIONS, ASK | {"prompt": [[1], []]}, 400, "prompt[1]", "token ids"),
        (COMPLETIONS, ASK | {"prompt": [-1]}, 400, None, "beyond the vocabulary"),
        (COMPLETIONS, ASK | {"prompt": [10**30]}, 400, None, "beyond the vocabulary"),
        (COMPLETIONS, ASK | {"prompt": [5] * 126}, 400, None, "the context of 128 less 3 for max_tokens"),
        (COMPLETIONS, ASK | {"max_tokens": True}, 400, "max_tokens", "true"),
        (COMPLETIONS, ASK | {"max_tokens": 0}, 400, "max_tokens", "echo"),
        (COMPLETIONS, ASK | {"max_tokens": 10**12}, 400, "max_tokens", "at most"),
        (COMPLETIONS, ASK | {"temperature": -1}, 400, "temperature", "negative"),
        (COMPLETIONS, ASK | {"top_p": 0}, 400, "top_p", "above 0"),
        (COMPLETIONS, ASK | {"n": 25}, 400, "n", "more than 24 answers"),
        (COMPLETIONS, ASK | {"best_of": 2}, 400, "best_of", "n is 1"),
        (COMPLETIONS, ASK | {"logprobs": 21}, 400, "logprobs", "from 0 to 20"),
        (COMPLETIONS, ASK | {"stop": [""]}, 400, "stop", "1 to 1000"),
        (COMPLETIONS, ASK | {"suffix": "x"}, 400, "suffix", "not supported"),
        (COMPLETIONS, ASK | {"presence_penalty": 0.5}, 400, "presence_penalty", "not supported"),
        (COMPLETIONS, ASK | {"logit_bias": {"5": 1}}, 400, "logit_bias", "not supported"),
        (COMPLETIONS, ASK | {"temprature": 1}, 400, "temprature", "Did you mean 'temperature'"),
        (COMPLETIONS, ASK | {"stream_options": {}}, 400, "stream_options", "stream: true"),
        (CHATS, TALK | {"messages": []}, 400, "messages", "empty"),
        (CHATS, TALK | {"messages": ["a"]}, 400, "messages[0]", "role and content"),
        (CHATS, TALK | {"messages": [{"role": "x", "content": "a"}]}, 400, "messages[0].role", "give one of"),
        (CHATS, TALK | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
         "messages[0].content[0]", "image_url"),
        (CHATS, TALK | {"tools": [{}]}, 400, "tools", "not supported"),
        (CHATS, TALK | {"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
        (CHATS, TALK | {"top_logprobs": 2}, 400, "top_logprobs", "logprobs: true"),
        (CHATS, TALK | {"max_completion_tokens": 4}, 400, "max_tokens", "one of them"),
        ("/v1/none", ASK, 404, None, "does not exist"),
        ("/none", ASK, 404, None, "does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_in_form(path, body, status, param, words, server):
    found, _, value = server.send(path, body)
    error = value["error"]
    assert found == status and error["param"] == param and words in error["message"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert server.send(COMPLETIONS, ASK)[0] == 200


def test_what_changes_no_answer_is_taken(server):
    neutral = {"user": "me", "presence_penalty": 0, "logit_bias": {}, "seed": 1, "best_of": None, "top_k": -1}
    more = {"tools": [], "response_format": {"type": "text"}, "n": 1, "store": False, "seed": 1}
    plain = server.complete(max_tokens=3, seed=1)["choices"]
    assert server.complete(max_tokens=3, **neutral)["choices"] == plain
    assert server.chat("the cat", max_tokens=3, **more)["choices"]


def test_only_this_machine_by_its_name_and_no_other_page_is_answered(server):
    assert server.send("/v1/models", Host="evil.example")[0] == 421
    assert server.send(COMPLETIONS, ASK, Origin="http://evil.example")[0] == 403
    assert server.send(COMPLETIONS, ASK, Origin=f"http://localhost:{server.port}")[0] == 200


def test_a_key_is_needed_where_there_is_one(places):
    with running(places, key="secret") as server:
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer "},
            {"Authorization": "secret"},
        ):
            status, _, value = server.send(COMPLETIONS, ASK, **given)
            assert status == 401 and value["error"]["code"] == "invalid_api_key"
        assert server.send(COMPLETIONS, ASK, Authorization="Bearer secret", Host="lab.example")[0] == 200
        assert server.send("/health")[0] == 200
        with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="no") as client:
            with pytest.raises(openai.AuthenticationError):
                client.models.list()


def test_other_machines_need_a_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    assert key_of(ServeOptions(["m"])) is None
    with pytest.raises(UserError, match="0.0.0.0 can be reached from other machines; give a key"):
        key_of(ServeOptions(["m"], host="0.0.0.0"))
    with pytest.raises(UserError, match="is empty"):
        key_of(ServeOptions(["m"], host="0.0.0.0", api_key=" "))
    monkeypatch.setenv(KEY, "word")
    assert key_of(ServeOptions(["m"], host="0.0.0.0")) == "word"


@pytest.mark.parametrize("stream", [True, False])
def test_twenty_who_hang_up_leave_no_work(stream, server):
    engine = server.engine()
    drawn, draw = [], engine.model.transformer.wte.register_forward_pre_hook(lambda *_: drawn.append(time.sleep(0.02)))
    body = json.dumps(ASK | {"max_tokens": 120, "ignore_eos": True, "stream": stream}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {len(body)}\r\n\r\n"
    sockets = []
    for _ in range(20):
        sockets.append(socket.create_connection(("127.0.0.1", server.port)))
        sockets[-1].sendall(head.encode() + body)
    until(lambda: engine.going + engine.waiting == 20)
    for each in sockets:
        each.close()
    until(lambda: not engine.is_busy)
    assert len(drawn) < 120  # the first four alone would have taken as many
    draw.remove()
    assert server.send(COMPLETIONS, ASK)[0] == 200


def test_a_full_line_is_told_to_come_again(server):
    begun, released = threading.Event(), threading.Event()
    server.engine().call(lambda model: (begun.set(), released.wait(60)))
    begun.wait(60)
    waiting = threading.Thread(target=server.send, args=(COMPLETIONS, ASK | {"n": 24}))
    waiting.start()
    until(lambda: server.engine().waiting == 24)
    status, headers, value = server.send(COMPLETIONS, ASK)
    assert status == 429 and headers["retry-after"] == "1" and value["error"]["code"] == "rate_limit_exceeded"
    released.set()
    waiting.join(60)
    assert server.send(COMPLETIONS, ASK)[0] == 200


def test_each_of_sixteen_at_once_gets_its_own(server):
    bodies = [ASK | {"max_tokens": 20, "seed": seed, "prompt": "the" + " cat" * (seed % 5)} for seed in range(16)]
    alone = [server.complete(**body)["choices"][0]["text"] for body in bodies]
    together = [""] * 16

    def ask(number):
        events = server.send(COMPLETIONS, bodies[number] | {"stream": True})[2].split("\n\n")
        together[number] = "".join(json.loads(event[6:])["choices"][0]["text"] for event in events[:-2])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == alone


def test_a_fault_of_the_model_is_no_more_than_told(server):
    fault = server.engine().model.transformer.h[0].register_forward_pre_hook(lambda *_: 1 / 0)
    status, _, value = server.send(COMPLETIONS, ASK)
    assert status == 500 and "division" not in value["error"]["message"]
    text = server.send(COMPLETIONS, ASK | {"stream": True})[2]
    assert '"internal_error"' in text and text.endswith("data: [DONE]\n\n")
    fault.remove()
    assert server.send(COMPLETIONS, ASK)[0] == 200


def test_many_requests_leave_nothing_behind(server):
    import gc  # noqa: PLC0415

    def size():
        gc.collect()
        return len(gc.get_objects())

    for number in range(400):
        server.complete(max_tokens=2, logprobs=2, echo=True, seed=number)
        if number == 100:
            before, threads = size(), threading.active_count()
    assert size() < before + 500 and threading.active_count() <= threads + 2
