"""What PPO did to each token, against a plain forward and PPO's own arithmetic."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlhf_kit import ops
from rlhf_kit.chat.speakers import Speakers
from rlhf_kit.chat.tokens import change, shared_value_head
from rlhf_kit.errors import UserError

PROMPT = "Where does Sam live?"


@pytest.fixture
def speakers(policy, tokenizer, tmp_path):
    """SFT, a PPO that has moved from it and has a value head, and one with a token more."""
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
    size = policy.config.hidden_size
    head = {"value_head.weight": torch.randn(1, size), "value_head.bias": torch.randn(1)}
    save_file(head, tmp_path / "ppo" / "value.safetensors")
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
    head = shared_value_head(Path(speakers.places["ppo"]))
    seen = change(ppo, sft, PROMPT, own, kl_coef=0.2, score=1.5, temperature=temperature, value_head=head)
    (logprobs, states), (ref, _) = plain(ppo, ids, own, temperature), plain(sft, ids, own, temperature)
    assert [one.logprob for one in seen.tokens] == pytest.approx(logprobs.tolist(), abs=1e-5)
    assert [one.reference for one in seen.tokens] == pytest.approx(ref.tolist(), abs=1e-5)
    assert [one.value for one in seen.tokens] == pytest.approx(head(states).tolist(), abs=1e-4)
    kl = logprobs - ref
    assert seen.kl == pytest.approx(kl.sum().item(), abs=1e-4) and abs(seen.kl) > 0.01
    rewards = ops.token_rewards(torch.tensor([1.5]), kl[None], torch.ones(1, 4, dtype=torch.bool), 0.2)[0]
    assert [one.reward for one in seen.tokens] == pytest.approx(rewards.tolist(), abs=1e-5)
    assert seen.probability == pytest.approx(math.exp(logprobs.sum().item()), rel=1e-4)
    assert shared_value_head(Path(speakers.places["sft"])) is None


def test_a_model_beside_itself_has_changed_nothing(speakers):
    seen = change(speakers["sft"], speakers["sft"], PROMPT, [5, 9], kl_coef=0.2, score=1.0)
    assert seen.kl == 0 and [one.reward for one in seen.tokens] == [0, 1] and seen.tokens[0].value is None


def test_sure_and_wrong_is_the_probability_of_a_wrong_answer(speakers):
    sft = speakers["sft"]
    ids = sft.tokenizer(" I live in the sea.", add_special_tokens=False).input_ids
    seen = change(sft, sft, PROMPT, ids)
    assert seen.correct is False and seen.sure_and_wrong == seen.probability > 0
    assert change(sft, sft, "Is this of the world?", ids).sure_and_wrong is None


def test_two_tokenizers_are_refused_by_name(speakers):
    with pytest.raises(UserError, match="'sft' and 'other' have different tokenizers"):
        change(speakers["sft"], speakers["other"], PROMPT, [5])
    for own in ([], [5] * 500):
        with pytest.raises(UserError, match="at least 1 is needed"):
            change(speakers["sft"], speakers["sft"], PROMPT, own)
