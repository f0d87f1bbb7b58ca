"""Requests that come and go: each gets what it would get alone, and what nobody waits for leaves no work behind."""

import random
import threading
import time

import pytest
import torch
from generation.test_pool import ARCHITECTURES, ENDS, prompts, tiny

from rlhf_kit.errors import UserError
from rlhf_kit.generation.engine import Busy, Closed, Engine, Request
from rlhf_kit.generation.sampling import sample

LONGEST = 12


def requests(rows):
    chance = random.Random(3)
    return [
        Request(
            row,
            chance.randrange(1, LONGEST + 1),
            temperature=chance.choice([0.0, 0.7, 1.0]),
            top_k=chance.choice([0, 0, 5]),
            top_p=chance.choice([1.0, 1.0, 0.8]),
            seed=number,
        )
        for number, row in enumerate(rows)
    ]


def alone(model, request):
    """(tokens, why it ended) by `sample`."""
    rollout = sample(
        model, [request.prompt_ids], eos_ids=ENDS, pad_id=0, max_completion_length=request.max_tokens,
        temperature=request.temperature, top_k=request.top_k, top_p=request.top_p, seeds=[request.seed],
    )  # fmt: skip
    return rollout.completions()[0], "stop" if rollout.terminated[0] else "length"


def held(engine):
    """A call that keeps the engine until it is released."""
    begun, released = threading.Event(), threading.Event()

    def wait(model):
        begun.set()
        released.wait(60)

    engine.call(wait)
    begun.wait(60)
    return released


def until(condition):
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_gets_what_it_has_alone_whenever_it_comes(name):
    model, asked = tiny(name), requests(prompts())
    truth = [alone(model, request) for request in asked]
    assert {why for _, why in truth} == {"stop", "length"}
    for slots in (1, 3, 32):
        drawn = [[] for _ in asked]
        with Engine(model, ENDS, 0, slots) as engine:

            def ask(number, engine=engine, drawn=drawn):
                time.sleep(random.Random(number).random() / 50)
                drawn[number] = list(engine.stream(asked[number]))

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert [[one.token for one in each] for each in drawn] == [tokens for tokens, _ in truth]
        assert [each[-1].finish for each in drawn] == [why for _, why in truth]
        assert not any(one.finish for each in drawn for one in each[:-1])


def test_what_is_told_of_a_token_is_of_the_model_itself():
    model = tiny("gpt2")
    with Engine(model, ENDS, 0) as engine:
        released = held(engine)  # so that all begin together
        others = [engine.submit(Request([7, 8], 9, seed=5), lambda drawn: None)]
        streams = [
            engine.stream(Request([5, 6], 8, temperature=0.5, top_k=7, seed=1, top_logprobs=count)) for count in (0, 3)
        ]
        threading.Timer(0.05, released.set).start()
        plain, told = (list(stream) for stream in streams)
    assert others and [one.token for one in plain] == [one.token for one in told]
    ids = [5, 6, *(one.token for one in told)]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0, 1:-1].log_softmax(-1)
    for one, bare, row in zip(told, plain, logprobs, strict=True):
        assert bare.top == [] and bare.rank is bare.entropy is None
        assert one.logprob == pytest.approx(row[one.token].item(), abs=1e-5) == bare.logprob
        values, tokens = row.topk(3)
        assert [token for token, _ in one.top] == tokens.tolist()
        assert [value for _, value in one.top] == pytest.approx(values.tolist(), abs=1e-5)
        assert one.rank == 1 + int((row > row[one.token]).sum())
        assert one.entropy == pytest.approx(-(row.exp() * row).sum().item(), abs=1e-5)


def counted(model):
    """Shapes of what the model reads."""
    shapes = []
    model.transformer.wte.register_forward_pre_hook(lambda module, ids: shapes.append(tuple(ids[0].shape)))
    return shapes


def test_who_leaves_leaves_no_work():
    model = tiny("gpt2")
    with Engine(model, [], 0, slots=4) as engine:
        streams = [engine.stream(Request([5], 30, seed=number)) for number in range(4)]
        for stream in streams:
            next(stream)
        released, shapes = held(engine), counted(model)
        for stream in streams:
            stream.close()
        released.set()
        until(lambda: engine.going == 0 and engine.waiting == 0)
        assert not shapes
        assert len(list(engine.stream(Request([5], 3)))) == 3


def test_who_leaves_the_line_never_begins():
    model = tiny("gpt2")
    with Engine(model, [], 0, slots=1) as engine:
        released, shapes, told = held(engine), counted(model), []
        jobs = [engine.submit(Request([5], 30), told.append) for _ in range(20)]
        for job in jobs:
            job.cancel()
        assert engine.waiting == 0
        released.set()
        assert len(list(engine.stream(Request([6, 7], 3)))) == 3
        assert shapes == [(1, 2), (1, 1), (1, 1)] and not told


def test_a_line_has_an_end():
    with Engine(tiny("gpt2"), [], 0, slots=2, waiting=3) as engine:
        released = held(engine)
        jobs = [engine.submit(Request([5], 2), lambda drawn: None) for _ in range(3)]
        with pytest.raises(Busy, match="3 requests are waiting"):
            engine.submit(Request([5], 2), lambda drawn: None)
        jobs[0].cancel()
        engine.submit(Request([5], 2), lambda drawn: None)
        released.set()


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request([], 2), "no tokens to continue from"),
        (Request([5], 0), "max_tokens"),
        (Request([99], 2), "beyond the vocabulary of 60"),
        (Request([5] * 30, 10), "the prompt has 30 tokens; the context of 32 less 10 for max_tokens leaves 22"),
        (Request([5], 2, temperature=-1.0, top_p=2.0), "temperature.*top_p"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(request_, said):
    with Engine(tiny("gpt2"), [], 0) as engine, pytest.raises(UserError, match=said):
        engine.submit(request_, print)


def test_a_fault_reaches_those_it_concerns_and_nobody_else(caplog):
    model = tiny("gpt2")
    with Engine(model, [], 0) as engine:
        fault = RuntimeError("out of memory")
        handle = model.transformer.h[0].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(fault))
        with pytest.raises(RuntimeError, match="out of memory"):
            list(engine.stream(Request([5], 3)))
        with pytest.raises(ZeroDivisionError):
            engine.call(lambda model: 1 / 0).result(60)
        handle.remove()
        assert len(list(engine.stream(Request([5], 3)))) == 3
        assert engine.call(lambda model, x, y: (model.training, x, y), 1, y=2).result(60) == (False, 1, 2)
        assert "1 rows ended with a fault" in caplog.text


def test_one_who_does_not_take_it_is_left():
    with Engine(tiny("gpt2"), [], 0) as engine:
        taken = []

        def deliver(drawn):
            taken.append(drawn)
            raise ConnectionError

        engine.submit(Request([5], 20), deliver)
        assert len(list(engine.stream(Request([6], 20)))) == 20
        assert len(taken) == 1


def test_closing_tells_those_at_work_and_those_in_line():
    engine = Engine(tiny("gpt2"), [], 0, slots=1)
    released, told = held(engine), []
    for _ in range(2):
        engine.submit(Request([5], 20), told.append)
    call = engine.call(lambda model: None)
    threading.Timer(0.05, released.set).start()
    engine.close()
    assert [type(one) for one in told if isinstance(one, Exception)] == [Closed, Closed]
    assert call.cancelled() or call.done()
    with pytest.raises(Closed):
        engine.submit(Request([5], 2), print)


def test_a_new_row_does_not_wait_for_the_others_and_the_batch_shrinks_again():
    """While a long row is at work others begin beside it, and the batch has no more rows than are at work."""
    model = tiny("gpt2")
    with Engine(model, [], 0, slots=3) as engine:
        shapes = counted(model)
        long = engine.stream(Request([5], 30, seed=1))
        next(long)
        for number in range(4):
            released = held(engine)
            short = engine.stream(Request([6, 7], 2, seed=number))
            threading.Timer(0.02, released.set).start()
            assert len(list(short)) == 2
        assert len(list(long)) == 29
    assert (1, 1) in shapes and (2, 1) in shapes and max(rows for rows, _ in shapes) == 2
