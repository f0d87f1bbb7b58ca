"""A text written token by token: what is drawn from a branch, and what the model thought of what was chosen."""

import asyncio
import math

import pytest
import torch

from rlhf_kit.chat.branching import look, prompt_ids, write
from rlhf_kit.chat.speakers import Settings, Speakers
from rlhf_kit.data.chat import encode_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.generation.sampling import sample

QUESTION = "the cat sat"


@pytest.fixture
def speaker(policy, tokenizer, tmp_path):
    policy.save_pretrained(tmp_path / "sft")
    tokenizer.save_pretrained(tmp_path / "sft")
    with Speakers({"sft": tmp_path / "sft"}) as speakers:
        yield speakers["sft"]


def all_of(pieces):
    async def collect():
        return [piece async for piece in pieces]

    return asyncio.run(collect())


@pytest.fixture
def branch(speaker):
    """Pieces chosen behind the question: the third candidate, then the second."""
    path = []
    for rank in (2, 1):
        path.append(look(speaker, QUESTION, True, path, len(path), 5, Settings()).next.candidates[rank].ids)
    return path


@pytest.mark.parametrize("seed", range(4))
def test_a_branch_goes_on_as_sample_goes_on_from_there(seed, speaker, branch):
    ids = [*encode_prompt(speaker.tokenizer, [{"role": "user", "content": QUESTION}]), *branch[0], *branch[1]]
    options = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    pieces = all_of(write(speaker, QUESTION, True, branch, Settings(max_tokens=12, seed=seed, **options)))
    model = speaker.engine.model
    rollout = sample(model, [ids], eos_ids=speaker.ends, pad_id=0, max_completion_length=12, seeds=[seed], **options)
    assert [token for piece in pieces for token in piece.ids] == rollout.completions()[0]
    assert pieces[-1].ends == bool(rollout.terminated[0])


def test_a_piece_is_told_of_as_a_plain_forward_does(speaker, branch):
    written = all_of(write(speaker, QUESTION, True, branch, Settings(max_tokens=8, seed=3)))
    path = [*branch, *(piece.ids for piece in written)]
    seen = look(speaker, QUESTION, True, path, 1, 5, Settings(temperature=0.5, top_k=7))
    ids = prompt_ids(speaker, QUESTION, True)
    row = [*ids, *(token for piece in path for token in piece)]
    with torch.no_grad():
        logits = speaker.engine.model(torch.tensor([row])).logits[0].double()
    at = len(ids)
    for piece in seen.path:
        own = logits[at - 1 : at - 1 + len(piece.ids)]
        tokens = torch.tensor(piece.ids)[:, None]
        assert piece.probability == pytest.approx(own.softmax(-1).gather(1, tokens).prod().item(), rel=1e-5)
        assert piece.ranks == [1 + int((row > row[token]).sum()) for row, token in zip(own, piece.ids, strict=True)]
        kept = own.masked_fill(own < own.topk(7).values[:, -1:], -math.inf)
        assert piece.shaped == pytest.approx((kept / 0.5).softmax(-1).gather(1, tokens).prod().item(), rel=1e-5)
        at += len(piece.ids)
    for own, drawn in zip(seen.path[2:], written, strict=True):  # what is told while it is drawn is what is told after
        assert (own.ids, own.text, own.ranks, own.ends) == (drawn.ids, drawn.text, drawn.ranks, drawn.ends)
        assert own.probability == pytest.approx(drawn.probability, rel=1e-4)
    marked = [one for one in seen.next.candidates if one.ids == branch[1]]
    assert marked and marked[0].probability == pytest.approx(seen.path[1].shaped, rel=1e-5)


def test_nothing_follows_an_end(speaker):
    path = [[speaker.ends[0]]]
    assert look(speaker, QUESTION, True, path, 1, 5, Settings()).next is None
    assert look(speaker, QUESTION, True, path, 0, 5, Settings()).path[0].ends
    with pytest.raises(UserError, match="Nothing follows the end"):
        write(speaker, QUESTION, True, path, Settings())


def test_the_template_is_shown_and_can_be_left_out(speaker):
    plain, turns = (look(speaker, QUESTION, in_turns, [], 0, 5, Settings()) for in_turns in (False, True))
    assert plain.prompt == QUESTION and turns.prompt.startswith("User: " + QUESTION) and "Assistant:" in turns.prompt
    for wrong in ([[10**6]], [[5]] * 200):
        with pytest.raises(UserError, match="vocabulary|shorten it"):
            look(speaker, QUESTION, True, wrong, 0, 5, Settings())


def test_bytes_that_make_no_character_are_named_by_their_tokens(speaker):
    half = speaker.tokenizer("好", add_special_tokens=False).input_ids[:1]
    assert speaker.tokenizer.decode(half) == "\ufffd"
    (piece,) = look(speaker, QUESTION, True, [half], 1, 5, Settings()).path
    assert piece.text == f"⟨#{half[0]}⟩"
