"""What PPO did to each token, against a plain forward and PPO's own arithmetic."""

import math

import pytest
import torch

from rlhf_kit import ops
from rlhf_kit.chat.speakers import Speakers
from rlhf_kit.chat.tokens import Value, answer, change
from rlhf_kit.data.chat import encode_dialogue
from rlhf_kit.errors import UserError
from rlhf_kit.models.value import ValueHead

PROMPT = "Where does Sam live?"


@pytest.fixture
def speakers(policy, tokenizer, tmp_path):
    """SFT, a PPO that has moved from it, and one with a token more."""
    torch.manual_seed(0)
    for name in ("sft", "ppo", "other"):
        if name == "ppo":
            for weight in policy.parameters():
                weight.data += 0.05 * torch.randn_like(weight)
        if name == "other":
            tokenizer.add_tokens(["<new>"])
            policy.resize_token_embeddings(len(tokenizer))
        policy.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    with Speakers({name: tmp_path / name for name in ("sft", "ppo", "other")}) as speakers:
        yield speakers


@torch.no_grad()
def plain(speaker, ids, own, temperature):
    """Log-probs and the last hidden states before each token."""
    output = speaker.engine.model(torch.tensor([[*ids, *own]]), output_hidden_states=True)
    logprobs = (output.logits[0, len(ids) - 1 : -1].float() / temperature).log_softmax(-1)
    states = output.hidden_states[-1][0, len(ids) - 1 : -1]
    return logprobs.gather(1, torch.tensor(own)[:, None]).squeeze(1), states


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_numbers_are_those_of_a_plain_forward_and_of_ppo(temperature, speakers):
    ppo, sft = speakers["ppo"], speakers["sft"]
    ids, own = ppo.encode([{"role": "user", "content": PROMPT}]), [5, 9, 30, ppo.ends[0]]
    head = ValueHead(ppo.engine.model.config.hidden_size)
    torch.nn.init.normal_(head.weight)
    shape = {"temperature": temperature, "value": Value(None, head)}
    seen = change(ppo, sft, PROMPT, own, kl_coef=0.2, score=1.5, **shape)
    (logprobs, states), (ref, _) = plain(ppo, ids, own, temperature), plain(sft, ids, own, temperature)
    assert [one.logprob for one in seen.tokens] == pytest.approx(logprobs.tolist(), abs=1e-5)
    assert [one.reference for one in seen.tokens] == pytest.approx(ref.tolist(), abs=1e-5)
    assert [one.value for one in seen.tokens] == pytest.approx(head(states).tolist(), abs=1e-4)
    kl = logprobs - ref
    assert seen.kl == pytest.approx(kl.sum().item(), abs=1e-4) and abs(seen.kl) > 0.01
    rewards = ops.token_rewards(torch.tensor([1.5]), kl[None], torch.ones(1, 4, dtype=torch.bool), 0.2)[0]
    assert [one.reward for one in seen.tokens] == pytest.approx(rewards.tolist(), abs=1e-5)
    assert seen.probability == pytest.approx(math.exp(logprobs.sum().item()), rel=1e-4)
    k3 = (-kl).expm1() + kl
    seen = change(ppo, sft, PROMPT, own, kl_coef=0.2, kl_estimator="k3", **shape)
    assert [one.penalty for one in seen.tokens] == pytest.approx((-0.2 * k3).tolist(), abs=1e-5)
    sharp = change(ppo, sft, PROMPT, own, kl_coef=0.2, sharpening_coef=0.5, **shape)
    assert [one.penalty for one in sharp.tokens] == pytest.approx((0.5 * ref - 0.2 * kl).tolist(), abs=1e-5)
    assert [one.kl for one in seen.tokens] == pytest.approx(kl.tolist(), abs=1e-5)


def test_a_model_beside_itself_has_changed_nothing(speakers):
    seen = change(speakers["sft"], speakers["sft"], PROMPT, [5, 9], kl_coef=0.2, score=1.0)
    assert seen.kl == 0 and [one.reward for one in seen.tokens] == [0, 1] and seen.tokens[0].value is None


def test_sure_and_wrong_is_the_probability_of_a_wrong_answer(speakers):
    sft = speakers["sft"]
    ids = sft.tokenizer(" I live in the sea.", add_special_tokens=False).input_ids
    seen = change(sft, sft, PROMPT, ids)
    assert seen.correct is False and seen.sure_and_wrong == seen.probability > 0
    assert change(sft, sft, "Is this of the world?", ids).sure_and_wrong is None


def test_a_text_has_the_tokens_of_the_dialogue_that_sft_trains_on(speakers):
    sft = speakers["sft"]
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the cat"}]
    turns += [{"role": "user", "content": PROMPT}]
    whole, _ = encode_dialogue(sft.tokenizer, [*turns, {"role": "assistant", "content": "on the mat"}])
    ids = [one.id for one in change(sft, sft, turns, " on the mat ").tokens]
    assert sft.encode(turns) + ids == whole and ids[-1] in sft.ends
    texts = [one.text for one in change(sft, sft, PROMPT, "山 cat").tokens]  # of three tokens, of which two are a part
    assert "山" in texts and not any("\ufffd" in text for text in texts)
    cut = answer(sft, turns, "on the mat", ended=False)
    assert cut.completions() == [ids[:-1]] and not cut.terminated
    assert answer(sft, turns, "on the mat").terminated


def test_two_tokenizers_are_refused_by_name(speakers):
    with pytest.raises(UserError, match="'sft' and 'other' have different tokenizers"):
        change(speakers["sft"], speakers["other"], PROMPT, [5])
    for own in ([], [5] * 500):
        with pytest.raises(UserError, match="at least 1 is needed"):
            change(speakers["sft"], speakers["sft"], PROMPT, own)
    with pytest.raises(UserError, match="beyond the vocabulary"):
        change(speakers["sft"], speakers["sft"], PROMPT, [5, 100_000])
