"""Reward functions as people write them: what they return is one number a completion, or is told."""

import asyncio
import collections
import decimal
import fractions

import numpy
import pandas
import pytest
import torch

from rlhf_kit.errors import UserError
from rlhf_kit.ppo.rewards import call, check_signature, read_scores

TEXTS = ["a", "b", "c"]


class Callable:
    def __call__(self, completions, **_):
        return [1.0] * len(completions)


@pytest.mark.parametrize(
    "returned",
    [
        [1, 2.0, True],
        (1, 2, 1),
        numpy.array([1.0, 2.0, 1.0], dtype=numpy.float16),
        numpy.array([[1], [2], [1]]),
        torch.tensor([1.0, 2.0, 1.0], dtype=torch.bfloat16, requires_grad=True),
        torch.tensor([[1], [2], [1]]),
        pandas.Series([1, 2, 1], index=[5, 6, 7]),
        [torch.tensor(1.0), torch.tensor([2.0]), numpy.float32(1)],
        [numpy.bool_(True), fractions.Fraction(2), decimal.Decimal(1)],
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_of_any_library_are_read(returned):
    scores = read_scores("mine", returned, TEXTS)
    assert scores.tolist() == [1.0, 2.0, 1.0] and scores.dtype == torch.float32 and not scores.requires_grad


def test_none_is_no_opinion():
    assert read_scores("mine", [None, 1.0, 2], TEXTS).isnan().tolist() == [True, False, False]
    assert read_scores("mine", numpy.array([None, 1.0, 2], dtype=object), TEXTS).isnan().tolist() == [
        True,
        False,
        False,
    ]
    assert read_scores("mine", numpy.ma.array([9.0, 1.0, 2.0], mask=[1, 0, 0]), TEXTS).isnan().tolist() == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "returned,told",
    [
        (1.0, "returned the number 1.0"),
        (True, "returned the number True"),
        (torch.tensor(1.0), "returned the number 1.0"),
        (numpy.float64(2.5), "returned the number 2.5"),
        (1j, "returned the number 1j"),
        (None, "returned nothing"),
        ("bad", "returned the text 'bad'"),
        (b"bad", "returned the text b'bad'"),
        ({"a": 1, "b": 2, "c": 3}, "returned a dict"),
        ({1.0, 2.0, 3.0}, "returned a set"),
        ((x for x in [1, 2, 3]), "returned a generator"),
        (map(float, [1, 2, 3]), "returned a map"),
        (torch.ones(3, 2), r"returned an array of shape \(3, 2\)"),
        (numpy.ones((1, 3)), r"returned an array of shape \(1, 3\)"),
        (pandas.DataFrame({"x": [1, 2, 3], "y": [1, 2, 3]}), "returned a DataFrame"),
        ([], "returned 0 scores for 3 completions"),
        ([1.0, 2.0], "returned 2 scores for 3 completions"),
        (["good", "bad", "ugly"], "returned the text 'good' for the completion 'a'"),
        (["1.0", "2.0", "3.0"], "returned the text '1.0' for the completion 'a'"),
        ([[1.0], [2.0], [3.0]], "returned a list for the completion 'a'"),
        ([[1.0, 2.0, 3.0]], "returned 1 scores for 3 completions"),
        ([{"score": 1.0}] * 3, "returned a dict for the completion 'a'"),
        ([1.0, 2j, 3.0], "returned the number 2j for the completion 'b'"),
        ([1.0, torch.ones(2), 3.0], r"returned an array of shape \(2,\) for the completion 'b'"),
        (numpy.array([1 + 1j] * 3), r"returned the number \(1\+1j\) for the completion 'a'"),
        (numpy.array(["x", "y", "z"]), "returned the text 'x' for the completion 'a'"),
        ([1.0, float("nan"), 2.0], "returned nan for the completion 'b'"),
        ([1.0, 2.0, -numpy.inf], "returned -inf for the completion 'c'"),
        ([10**400, 1, 1], "returned inf for the completion 'a'"),
        ([1.0, 1e39, 1.0], r"returned the number 1e\+39 for the completion 'b'"),  # an infinity in float32
        (torch.eye(3)[0].to_sparse(), r"returned an array of shape \(3,\)"),
        (torch.empty(3, device="meta"), r"returned an array of shape \(3,\)"),
        (collections.deque([1, 2, 3]), "returned a deque"),
    ],
)
def test_what_else_is_returned_is_told(returned, told):
    with pytest.raises(
        UserError, match=rf"^Reward function 'mine' {told}; give one number per completion, a list of 3"
    ):
        read_scores("mine", returned, TEXTS)


GIVEN = {"prompts": ["p"] * 3, "completions": TEXTS, "completion_ids": [[1]] * 3}


def test_coroutines_are_waited_for_in_a_running_loop_too():
    async def slow(completions, **_):
        await asyncio.sleep(0)
        return [float(len(completions))] * len(completions)

    async def notebook():
        return call("slow", slow, GIVEN)

    assert call("slow", slow, GIVEN) == [3.0] * 3
    assert asyncio.run(notebook()) == [3.0] * 3
    with pytest.raises(UserError, match="'broken' raised KeyError"):
        asyncio.run(_in_loop(lambda: call("broken", _broken, GIVEN)))


async def _broken(**_):
    raise KeyError("topic")


async def _in_loop(function):
    return function()


def test_a_signature_that_does_not_fit_is_told_before_anything_is_sampled(make_trainer):
    sampled = []

    def exact(completions):
        sampled.append(completions)

    told = r"'exact' cannot be called with the trainer's arguments: .*'prompts'. It is called as exact\("
    with pytest.raises(UserError, match=told + r"prompts=..., .*tag=..., train"):
        make_trainer(reward_funcs=exact)
    with pytest.raises(UserError, match="missing a required argument: 'answer'"):
        make_trainer(reward_funcs=lambda completions, answer, **_: [0.0] * len(completions))

    class Scorer(torch.nn.Module):
        def forward(self, input_ids):
            sampled.append(input_ids)

    with pytest.raises(UserError, match="'Scorer' cannot be called with the trainer's arguments"):
        make_trainer(reward_funcs=Scorer())
    for given, told in ((None, "nothing"), (1.0, "the number 1.0"), ({"a": 1}, "a dict")):
        with pytest.raises(UserError, match=f"reward_funcs has {told}; give a reward model's folder or a function"):
            make_trainer(reward_funcs=[given])
    assert not sampled
    check_signature("fine", Callable(), [*GIVEN, "tag"])
    check_signature("builtin", max, list(GIVEN))


@pytest.mark.parametrize("returned", [1.0, None, "text", [{}] * 8], ids=str)
def test_the_trainer_tells_what_a_function_returned(make_trainer, returned):
    trainer = make_trainer(reward_funcs=lambda **_: returned)
    with pytest.raises(UserError, match="returned .*; give one number per completion, a list of 8"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_rewards_that_float32_cannot_hold_together_are_told(make_trainer):
    trainer = make_trainer(reward_funcs=lambda completions, **_: [1e30] * len(completions), reward_weights=[1e10])
    with pytest.raises(UserError, match=r"reward_weights=\[10000000000.0\] are more than float32 holds"):
        trainer.train()


def test_a_function_cannot_change_the_run_s_prompts(make_trainer):
    def careless(prompts, completions, completion_ids, tag, **_):
        for prompt in prompts:
            prompt[-1]["content"] = "gone"
        tag.clear(), completion_ids.clear()
        return [0.0] * len(completions)

    seen = []

    def next_one(prompts, completion_ids, tag, **_):
        seen.append((prompts, completion_ids, tag))
        return [0.0] * len(prompts)

    trainer = make_trainer(reward_funcs=[careless, next_one])
    rows = trainer.prompts[:8]
    rollout = trainer.sample(rows, torch.Generator().manual_seed(0))
    trainer.score(rows, rollout)
    prompts, ids, tags = seen[0]
    assert all(prompt[-1]["content"].startswith("hello") for prompt in prompts)
    assert ids == rollout.completions() and tags == list(range(8))
    assert all(row["prompt"][-1]["content"].startswith("hello") for row in trainer.prompts)
