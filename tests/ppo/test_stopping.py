"""Where a run ends, and where it may pause: the KL budget, the end of a rollout."""

import json
import logging

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from rlhf_kit.errors import UserError
from rlhf_kit.training.checkpoints import seal


def at_step(trainer, kl):
    """The trainer with a KL that passes any budget from a rollout on; what was sampled is counted."""
    collect, sampled = trainer.collect, []

    def counted(rows, generator, training=True):
        experience, metrics = collect(rows, generator, training)
        if training:
            sampled.append(trainer.state.global_step)
            metrics["kl"] = kl(trainer.state.global_step)
        return experience, metrics

    trainer.collect = counted
    return sampled


def weights(trainer):
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


# --- The KL budget -----------------------------------------------------------------------------------------------


def test_max_kl_stops_the_sampling_too(make_trainer, caplog, tmp_path):
    trainer = make_trainer(max_kl=1.0, total_episodes=8 * 10, logging_steps=1000, save_strategy="steps", save_steps=8)
    sampled = at_step(trainer, lambda step: 2.5 if step >= 12 else 0.5)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert sampled == [0, 4, 8, 12]  # not one rollout more
    assert trainer.state.global_step == 12
    assert trainer.stop_reason == "the KL of 2.50 nats passed max_kl=1"
    assert "Stopped after 12 steps: the KL of 2.50 nats passed max_kl=1." in caplog.text
    # What was not logged yet is, and there is a checkpoint of the end.
    assert [log["step"] for log in trainer.state.log_history if "policy/ratio" in log] == [12]
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]


def test_a_run_that_max_kl_stopped_goes_on_with_a_larger_one(make_trainer, policy, tmp_path):
    start = {name: weight.clone() for name, weight in policy.state_dict().items()}

    def fresh(folder, **options):
        model = type(policy)(policy.config)
        model.load_state_dict(start)
        torch.manual_seed(0)
        trainer = make_trainer(
            model=model, output_dir=str(tmp_path / folder), total_episodes=32, save_strategy="steps", save_steps=100,
            **options,
        )  # fmt: skip
        return trainer, at_step(trainer, lambda step: 1.0 if step < 8 else 3.0)

    whole, _ = fresh("whole")
    whole.train()
    first, sampled = fresh("halves", max_kl=2.0)
    first.train()
    assert sampled == [0, 4, 8]
    checkpoint = str(tmp_path / "halves" / "checkpoint-8")
    again, sampled = fresh("halves", max_kl=2.0)
    again.train(resume_from_checkpoint=checkpoint)
    assert sampled == [8] and again.state.global_step == 8 and again.stop_reason == first.stop_reason
    on, sampled = fresh("halves", max_kl=5.0)
    on.train(resume_from_checkpoint=checkpoint)
    assert sampled == [8, 12] and on.stop_reason is None
    for (name, a), b in zip(weights(whole).items(), weights(on).values(), strict=True):
        assert torch.equal(a, b), name


def test_the_best_model_is_loaded_after_max_kl(make_trainer, prompts):
    rewards = iter([1.0, 5.0] + [1.0] * 100)  # of the evaluations: the second is best
    trainer = make_trainer(
        eval_dataset=prompts.select(range(4)), total_episodes=8 * 10, eval_strategy="steps", eval_steps=4,
        save_strategy="steps", save_steps=4, load_best_model_at_end=True, metric_for_best_model="eval_reward",
        greater_is_better=True, max_kl=1.0, callbacks=[EarlyStoppingCallback(early_stopping_patience=50)],
    )  # fmt: skip
    at_step(trainer, lambda step: 3.0 if step >= 16 else 0.5)
    evaluation = trainer.evaluation
    trainer.evaluation = lambda *given, **options: evaluation(*given, **options) | {"reward": next(rewards)}
    kept = {}
    trainer.add_callback(_Keeps(kept, trainer, 8))
    trainer.train()
    assert trainer.state.global_step == 16 and trainer.state.best_model_checkpoint.endswith("checkpoint-8")
    for name, weight in trainer.model.policy.state_dict().items():
        assert torch.equal(weight, kept[f"policy.{name}"]), name


class _Keeps(TrainerCallback):
    def __init__(self, kept, trainer, step):
        self.kept, self.trainer, self.step = kept, trainer, step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.kept.update(weights(self.trainer))


# --- The end of a rollout ----------------------------------------------------------------------------------------


def test_checkpoints_are_of_rollout_ends_and_resume_to_the_unbroken_run(make_trainer, policy, prompts, tmp_path):
    """`max_steps` ends a run inside a rollout: going on from its last checkpoint shifts no boundary."""
    start = {name: weight.clone() for name, weight in policy.state_dict().items()}
    options = dict(save_strategy="steps", save_steps=3, logging_steps=3, eval_strategy="steps", eval_steps=6)

    def fresh(folder, **more):
        model = type(policy)(policy.config)
        model.load_state_dict(start)
        torch.manual_seed(0)
        return make_trainer(
            model=model, output_dir=str(tmp_path / folder), eval_dataset=prompts.select(range(3)),
            lr_scheduler_type="constant", **options, **more,
        )  # fmt: skip

    def steps_of(trainer, name):
        return [log["step"] for log in trainer.state.log_history if name in log]

    whole = fresh("whole", max_steps=14)  # 3.5 rollouts of 4
    whole.train()
    assert whole.state.global_step == 14
    first = fresh("halves", max_steps=6)
    first.train()
    folder = tmp_path / "halves"
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-4"]
    on = fresh("halves", max_steps=14)
    on.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert sorted(int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*")) == [4, 8, 12]
    for name in ("policy/ratio", "eval_reward"):
        assert steps_of(on, name) == steps_of(whole, name), name
    assert steps_of(on, "policy/ratio") == [4, 8, 12] and steps_of(on, "eval_reward") == [8, 12, 14]
    for (name, a), b in zip(weights(whole).items(), weights(on).values(), strict=True):
        assert torch.equal(a, b), name


def test_an_epoch_is_a_pass_over_the_prompts(make_trainer, prompts, tmp_path):
    """16 prompts, 8 a rollout of 4 steps: two rollouts a pass. The best checkpoint is of a rollout's end too."""
    options = dict(total_episodes=40, save_strategy="epoch", logging_strategy="epoch", eval_strategy="epoch")
    trainer = make_trainer(eval_dataset=prompts.select(range(2)), **options)
    trainer.train()
    saved = sorted(int(p.name.split("-")[1]) for p in (tmp_path / "run").glob("checkpoint-*"))
    assert saved == [8, 16, 20]  # two passes and the end
    for name in ("policy/ratio", "eval_reward"):
        assert [log["step"] for log in trainer.state.log_history if name in log] == [8, 16, 20], name
    best = make_trainer(
        eval_dataset=prompts.select(range(2)), output_dir=str(tmp_path / "best"), max_steps=6, eval_strategy="steps",
        eval_steps=6, save_strategy="best", metric_for_best_model="eval_reward",
    )  # fmt: skip
    best.train()
    assert not list((tmp_path / "best").glob("checkpoint-*"))  # step 6 is inside a rollout


def test_a_checkpoint_inside_a_rollout_is_refused(make_trainer, tmp_path):
    """Whoever wrote it: the rollout is gone, and to begin another would shift all that follow."""
    trainer = make_trainer(total_episodes=16, save_strategy="steps", save_steps=4)
    trainer.train()
    folder = tmp_path / "run" / "checkpoint-4"
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps(state | {"global_step": 3}))
    seal(folder)  # or what it records would tell the edit
    with pytest.raises(UserError, match="step 3 was saved inside a rollout of 4 optimizer steps"):
        make_trainer(total_episodes=32).train(resume_from_checkpoint=str(folder))


@pytest.mark.parametrize("other", [{"num_ppo_epochs": 4}, {"rollout_batch_size": 16}, {"mini_batch_size": 8}], ids=str)
def test_other_rollouts_than_the_checkpoint_s_are_refused(make_trainer, tmp_path, other):
    make_trainer(total_episodes=16, save_strategy="steps", save_steps=4).train()
    names = "num_ppo_epochs=2, rollout_batch_size=8 and mini_batch_size=4"
    with pytest.raises(UserError, match=f"checkpoint-8' was saved with {names}"):
        make_trainer(total_episodes=64, **other).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8"))
