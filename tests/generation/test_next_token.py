"""Next-token candidates and text as it comes: whole characters, and probabilities that sum to 1."""

import itertools
import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_kit import world
from rlhf_kit.errors import UserError
from rlhf_kit.generation import next_token as module_tested
from rlhf_kit.generation.next_token import next_token, shown
from rlhf_kit.generation.text import BROKEN, TextStream, pieces, text_of

EMOJI = "👩‍👩‍👧 naïve 🇹🇼 ok 🙂\n"


@pytest.fixture(scope="module")
def bytes_alone():
    """A tokenizer of single bytes, so that every Chinese character is three tokens and an emoji four."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)} | {"<end>": len(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture(scope="module")
def model(bytes_alone):
    """It has read the world's Chinese for a moment, so that a byte is followed by one that goes with it."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=64, n_head=2, n_positions=64, vocab_size=257, bos_token_id=256, eos_token_id=256)
    )
    ids = torch.tensor(bytes_alone("".join(chinese())).input_ids[: 64 * 300]).view(-1, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in ids.split(15) * 4:
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def chinese():
    texts = [row["text"] for row in world.rows("text", "train", 3000, 0)]
    return [*(text for text in texts if any(character > "\u3000" for character in text))][:300] + [EMOJI * 20]


def test_a_stream_gives_the_text_in_whole_characters(bytes_alone):
    text = "".join(chinese())[:4000] + EMOJI * 5
    stream, given = TextStream(bytes_alone), []
    for token in bytes_alone(text).input_ids:
        given.append(stream.push(token))
    given.append(stream.finish())
    assert "".join(given) == text
    assert not any(BROKEN in part for part in given)
    assert "".join(piece for piece, _ in pieces(bytes_alone, bytes_alone(text).input_ids)) == text


def test_bytes_of_a_character_that_was_cut_off_are_not_shown(bytes_alone):
    ids = bytes_alone("好嗎").input_ids
    assert [text_of(bytes_alone, ids[:count]) for count in range(7)] == ["", "", "", "好", "好", "好", "好嗎"]
    assert [piece for piece, _ in pieces(bytes_alone, ids[:5])] == ["好", BROKEN]


def test_a_token_may_end_one_character_and_begin_another(bytes_alone):
    space, *rest = bytes_alone(" 好").input_ids
    tokenizer = bytes_with(bytes_alone, (space, rest[0]))
    ids = tokenizer(" 好").input_ids
    assert len(ids) == 3
    assert [pieces(tokenizer, ids[:count]) for count in (1, 3)] == [[(" " + BROKEN, ids[:1])], [(" 好", ids)]]


def bytes_with(tokenizer, merged):
    """The tokenizer with one token more, of two of its own."""
    first, second = tokenizer.convert_ids_to_tokens(list(merged))
    vocabulary = {**tokenizer.get_vocab(), first + second: len(tokenizer)}
    inner = Tokenizer(models.BPE(vocabulary, [(first, second)]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


def test_bytes_that_are_no_character_are_shown_as_such_and_hold_nothing_up(bytes_alone):
    wrong = bytes_alone("好").input_ids[1:] * 3
    text = text_of(bytes_alone, [*bytes_alone("a").input_ids, *wrong, *bytes_alone(" 好 b").input_ids])
    assert text.startswith("a" + BROKEN) and text.endswith(" 好 b")


@pytest.mark.parametrize("stop", [["停"], ["world", "wor"], [" w", "zzz"], ["d!", "好停"]])
def test_nothing_of_a_stop_string_is_given(stop, bytes_alone):
    text = "hello world! 你好停 zz"
    first = min(at for at in (text.find(one) for one in stop) if at >= 0)
    stream, given = TextStream(bytes_alone, stop), ""
    for token in bytes_alone(text).input_ids:
        given += stream.push(token)
        assert text[:first].startswith(given)
        if stream.stopped:
            break
    assert stream.stopped and given + stream.finish() == text[:first]
    assert text_of(bytes_alone, bytes_alone(text).input_ids, ["zzz"]) == text


def test_special_tokens_are_not_text_and_are_pieces(bytes_alone):
    ids = [*bytes_alone("好").input_ids, bytes_alone.eos_token_id, *bytes_alone("a").input_ids]
    assert text_of(bytes_alone, ids) == "好a"
    assert [piece for piece, _ in pieces(bytes_alone, ids)] == ["好", "<end>", "a"]
    assert [token for _, own in pieces(bytes_alone, ids) for token in own] == ids


@torch.no_grad()
def by_hand(model, tokenizer, ids, count, temperature, top_k):
    """The likeliest whole characters of all there are: every beginning that is likely enough is continued."""
    found, going = [], [(1.0, [])]
    for _ in range(4):
        logits = model(torch.tensor([[*ids, *tokens] for _, tokens in going])).logits[:, -1].double() / temperature
        if top_k:
            logits[logits < logits.topk(top_k).values[:, -1:]] = -torch.inf
        begun, going = going, []
        for (probability, tokens), row in zip(begun, logits.softmax(-1), strict=True):
            for token in (probability * row > 2e-4).nonzero().flatten().tolist():
                text = shown(tokenizer, ids, [*tokens, token])
                likely = probability * row[token].item(), [*tokens, token]
                (going if text.endswith(BROKEN) else found).append(likely)
        if not going:
            break
    return sorted(found, reverse=True)[:count]


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.7, 0), (1.5, 20)])
@pytest.mark.parametrize("text", ["問", "誰是", "The ", "[{"], ids=["ask", "who", "the", "json"])
def test_candidates_are_the_likeliest_whole_characters_and_sum_with_the_rest_to_1(
    text, temperature, top_k, model, bytes_alone
):
    ids = bytes_alone(text).input_ids
    found = next_token(model, bytes_alone, ids, count=6, temperature=temperature, top_k=top_k)
    truth = by_hand(model, bytes_alone, ids, 6, temperature, top_k)
    assert len(truth) == 6
    assert [candidate.ids for candidate in found.candidates] == [tokens for _, tokens in truth]
    assert [one.probability for one in found.candidates] == pytest.approx([p for p, _ in truth], rel=1e-5)
    assert sum(one.probability for one in found.candidates) + found.rest == pytest.approx(1, abs=1e-6)
    assert not any(BROKEN in one.text for one in found.candidates)
    assert all(bytes_alone.decode(one.ids) == one.text for one in found.candidates)


def test_what_is_not_looked_at_is_in_the_rest(model, bytes_alone, monkeypatch):
    monkeypatch.setattr(module_tested, "MOST_BRANCHES", 3)
    found = next_token(model, bytes_alone, bytes_alone("誰是").input_ids, count=3)
    assert sum(one.probability for one in found.candidates) + found.rest == pytest.approx(1, abs=1e-6)


def test_chinese_candidates_are_several_tokens(model, bytes_alone):
    found = next_token(model, bytes_alone, bytes_alone("Who 問").input_ids, count=40)
    assert {len(one.ids) for one in found.candidates} >= {1, 3}


def test_entropy_and_settings(model, bytes_alone):
    ids = bytes_alone("誰").input_ids
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
    found = next_token(model, bytes_alone, ids)
    assert found.entropy == pytest.approx(-(logprobs.exp() * logprobs).sum().item())
    one = next_token(model, bytes_alone, ids, top_k=1)
    assert one.entropy == 0.0 and one.rest == 0.0 or len(one.candidates) == 1
    first = found.candidates[0]
    ended = next_token(model, bytes_alone, ids, end_ids=first.ids[:1]).candidates
    assert any(candidate.ends and candidate.ids == first.ids[:1] for candidate in ended) and not first.ends
    for wrong, said in [
        ({"temperature": 0.0}, "temperature"),
        ({"count": 0}, "count"),
        ({"ids": []}, "no tokens"),
        ({"ids": ids * 40}, "the text has"),
    ]:
        with pytest.raises(UserError, match=said):
            next_token(model, bytes_alone, **{"ids": ids} | wrong)


def test_random_bytes_never_break_a_page(model, bytes_alone):
    chance = random.Random(0)
    for _ in range(20):
        ids = [chance.randrange(257) for _ in range(chance.randrange(1, 9))]
        found = next_token(model, bytes_alone, ids, count=4)
        assert sum(one.probability for one in found.candidates) + found.rest == pytest.approx(1, abs=1e-6)
        flat = [token for _, own in pieces(bytes_alone, ids) for token in own]
        assert flat == ids == list(itertools.chain(ids))
