"""What a finished PPO run says of an answer: its own numbers, of the same tokens, read back from its folder."""

import json
import shutil
from pathlib import Path

import pandas
import pytest
import torch

from rlhf_kit.chat.speakers import Speakers
from rlhf_kit.models.checkpoints import load_reward_model
from rlhf_kit.stages import ppo
from rlhf_kit.stages.replay import Missing, PPORun, Replays
from tests.tiny_stages import QUIET, run_command

PPO = [
    *("--rollout_batch_size", "4", "--mini_batch_size", "2", "--num_ppo_epochs", "1", "--total_episodes", "12"),
    *("--max_completion_length", "5", "--learning_rate", "1e-2", "--save_steps", "2", "--save_total_limit", "9"),
    *("--log_completions", "--temperature", "0.8", "--kl_coef", "0.3", "--max_grad_norm", "10"),
]
LORA = ["--use_peft", "--lora_r", "4"]


class Kept(ppo.PPOTrainer):
    """Keeps itself and what it collects."""

    last: "Kept"

    def collect(self, rows, generator, training=True):
        Kept.last = self
        experience, metrics = super().collect(rows, generator, training)
        self.seen = [*getattr(self, "seen", []), (rows, experience, metrics)]
        return experience, metrics


@pytest.fixture
def home(policy, reward_model, tokenizer, tmp_path, monkeypatch):
    """A policy, a reward model whose scores differ, prompts, and the folder that runs are started from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ppo, "PPOTrainer", Kept)
    torch.nn.init.normal_(reward_model.score.weight)
    for name, model in (("base", policy), ("reward", reward_model)):
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    prompts = [{"prompt": [{"role": "user", "content": f"say {at}"}]} for at in range(4)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return tmp_path


def trained(*more: str, rewards=("reward",)) -> Kept:
    named = ["--model_name_or_path", "base", "--dataset_name", "prompts.jsonl", "--reward_funcs", *rewards]
    assert run_command("ppo", [*named, "--output_dir", "runs/ppo", *PPO, *QUIET, *more]) == 0
    return Kept.last


def replayed(place: str, rows, rollout, replays=None) -> list:
    """Of each sampled completion of a rollout, by a policy's folder."""
    with Speakers({"ppo": place, "sft": "base"}) as speakers:
        replays = replays or Replays()
        return [
            replays(Path(place), speakers["ppo"], speakers["sft"], row["prompt"], ids)
            for row, ids in zip(rows, rollout.completions(), strict=True)
        ]


@pytest.mark.parametrize("kind", ["", "k3", "lora", "sharp"])
def test_the_numbers_are_those_that_the_run_logged(kind, home):
    """Of its second rollout, which the policy of the first checkpoint sampled."""
    more = {"": [], "k3": ["--kl_estimator", "k3"], "lora": LORA, "sharp": ["--sharpening_coef", "0.5"]}[kind]
    trainer = trained("--lam", "1", *more)
    rows, experience, metrics = trainer.seen[1]
    seen = replayed("runs/ppo/checkpoint-2", rows, experience.rollout)
    logged = [json.loads(line) for line in Path("runs/ppo/metrics.jsonl").read_text().splitlines()]
    logged = next(row for row in logged if row["step"] == 4)
    assert abs(logged["kl"]) > 0.01 and not any(one.missing for one in seen)
    assert sum(one.change.kl for one in seen) / 4 == pytest.approx(logged["kl"], abs=1e-5)
    table = pandas.read_parquet("runs/ppo/completions/completions_00004.parquet")
    assert [one.score.total for one in seen] == pytest.approx(table["score"].tolist(), abs=1e-5)
    assert [one.score.raw for one in seen] == pytest.approx(table["rewards/reward"].tolist(), abs=1e-5)
    assert {one.score.no_end for one in seen} <= {0.0, 1.0} and 1.0 in {one.score.no_end for one in seen}
    lengths = experience.rollout.completion_lengths.tolist()
    for number, (one, length) in enumerate(zip(seen, lengths, strict=True)):
        values = [token.value for token in one.change.tokens]
        assert values == pytest.approx(experience.values[number, :length].tolist(), abs=1e-4)
        paid = [token.reward - token.penalty for token in one.change.tokens]
        assert paid == pytest.approx([0.0] * (length - 1) + [one.score.total], abs=1e-5)
        total = sum(token.reward for token in one.change.tokens)  # what lambda 1 returns to the first
        assert total == pytest.approx(experience.returns[number, 0].item(), abs=1e-4)
    if kind == "k3":  # never negative, so that the penalty never is a gain
        assert max(token.penalty for one in seen for token in one.change.tokens) <= 0


@pytest.mark.parametrize("more", [["separate"], ["separate", *LORA], ["reward"], ["base", *LORA]])
def test_a_value_function_on_a_trunk_of_its_own_is_the_trainers(more, home):
    trainer = trained("--value_model", *more)
    rows, experience, _ = trainer.seen[-1]
    expected = trainer.read_tokens(experience.rollout).values
    seen = replayed("runs/ppo", rows, experience.rollout)
    lengths = experience.rollout.completion_lengths.tolist()
    for number, (one, length) in enumerate(zip(seen, lengths, strict=True)):
        values = [token.value for token in one.change.tokens]
        assert values == pytest.approx(expected[number, :length].tolist(), abs=1e-4) and any(values)


def test_scores_are_scaled_clipped_and_penalised_as_the_run_does(home):
    shape = ["--reward_scaling", "--reward_clip", "0.7", "--missing_eos_penalty", "0.4"]
    trainer = trained(*shape, "--reward_weights", "3", "0", rewards=("reward", "tests.rewards:brief"))
    rows, experience, _ = trainer.seen[-1]
    seen = replayed("runs/ppo", rows, experience.rollout)
    assert [one.score.total for one in seen] == pytest.approx(experience.scores.tolist(), abs=1e-5)
    assert seen[0].score.names == ["reward"] and max(abs(one.score.shaped) for one in seen) == pytest.approx(0.7)


def test_an_ensemble_is_one_reward(home):
    other = load_reward_model("reward")
    other.score.weight.data.neg_()
    shutil.copytree("reward", "other")
    other.save_pretrained("other")
    trainer = trained(
        *("--reward_ensemble", "min", "--reward_weights", "2", "0"),
        rewards=("reward", "other", "tests.rewards:brief"),
    )
    rows, experience, _ = trainer.seen[-1]
    seen = replayed("runs/ppo", rows, experience.rollout)
    assert [one.score.total for one in seen] == pytest.approx(experience.scores.tolist(), abs=1e-5)


def test_an_adaptive_coefficient_is_the_one_it_came_to(home):
    trainer = trained("--kl_target", "0.01", "--kl_horizon", "10")
    rows, experience, _ = trainer.seen[-1]
    (one, *_) = replayed("runs/ppo", rows, experience.rollout)
    assert one.kl_coef == trainer.kl_controller.coef != 0.3 and one.temperature == 0.8


def test_what_is_not_there_is_told_by_name(home, monkeypatch):
    trainer = trained("--value_model", "reward")
    rows, experience, _ = trainer.seen[-1]
    replays = Replays()
    before = replayed("runs/ppo", rows, experience.rollout, replays)
    monkeypatch.chdir("/")  # by `output_dir` it is known where the run was started
    run = PPORun(home / "runs/ppo")
    assert run.rewards(trainer.processing_class).names == ["reward"] and run.value().trunk is not None
    monkeypatch.chdir(home)
    shutil.rmtree("reward")
    assert [one.score for one in replayed("runs/ppo", rows, experience.rollout, replays)] == [
        one.score for one in before
    ]  # it was loaded once
    (one, *_) = replayed("runs/ppo", rows, experience.rollout)
    assert one.score is None and [type(fault) for fault in one.missing] == [Missing, Missing]
    said = [text for fault in one.missing for text in fault.said]
    assert "reward model reward is not on this machine" in said[0] and "沒有獎勵模型 reward" in said[1]
    assert "made from reward" in said[2] and "價值函數是從 reward" in said[3]
    assert [token.reward for token in one.change.tokens] == [token.penalty for token in one.change.tokens]
    assert one.change.tokens[0].value is None
    Path("runs/ppo/value.safetensors").unlink()
    with pytest.raises(Missing, match=r"runs/ppo/value.safetensors is not there"):
        PPORun(Path("runs/ppo")).value()
    with pytest.raises(Missing, match="No PPO run is recorded beside base"):
        PPORun(Path("base"))
    with Speakers({"base": "base"}) as speakers:
        plain = Replays()(Path("base"), speakers["base"], speakers["base"], "hello", "the cat")
    assert plain.kl_coef is None and plain.change.kl == 0 and len(plain.missing) == 1


def test_a_reward_that_is_a_function_is_not_run(home):
    trainer = trained(rewards=("reward", "tests.rewards:brief"))
    rows, experience, _ = trainer.seen[-1]
    (one, *_) = replayed("runs/ppo", rows, experience.rollout)
    assert one.score is None and "function tests.rewards:brief, which is not run here" in str(one.missing[0])


def test_a_value_function_of_another_shape_is_none(home):
    trained("--value_model", "separate")
    record = json.loads(Path("runs/ppo/run.json").read_text())
    record["config"] |= {"use_peft": True}
    Path("runs/ppo/run.json").write_text(json.dumps(record))
    with pytest.raises(Missing, match="of another shape"):
        PPORun(Path("runs/ppo")).value()


def test_a_moving_average_has_the_runs_coefficient_and_no_value_function(home):
    trainer = trained("--ema_decay", "0.5")
    rows, experience, _ = trainer.seen[-1]
    (one, *_) = replayed("runs/ppo/ema", rows, experience.rollout)
    assert one.kl_coef == 0.3 and one.score is not None and "runs/ppo/ema/value.safetensors" in str(one.missing[0])
