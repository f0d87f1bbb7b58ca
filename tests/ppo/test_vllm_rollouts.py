"""PPO whose rollouts a vLLM server samples: proof at each hand-over, mismatch, truncated importance sampling."""

import math

import pytest
import torch
from datasets import Dataset

from rlhf_kit import ops
from rlhf_kit.errors import UserError
from rlhf_kit.generation.vllm.client import VLLMError
from rlhf_kit.ppo import PPOConfig
from tests.vllm_server import FakeVLLM

HELD_OUT = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in ("the cat", "a dog")])


@pytest.fixture
def made(make_trainer, tmp_path):
    def make(server, **options):
        fields = {"generation_backend": "vllm", "vllm_url": server.url, "vllm_sync_dir": str(tmp_path / "sync")}
        return make_trainer(**fields | {"temperature": 0.7, "vllm_timeout": 60.0, "seed": 3} | options)

    return make


def test_a_run_learns_from_log_probs_of_its_own(policy, made):
    with FakeVLLM(policy) as server:
        trainer = made(server, eval_dataset=HELD_OUT, eval_strategy="epoch")
        assert not [call for call in server.calls if "rpc" in call]  # nothing yet
        experience, metrics = trainer.collect([*trainer.prompts][:8], torch.Generator().manual_seed(2))
        rollout = experience.rollout
        assert rollout.values is None and experience.logprobs is not rollout.logprobs
        torch.testing.assert_close(experience.logprobs, rollout.logprobs, atol=1e-4, rtol=0)
        assert 0 < metrics["rollout/logprob_gap"] < 1e-5 and "rollout/importance_clipped" not in metrics
        trainer.train()
    logs = [log for log in trainer.state.log_history if "rollout/probe_gap" in log]
    assert len(logs) == 2 and all(0 < log["rollout/probe_gap"] <= 1e-4 for log in logs)
    evaluations = [log for log in trainer.state.log_history if "eval_win_rate" in log]
    assert evaluations and server.calls.count("POST /collective_rpc") == 3 + len(evaluations)


def test_a_server_that_dies_in_a_run_ends_it(policy, made):
    with FakeVLLM(policy) as server:
        trainer = made(server)
        trainer.collect([*trainer.prompts][:8], torch.Generator().manual_seed(2))
        server.faults.add("dead")
        with pytest.raises(VLLMError, match="dead server"):
            trainer.train()


# --- truncated importance sampling ----------------------------------------------------------------------------------


def test_importance_weights_by_hand():
    trainer, sampler = torch.tensor([[-1.0, -1.0, -2.0]]), torch.tensor([[-1.5, -3.0, -1.0]])
    expected = [[math.exp(0.5), 2.0, math.exp(-1.0)]]
    torch.testing.assert_close(ops.importance_weights(trainer, sampler, 2.0), torch.tensor(expected))
    far = ops.importance_weights(torch.tensor([0.0]), torch.tensor([-9999.0]), 1e30)
    assert far.item() == pytest.approx(math.exp(20), rel=1e-4)  # finite, as the update's own ratio


def test_a_tokens_whole_policy_loss_is_weighted_and_no_other(policy, made):
    """Weights times advantages are weights times losses, clipped ones too; values learn as they did."""
    rows = torch.arange(8)
    learnt = {}
    with FakeVLLM(policy, "wrong temperature") as server:  # a sampler that differs
        for cap in (None, 1.1):
            trainer = made(server, importance_cap=cap, vllm_probe_bound=100.0, whiten_advantages=False)
            learnt[cap], metrics = trainer.collect([*trainer.prompts][:8], torch.Generator().manual_seed(2))
    plain, capped = learnt.values()
    told, read, mask = capped.rollout.logprobs, capped.logprobs, capped.rollout.completion_mask
    weights = (read - told).exp().clamp(max=1.1)
    assert torch.equal(plain.rollout.completion_ids, capped.rollout.completion_ids)
    torch.testing.assert_close(capped.advantages, weights * plain.advantages)
    torch.testing.assert_close(capped.returns, plain.returns)
    assert 0.05 < weights[mask].eq(1.1).float().mean() < 0.95
    assert metrics["rollout/importance_clipped"] == pytest.approx(float(weights[mask].eq(1.1).float().mean()))
    gap = (read - told).abs()[mask].mean()
    assert metrics["rollout/logprob_gap"] == pytest.approx(float(gap), rel=1e-4)
    new = read + 0.5 * torch.randn(read.shape, generator=torch.Generator().manual_seed(0))
    losses, _, clipped = ops.ppo_policy_loss(new, read, plain.advantages, 0.2)
    weighted, _, _ = ops.ppo_policy_loss(new, read, capped.advantages, 0.2)
    torch.testing.assert_close(weighted, weights * losses)
    assert clipped[rows][mask].any()


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"generation_backend": "vllm"}, "needs vllm_url, the server, and vllm_sync_dir"),
        (
            {"generation_backend": "vllm", "vllm_url": "localhost:8000", "vllm_sync_dir": "a"},
            "must begin with http://",
        ),
        ({"vllm_url": "http://localhost:8000"}, "vllm_url=.* is read with generation_backend='vllm' alone"),
        ({"vllm_timeout": 9.0}, "vllm_timeout=9.0 is read with generation_backend='vllm' alone"),
        (
            {"importance_cap": 2.0, "generation_backend": "transformers"},
            "importance_cap needs the sampler's",
        ),
        ({"importance_cap": 0.0}, "importance_cap=0.0 must be above 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        PPOConfig("out", use_cpu=True, **options)
