"""Continuations: those of transformers' `generate` on each prompt alone, whatever shares a cache or a batch."""

import random

import pytest
import torch
from by_generate import alone
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from rlhf_kit.errors import UserError
from rlhf_kit.generation.contexts import Contexts, can_share
from rlhf_kit.generation.decoding import (
    Beams,
    Continuation,
    Decoding,
    Dialogues,
    Ending,
    batches,
    continuations,
    rows_of,
)

END = 0  # the tiny tokenizer's end of text
STOPS = ("a", "e", "\n", "do")
SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def sharpened(model):
    """Weights large enough for the distribution not to be flat."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(5)
    return model.eval()


def model_of(kind, config):
    torch.manual_seed(0)
    if kind == "llama":
        size = dict(vocab_size=config.vocab_size, max_position_embeddings=128)
        return sharpened(LlamaForCausalLM(LlamaConfig(**SMALL, **size, eos_token_id=config.eos_token_id)))
    if kind == "mistral":
        size = dict(vocab_size=config.vocab_size, sliding_window=8, eos_token_id=config.eos_token_id)
        return sharpened(MistralForCausalLM(MistralConfig(**SMALL, **size)))
    if kind == "bloom":
        size = dict(vocab_size=config.vocab_size, hidden_size=32, n_layer=2, n_head=2)
        return sharpened(BloomForCausalLM(BloomConfig(**size, eos_token_id=config.eos_token_id)))
    return sharpened(GPT2LMHeadModel._from_config(config, attn_implementation=kind))


@pytest.fixture
def prompts(tokenizer):
    """Two dialogues of growing prompts, out of order, and prompts of their own; one twice, one of a single token."""
    random.seed(1)
    words = [[random.randrange(1, len(tokenizer)) for _ in range(size)] for size in (40, 33, 5, 9, 21)]
    found = [words[0][:size] for size in (12, 40, 25, 26)] + [words[1][:size] for size in (33, 4)]
    return [*found, *words[2:], words[3], [7]]


def together(model, tokenizer, prompts, how, **options):
    found = dict(continuations(model, tokenizer, prompts, how, **options))
    assert sorted(found) == list(range(len(prompts)))
    return [found[number] for number in range(len(prompts))]


@pytest.mark.parametrize("kind", ["sdpa", "eager", "llama", "mistral", "bloom"])
@pytest.mark.parametrize("beams", [1, 4])
def test_continuations_are_those_of_generate(kind, beams, tiny_config, tokenizer, prompts):
    model = model_of(kind, tiny_config)
    assert can_share(model) == (kind in ("sdpa", "eager", "llama"))
    how = Decoding(max_new_tokens=12, stop=STOPS, num_beams=beams, length_penalty=0.6)
    found = together(model, tokenizer, prompts, how)
    assert [found[i].ids for i in range(len(prompts))] == [alone(model, tokenizer, p, how) for p in prompts]
    lengths = {len(one.ids) for one in found}
    assert len(lengths) > (1 if kind == "bloom" else 2)  # some ended, at different lengths
    assert all(one.ended for one in found if len(one.ids) < 12)


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.6, 3.0])
def test_beams_weigh_length_as_generate_does(penalty, policy, tokenizer, prompts):
    how = Decoding(max_new_tokens=10, stop=STOPS, num_beams=3, length_penalty=penalty)
    found = together(policy, tokenizer, prompts, how)
    assert [one.ids for one in found] == [alone(policy, tokenizer, prompt, how) for prompt in prompts]


@pytest.mark.parametrize(("penalty", "written"), [(0.0, [END]), (1.0, [5, END]), (2.0, [5, 6, END])])
def test_beams_by_hand(penalty, written, policy, tokenizer):
    """Two beams. Ended after 1, 2 and 3 tokens with log-probabilities of -1.0, -1.9 and -2.9."""
    ending = Ending(policy, tokenizer, Decoding(4, stop=(), num_beams=2, length_penalty=penalty))
    search = Beams(ending)
    assert search.step([[(-0.9, 5), (-1.0, END), (-9.0, 7), (-9.0, 8)]]) == [(0, 5), (0, 7)]
    assert search.finished == [(-1.0, [END])]
    first = [(-0.8, 6), (-1.0, END), (-9.0, 7), (-9.0, 8)]
    going = search.step([first, [(-1.0, 7), (-9.0, 8), (-9.0, 9), (-9.0, 10)]])
    assert sorted(search.finished) == sorted([(-1.0, [END]), (-1.9 / 2**penalty, [5, END])])
    if penalty == 0.0:  # -1.7 may still fall between the two: not over while it beats the worse
        assert going == [(0, 6), (0, 7)]
        going = search.step([[(-0.3, 7), (-9.0, 6), (-9.0, 8), (-9.0, 9)], [(-9.0, token) for token in (5, 6, 7, 8)]])
        assert going == []  # -2.0 does not
    else:
        assert going == [(0, 6), (0, 7)]
        search.step([[(-1.2, END), (-2.0, 7), (-9.0, 8), (-9.0, 9)], [(-9.0, token) for token in (5, 6, 7, 8)]])
    assert search.ids == written


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("max_batch_tokens", [1, 200, 700])
def test_batches_change_nothing(beams, max_batch_tokens, policy, tokenizer, prompts):
    how = Decoding(max_new_tokens=10, stop=STOPS, num_beams=beams)
    whole = together(policy, tokenizer, prompts, how)
    assert together(policy, tokenizer, prompts, how, max_batch_tokens=max_batch_tokens) == whole


def test_the_end_token_ends(policy, tokenizer):
    """A model that would write the end token next, and one whose own list of end tokens says more."""
    prompt = [5, 6, 7]
    how = Decoding(max_new_tokens=6, stop=())
    written = together(policy, tokenizer, [prompt], how)[0]
    assert len(written.ids) == 6 and not written.ended and written.text == tokenizer.decode(written.ids)
    policy.generation_config.eos_token_id = [tokenizer.eos_token_id, written.ids[2]]
    ended = together(policy, tokenizer, [prompt], how)[0]
    first = written.ids.index(written.ids[2])
    assert ended.ids == written.ids[: first + 1] and ended.ended
    assert ended.text == tokenizer.decode(written.ids[:first])


@pytest.mark.parametrize(
    ("text", "answer", "ended"),
    [
        (" a cat\nQ: who", "a cat", True),
        ("\n\n a cat \n", "a cat", True),
        (" a cat", "a cat", False),
        ("\n \n", "", False),
        ("\n\nQ: a cat", "Q: a cat", False),
    ],
)
def test_the_answer_is_cut_at_the_stop_after_leading_white_space(text, answer, ended, policy, tokenizer):
    ending = Ending(policy, tokenizer, Decoding(9))
    ids = tokenizer.encode(text)
    assert ending.continuation(ids) == Continuation(ids, text, answer, ended)
    ids += [tokenizer.eos_token_id]
    assert ending.continuation(ids) == Continuation(ids, text, answer, True)


def test_a_prompt_that_leaves_no_room_is_refused(policy, tokenizer):
    with pytest.raises(
        UserError, match="prompt 1, has 120 tokens; the context of 128 less 9 for max_new_tokens leaves 119"
    ):
        list(continuations(policy, tokenizer, [[5] * 120], Decoding(9)))
    assert together(policy, tokenizer, [[5] * 119], Decoding(9))


def test_rows_and_batches():
    prompts = [[5], [7, 8], [5, 6], [7, 9], [5, 6]]
    assert rows_of(prompts) == [[0, 2, 4], [1], [3]]
    how = Decoding(max_new_tokens=10)
    # 2 + 3 x 10 tokens, 2 + 10, 2 + 10
    assert list(batches(rows_of(prompts), prompts, how, 31)) == [[[0, 2, 4]], [[1], [3]]]
    assert list(batches(rows_of(prompts), prompts, how, 23)) == [[[0, 2, 4]], [[1]], [[3]]]
    assert list(batches(rows_of(prompts), prompts, how, 96)) == [[[0, 2, 4], [1], [3]]]


# --- dialogues that grow --------------------------------------------------------------------------------------------


class CountingForward:
    """Tokens that a model reads and writes."""

    def __init__(self, model):
        self.tokens = 0
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.tokens += kwargs["input_ids"].numel()


@pytest.mark.parametrize("kind", ["sdpa", "llama", "mistral"])
def test_dialogues_are_read_on_from_where_they_were(kind, tiny_config, tokenizer):
    model = model_of(kind, tiny_config)
    how = Decoding(max_new_tokens=5, stop=STOPS)
    random.seed(2)
    prompts = [[random.randrange(1, 256) for _ in range(size)] for size in (30, 12, 20)]
    dialogues, counter = Dialogues(model, tokenizer, how), CountingForward(model)
    for turn, count in enumerate((3, 3, 2, 1)):
        prompts = prompts[:count]
        counter.tokens = 0
        found = dialogues.answer(prompts)
        if (
            turn and kind != "mistral"
        ):  # an answer and a question of 7 or 9 tokens, five steps: 48 tokens were there before
            assert counter.tokens <= count * (5 + 9 + 5)
        assert [one.ids for one in found] == [alone(model, tokenizer, prompt, how) for prompt in prompts]
        # As long an answer as it was, other tokens than were written, and a question.
        prompts = [
            [*prompt, *reversed(one.ids), *range(40 + at, 45 + 2 * at)]
            for at, (prompt, one) in enumerate(zip(prompts, found, strict=True))
        ]


def test_a_dialogue_that_lost_its_oldest_turn_is_read_anew(policy, tokenizer):
    how = Decoding(max_new_tokens=5, stop=STOPS)
    dialogues = Dialogues(policy, tokenizer, how)
    first = [[1, 2, 3, 4, 5, 6], [9, 8, 7]]
    later = [[1, 2, 5, 6, 7, 8], [9, 8, 7, 6, 5]]
    for prompts in (first, later):
        assert [one.ids for one in dialogues.answer(prompts)] == [alone(policy, tokenizer, p, how) for p in prompts]


# --- the cache ------------------------------------------------------------------------------------------------------


def test_what_was_read_stays_through_steps_that_are_forgotten(policy):
    with torch.no_grad():
        contexts = Contexts(policy, [[5, 6, 7], [8]])
        seen = contexts.leaves([[3], [1]])
        for _ in range(9):  # more than the room taken ahead
            _, seen = contexts.step(torch.tensor([[50], [51]]), torch.tensor([[3], [1]]), seen)
        contexts.forget()
        contexts.read([[9, 10], [11, 12, 13]])
        assert contexts.places.tolist() == [[0, 1, 2, 3, 4, -1], [0, -1, -1, 1, 2, 3]]
        logits, _ = contexts.step(torch.tensor([[20], [21]]), torch.tensor([[5], [4]]), contexts.leaves([[5], [4]]))
        for row, full in enumerate([[5, 6, 7, 9, 10, 20], [8, 11, 12, 13, 21]]):
            expected = policy(torch.tensor([full])).logits[0, -1]
            torch.testing.assert_close(logits[row, 0], expected, rtol=1e-4, atol=1e-4)
        contexts.forget()
        contexts.keep([1])
        contexts.read([[30]])
        logits, _ = contexts.step(torch.tensor([[22]]), torch.tensor([[5]]), contexts.leaves([[5]]))
        expected = policy(torch.tensor([[8, 11, 12, 13, 30, 22]])).logits[0, -1]
        torch.testing.assert_close(logits[0, 0], expected, rtol=1e-4, atol=1e-4)
