"""An ensemble of reward models as one of PPO's rewards."""

import copy

import pytest
import torch

from rlhf_kit.errors import UserError
from rlhf_kit.models.ensemble import Ensemble
from rlhf_kit.models.heads import score_texts, set_calibration
from rlhf_kit.ppo.rewards import Rewards
from tests.ppo.conftest import brief

PROMPT = [{"role": "user", "content": "hello"}]


@pytest.fixture
def ensemble(reward_model, tokenizer):
    other = copy.deepcopy(reward_model)
    for model, gain in ((reward_model, 1.0), (other, 3.0)):
        model.score.weight.data.normal_()
        set_calibration(model.config, gain, 0.5)
    return Ensemble([reward_model.train(), other], [tokenizer] * 2, "min")


def test_it_is_one_reward_among_others(ensemble, tokenizer):
    rewards = Rewards([brief, ensemble], None, [1.0, 2.0], tokenizer, batch_size=8)
    texts = ["the cat", "dog"]
    total, parts = rewards([PROMPT] * 2, texts, [[1], [2]], {})
    each = torch.stack([score_texts(model, tokenizer, [PROMPT] * 2, texts) for model in ensemble.models])
    assert list(parts) == ["brief", "ensemble-min"]
    torch.testing.assert_close(parts["ensemble-min"], each.amin(0))
    torch.testing.assert_close(total, parts["brief"] + 2 * each.amin(0))
    torch.testing.assert_close(rewards.disagreement, (each[0] - each[1]).abs() / 2)  # of two the population std


def test_its_models_are_frozen_and_moved(ensemble, tokenizer):
    rewards = Rewards(ensemble, None, None, tokenizer, batch_size=8).to("meta")
    assert rewards.models == ensemble.models
    for model in ensemble.models:
        assert model.device.type == "meta" and not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p]


def test_ppo_trains_against_it(make_trainer, ensemble):
    trainer = make_trainer(reward_funcs=[ensemble], total_episodes=8)
    trainer.train()
    assert trainer.state.log_history[0]["reward/ensemble_std"] == pytest.approx(
        float(trainer.rewards.disagreement.mean())
    )
    scores = [log["rewards/ensemble-min"] for log in trainer.state.log_history if "rewards/ensemble-min" in log]
    assert scores and trainer.state.global_step == 4


def test_no_value_function_starts_from_several_models(make_trainer, ensemble):
    with pytest.raises(UserError, match="needs exactly one reward model; reward_funcs has 2"):
        make_trainer(reward_funcs=[ensemble], value_model="reward")


def test_rewards_of_one_name_are_told_apart(reward_model, tokenizer, tmp_path):
    """Two folders a/reward and b/reward: both count, each once."""
    for folder, bias in (("a", 1.0), ("b", 10.0)):
        set_calibration(reward_model.config, 1.0, bias)
        reward_model.save_pretrained(tmp_path / folder / "reward")
        tokenizer.save_pretrained(tmp_path / folder / "reward")
    names = [str(tmp_path / folder / "reward") for folder in ("a", "b")]
    total, parts = Rewards(names, None, None, tokenizer, batch_size=8)([PROMPT], ["dog"], [[1]], {})
    assert list(parts) == ["reward-1", "reward-2"]
    assert (parts["reward-2"] - parts["reward-1"]).item() == pytest.approx(9.0)
    torch.testing.assert_close(total, parts["reward-1"] + parts["reward-2"])
