"""`rlhf-kit serve`: OpenAI's own client against it, what it answers, and that it is what the model says in process."""

import json
import math
from functools import partial

import openai
import pytest
import torch
from serving.endpoints import answering, running, saved_models

from rlhf_kit.data.chat import encode_prompt
from rlhf_kit.data.labels.store import open_store
from rlhf_kit.generation.likelihood import Request, likelihoods
from rlhf_kit.generation.sampling import sample
from rlhf_kit.models.checkpoints import load_policy
from rlhf_kit.serving.app import make_app
from rlhf_kit.serving.folder import contents_of
from rlhf_kit.serving.ui import with_endpoint

TURNS = [{"role": "system", "content": "the dog"}, {"role": "user", "content": "the cat"}]


@pytest.fixture
def places(policy, tokenizer_folder, tmp_path):
    return saved_models(policy, tokenizer_folder, tmp_path)


@pytest.fixture
def server(places):
    with running(places) as endpoint:
        yield endpoint


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def by_sample(server, places, ids, name="base", **options):
    """(tokens, whether an end was drawn) in process."""
    ends = server.speakers[name].ends
    rollout = sample(load_policy(places[name]).eval(), [ids], eos_ids=ends, pad_id=0, **options)
    return rollout.completions()[0], bool(rollout.terminated[0])


def test_models_are_listed(client, server):
    assert [model.id for model in client.models.list()] == ["base", "sft"]
    assert client.models.retrieve("sft").object == "model"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("none")
    assert refused.value.code == "model_not_found"
    assert server.send("/health")[0] == 200


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_completion_is_what_sample_gives(temperature, client, server, places):
    tokenizer = server.speakers["base"].tokenizer
    asked = {"model": "base", "prompt": "the cat", "max_tokens": 20, "temperature": temperature, "seed": 3}
    reply = client.completions.create(**asked)
    tokens, ended = by_sample(
        server, places, tokenizer("the cat").input_ids, max_completion_length=20, temperature=temperature, seeds=[3]
    )
    choice = reply.choices[0]
    assert reply.object == "text_completion" and reply.id.startswith("cmpl-") and reply.model == "base"
    assert choice.finish_reason == ("stop" if ended else "length")
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    assert choice.text.rstrip("\ufffd") == whole.rstrip("\ufffd")
    asked_tokens = len(tokenizer("the cat").input_ids)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (asked_tokens, len(tokens))
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True))
    assert streamed == choice.text


def test_a_chat_is_what_sample_gives_streamed_or_not(client, server, places):
    tokenizer = server.speakers["sft"].tokenizer
    asked = {"model": "sft", "messages": TURNS, "max_completion_tokens": 20, "seed": 5}
    reply = client.chat.completions.create(**asked)
    ids = encode_prompt(tokenizer, TURNS)
    tokens, _ = by_sample(server, places, ids, "sft", max_completion_length=20, temperature=1.0, seeds=[5])
    message = reply.choices[0].message
    whole = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert message.role == "assistant" and message.content.strip().rstrip("\ufffd") == whole.rstrip("\ufffd")
    assert reply.usage.prompt_tokens == len(ids) and reply.usage.completion_tokens == len(tokens)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices == []
    assert chunks[-1].usage == reply.usage and chunks[-2].choices[0].finish_reason == reply.choices[0].finish_reason
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == message.content
    assert len({chunk.id for chunk in chunks}) == 1


def test_log_probs_of_a_chat_are_of_the_model(client, server, places):
    asked = {"model": "sft", "messages": TURNS, "max_tokens": 12, "seed": 2, "logprobs": True, "top_logprobs": 4}
    content = client.chat.completions.create(**asked).choices[0].logprobs.content
    streamed = [
        one
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert streamed == content
    speaker = server.speakers["sft"]
    ids = encode_prompt(speaker.tokenizer, TURNS)
    tokens, _ = by_sample(server, places, ids, "sft", max_completion_length=12, temperature=1.0, seeds=[2])
    with torch.no_grad():
        logits = load_policy(places["sft"]).eval()(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
    rows = logits.log_softmax(-1)
    for one, token, row in zip(content, tokens, rows, strict=True):
        assert one.logprob == pytest.approx(row[token].item(), abs=1e-5)
        assert [top.logprob for top in one.top_logprobs] == pytest.approx(row.topk(4).values.tolist(), abs=1e-5)
        assert bytes(one.bytes).decode(errors="ignore") == one.token or "\\x" in one.token


def test_several_answers_have_seeds_of_their_own_whatever_else_is_asked(server):
    first = server.complete("the cat", n=3, seed=7, max_tokens=12)["choices"]
    assert [choice["index"] for choice in first] == [0, 1, 2] and len({choice["text"] for choice in first}) == 3
    both = server.complete(["the dog", "the cat"], n=3, seed=7, max_tokens=12)["choices"]
    assert [choice["text"] for choice in both[3:]] == [choice["text"] for choice in first]
    assert server.complete("the cat", seed=7, max_tokens=12)["choices"][0]["text"] == first[0]["text"]
    assert len({server.complete("the cat", max_tokens=12)["choices"][0]["text"] for _ in range(4)}) > 1


def test_a_stop_string_ends_an_answer(server):
    text = server.complete("the", seed=1, max_tokens=30)["choices"][0]["text"]
    stop = text[10:12]
    short = server.complete("the", seed=1, max_tokens=30, stop=[stop, "never there"])
    assert short["choices"][0]["text"] == text[: text.find(stop)] and short["choices"][0]["finish_reason"] == "stop"
    assert short["usage"]["completion_tokens"] < 30


# --- the prompt's own log-probs, as lm-evaluation-harness asks for them ----------------------------------------------


def harness_asks(server, contexts, continuations):
    """As `local-completions` of lm-eval 0.4.13 does: (sum, whether greedy) of each."""
    body = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    rows = [context + more for context, more in zip(contexts, continuations, strict=True)]
    found = []
    for choice, context in zip(server.complete(rows, **body)["choices"], contexts, strict=True):
        told = choice["logprobs"]
        values, tops = (told[name][len(context) : -1] for name in ("token_logprobs", "top_logprobs"))
        greedy = all(value == max(top.values()) for value, top in zip(values, tops, strict=True))
        found.append((sum(values), greedy))
        assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    return found


def test_likelihoods_are_those_in_process(server, places):
    generator = torch.Generator().manual_seed(0)
    model = load_policy(places["base"]).eval()
    contexts = [torch.randint(280, (3 + 5 * at,), generator=generator).tolist() for at in range(10)]
    likely = [by_sample(server, places, ids, max_completion_length=4, temperature=0)[0] for ids in contexts]
    other = [torch.randint(280, (1 + at,), generator=generator).tolist() for at in range(10)]
    for continuations in (likely, other):
        requests = [Request(context, [more]) for context, more in zip(contexts, continuations, strict=True)]
        truth = dict(likelihoods(model, requests))
        for number, (total, greedy) in enumerate(harness_asks(server, contexts, continuations)):
            assert total == pytest.approx(truth[number][0].total, abs=1e-5)
            assert greedy == all(truth[number][0].greedy)


def test_an_echo_has_the_text_and_where_each_token_stands(server):
    text = "the 貓 sat 🐱"
    tokenizer = server.speakers["base"].tokenizer
    choice = server.complete(text, echo=True, max_tokens=0, logprobs=2)["choices"][0]
    told = choice["logprobs"]
    assert choice["text"] == text and choice["finish_reason"] == "length"
    ids = tokenizer(text).input_ids
    assert len(told["tokens"]) == len(ids) == len(told["text_offset"])
    assert "".join(name for name in told["tokens"] if not name.startswith("bytes:")) == "the  sat "
    assert [name for name in told["tokens"] if name.startswith("bytes:")][0] == "bytes:\\xe8"
    assert told["text_offset"][-1] == len(text) - 1 and told["text_offset"][0] == 0
    assert all(len(top) in (2, 3) for top in told["top_logprobs"][1:])
    again = server.complete(ids, echo=True, max_tokens=0, logprobs=2)["choices"][0]
    assert again == choice
    tokens = server.complete(text, echo=True, max_tokens=3, logprobs=0, ignore_eos=True)["choices"][0]["logprobs"]
    assert len(tokens["tokens"]) == len(ids) + 3 and len(tokens["top_logprobs"][-1]) == 1
    status, _, stream = server.send(
        "/v1/completions",
        {"model": "base", "prompt": text, "echo": True, "logprobs": 0, "max_tokens": 3, "ignore_eos": True,
         "stream": True},
    )  # fmt: skip
    events = [json.loads(line[6:]) for line in stream.split("\n\n") if line and line != "data: [DONE]"]
    names = [name for event in events for name in event["choices"][0]["logprobs"]["tokens"]]
    assert status == 200 and names[: len(ids)] == tokens["tokens"][: len(ids)] and len(names) == len(ids) + 3
    assert stream.endswith("data: [DONE]\n\n") and math.isfinite(events[-1]["created"])


# --- as Open WebUI asks ---------------------------------------------------------------------------------------------


def test_open_webui_is_answered_in_form(server):
    status, _, models = server.send("/v1/models", Authorization="Bearer ")
    assert (
        status == 200
        and models["object"] == "list"
        and {"id", "object", "created", "owned_by"} <= {*models["data"][0]}
    )
    body = {
        "stream": True, "model": "sft", "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "stream_options": {"include_usage": True}, "temperature": 0.8, "top_p": 0.9, "max_tokens": 8,
    }  # fmt: skip
    status, headers, text = server.send("/v1/chat/completions", body)
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    *events, done, rest = text.split("\n\n")
    assert done == "data: [DONE]" and rest == ""
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["usage"]["total_tokens"] and not chunks[-1]["choices"]
    titles = {"model": "sft", "messages": [{"role": "user", "content": "A title?"}], "stream": False, "max_tokens": 9}
    assert server.send("/v1/chat/completions", titles)[2]["choices"][0]["message"]["content"] is not None


# --- as a part of `rlhf-kit ui` -------------------------------------------------------------------------------------


def test_the_pages_answer_there_too_on_this_machine_alone(places, tmp_path):
    store, contents = open_store(tmp_path / "labels.db", create=True), contents_of(tmp_path)

    def pages(hosts, by_name=True, more=()):
        app = make_app(store, [*hosts, *more], by_name, contents=contents)
        return with_endpoint(app, hosts), app.state.speakers

    with answering(pages) as site:
        _, _, models = site.send("/v1/models")
        assert [model["id"] for model in models["data"]] == ["base", "sft"]
        assert site.complete(max_tokens=3, seed=1)["usage"]["completion_tokens"] <= 3
        assert site.send("/next")[0] == 200
        body = {"model": "sft", "prompt": "the cat"}
        assert site.send("/v1/completions", body, host="evil.example")[0] == 421
        assert site.send("/v1/completions", body, origin="http://evil.example")[0] == 403
    for options in {"by_name": False}, {"more": ["lab.example"]}:  # who comes must sign in, or may be from elsewhere
        with answering(partial(pages, **options)) as site:
            assert site.send("/v1/models")[0] == 404
