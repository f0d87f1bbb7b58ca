"""What PPO can be asked for beyond the plain update: warm-up, scaling, ptx, EMA, budgets, the best checkpoint."""

import json
import logging
import math

import pandas
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, RwkvConfig, RwkvForCausalLM

from rlhf_kit import ops
from rlhf_kit.errors import UserError
from rlhf_kit.ppo.experience import RunningStd
from rlhf_kit.ppo.loop import MovingAverage
from rlhf_kit.ppo.prompts import PretrainingTexts, next_token_mask

TEXTS = Dataset.from_dict({"text": ["the cat sat on the mat", "hello dog", "so did the dog, and so on", "the mat"]})


def logs_of(trainer, name):
    return [log[name] for log in trainer.state.log_history if name in log]


# --- The value function's start ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_in_the_warm_up_only_the_value_function_learns(make_trainer, policy, value_model):
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    trainer = make_trainer(value_warmup_rollouts=2, total_episodes=16, value_model=value_model)  # 2 rollouts in all
    trainer.train()
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.policy.state_dict().items())
    assert trainer.model.value_head.weight.abs().sum() > 0
    longer = make_trainer(value_warmup_rollouts=1, total_episodes=16, value_model=value_model)
    longer.train()
    assert any(not torch.equal(v, before[k]) for k, v in longer.model.policy.state_dict().items())


def test_a_backend_that_cannot_sample_the_policy_is_refused_before_anything_runs(make_trainer, tokenizer):
    config = RwkvConfig(
        vocab_size=len(tokenizer), hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, context_length=64
    )
    with pytest.raises(UserError, match="RwkvForCausalLM cannot be sampled from by transformers' generate"):
        make_trainer(model=RwkvForCausalLM(config), generation_backend="transformers")


# --- Rewards -----------------------------------------------------------------------------------------------------


def test_running_std_is_that_of_all_scores_so_far():
    moments, scores = RunningStd(), torch.randn(3, 7) * 4 + 2
    for batch in scores:
        moments.update(batch, lambda x: x)
    assert moments.std == pytest.approx(float(scores.std(unbiased=False)), rel=1e-5)
    assert moments.mean == pytest.approx(float(scores.mean()), rel=1e-4)
    assert RunningStd().std == 1.0


def test_reward_scaling_divides_by_the_running_std_before_the_clip(make_trainer):
    def steps(completions, **_):
        return [float(i) * 100 for i in range(len(completions))]

    trainer = make_trainer(reward_funcs=steps, reward_scaling=True, reward_clip=3.0)
    experience, metrics = trainer.collect(trainer.prompts[:8], torch.Generator().manual_seed(0))
    scale = math.sqrt(sum((i * 100 - 350) ** 2 for i in range(8)) / 8)
    expected = torch.tensor([min(i * 100 / scale, 3.0) for i in range(8)])
    torch.testing.assert_close(experience.scores, expected)
    assert metrics["reward/scale"] == pytest.approx(scale)
    # An evaluation neither uses the scale nor moves it.
    experience, _ = trainer.collect(trainer.prompts[:8], torch.Generator().manual_seed(0), training=False)
    assert experience.scores.tolist() == [0.0] + [3.0] * 7 and trainer.reward_std.count == 8


def test_a_raising_reward_names_itself_and_a_sample(make_trainer):
    def broken(completions, **_):
        raise KeyError("topic")

    with pytest.raises(UserError, match=r"'broken' raised KeyError: 'topic'. It was given 8 completions, the first"):
        make_trainer(reward_funcs=broken).train()


def test_a_reward_that_fails_later_keeps_the_last_checkpoint(make_trainer, tmp_path):
    def late(completions, trainer_state, **_):
        return [math.nan if trainer_state.global_step >= 8 else 1.0] * len(completions)

    trainer = make_trainer(reward_funcs=late, total_episodes=32, save_strategy="steps", save_steps=4)
    with pytest.raises(UserError, match="'late' returned nan for the completion"):
        trainer.train()
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]


# --- Numbers that are none ---------------------------------------------------------------------------------------


def test_a_nan_names_the_tensor_that_went_first(make_trainer):
    trainer = make_trainer()
    trainer.model.value_head.weight.data.fill_(math.nan)
    with pytest.raises(UserError, match="The values became NaN or infinite in a rollout. The last checkpoint"):
        trainer.train()


@pytest.mark.parametrize("where,name", [("wte", "The new log-probs of the policy"), ("head", "The new values")])
def test_a_nan_of_the_update_is_named_before_the_weights_are_touched(make_trainer, where, name):
    trainer = make_trainer()
    collect = trainer.collect

    def then_break(*args, **options):
        collected = collect(*args, **options)
        broken = trainer.model.policy.transformer.wte if where == "wte" else trainer.model.value_head
        broken.weight.data[0] = math.nan
        return collected

    trainer.collect = then_break
    with pytest.raises(UserError, match=f"{name} became NaN or infinite in optimizer step 1"):
        trainer.train()
    assert trainer.state.global_step == 0


# --- The loss ----------------------------------------------------------------------------------------------------


def test_the_entropy_bonus_raises_entropy(make_trainer):
    def end(coef):
        trainer = make_trainer(
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            entropy_coef=coef,
            kl_coef=0.0,
            whiten_advantages=False,
            total_episodes=8 * 20,
        )
        trainer.train()
        assert ("loss/entropy" in trainer.state.log_history[0]) == (coef > 0)
        return logs_of(trainer, "entropy")[-1]

    without = end(0.0)  # the first: both train the same model
    assert end(1.0) > without + 0.1


def test_ptx_gradient_is_the_mean_cross_entropy_of_the_texts(make_trainer, policy, tokenizer):
    """On top of PPO's own gradient, whatever the micro-batch."""

    def gradients(per_device, **options):
        trainer = make_trainer(per_device_train_batch_size=per_device, **options)
        trainer.model.zero_grad()
        experience, _ = trainer.collect(trainer.prompts[:8], torch.Generator().manual_seed(0))
        batches = list(trainer.minibatches(experience, torch.Generator().manual_seed(0)))
        for batch in batches[: 4 // per_device]:
            trainer.compute_loss(trainer.model, batch).backward()
        return {name: p.grad.clone() for name, p in trainer.model.policy.named_parameters()}

    with_texts = dict(ptx_dataset=TEXTS, ptx_coef=0.7, ptx_batch_size=4, shuffle_dataset=False)
    plain, mixed, split = gradients(4), gradients(4, **with_texts), gradients(1, **with_texts)
    policy.zero_grad()
    ids = [tokenizer(row["text"])["input_ids"] + [tokenizer.eos_token_id] for row in TEXTS]
    losses = [-ops.token_logprobs(policy(torch.tensor([row])).logits[0, :-1], torch.tensor(row[1:])) for row in ids]
    (0.7 * torch.cat(losses).mean()).backward()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(mixed[name] - plain[name], parameter.grad, atol=2e-5, rtol=1e-3)
        torch.testing.assert_close(split[name], mixed[name], atol=1e-5, rtol=1e-3)


def test_ptx_learns_its_texts_and_uses_them_all(make_trainer, tokenizer):
    trainer = make_trainer(ptx_dataset=TEXTS, ptx_coef=5.0, ptx_batch_size=2, total_episodes=8 * 10)
    trainer.train()
    losses = logs_of(trainer, "loss/ptx")
    assert losses[-1] < losses[0] - 1
    texts = PretrainingTexts(TEXTS, tokenizer, max_length=4)
    assert {len(row) for row in texts.rows} <= {2, 3, 4}
    seen = [ids for step in range(3) for part in texts.batches(step, trainer.args) for ids in part["ptx_lengths"]]
    assert len(seen) == 3 * 2
    assert next_token_mask(torch.tensor([3, 1]), 4).int().tolist() == [[1, 1, 0], [0, 0, 0]]


def test_ptx_texts_are_dealt_out_evenly(make_trainer):
    with pytest.raises(UserError, match="ptx_batch_size=3 must be a multiple of 2"):
        make_trainer(ptx_dataset=TEXTS, ptx_coef=1.0, ptx_batch_size=3)


@pytest.mark.parametrize("options", [{"ptx_coef": 1.0}, {"ptx_dataset": TEXTS}])
def test_ptx_needs_both_coefficient_and_texts(make_trainer, options):
    with pytest.raises(UserError, match="go together: give both or neither"):
        make_trainer(**options)


# --- The moving average ------------------------------------------------------------------------------------------


def test_moving_average_by_hand():
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    average = MovingAverage(layer, 0.9)
    layer.weight.data.fill_(2.0)
    average.update()
    average.update()
    assert average.average["weight"].item() == pytest.approx(1 + 0.1 + 0.09)
    with average.applied():
        assert layer.weight.item() == pytest.approx(1.19)
    assert layer.weight.item() == 2.0


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_average_is_saved_beside_the_policy_and_resumed(make_trainer, policy, tmp_path, lora):
    start = {k: v.clone() for k, v in policy.state_dict().items()}

    def fresh(folder):
        model = type(policy)(policy.config)
        model.load_state_dict(start)
        options = {"peft_config": LoraConfig(r=4)} if lora else {}
        return make_trainer(
            model=model, output_dir=str(tmp_path / folder), ema_decay=0.9, reward_scaling=True, save_strategy="steps",
            save_steps=4, total_episodes=16, **options,
        )  # fmt: skip

    whole = fresh("whole")
    whole.train()
    halves = fresh("halves")
    halves.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, weight in whole.ema.average.items():
        assert torch.equal(weight, halves.ema.average[name]), name
    assert vars(whole.reward_std) == vars(halves.reward_std) and whole.reward_std.count == 16
    if not lora:
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-8" / "ema")
        for name, weight in saved.named_parameters():
            torch.testing.assert_close(weight.data, whole.ema.average[name])
            assert not torch.equal(weight.data, whole.model.policy.get_parameter(name).data) or name.endswith(
                "wpe.weight"
            )


# --- Budgets, evaluation, the best checkpoint --------------------------------------------------------------------


def test_the_run_stops_at_its_kl_budget(make_trainer, policy, caplog):
    trainer = make_trainer(ref_model=type(policy)(policy.config), max_kl=0.01)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 0 and "passed max_kl=0.01" in caplog.text
    free = make_trainer(max_kl=1e6)
    free.train()
    assert free.state.global_step == 8


def test_win_rate_counts_ties_as_half(make_trainer, policy, prompts):
    trainer = make_trainer(eval_dataset=prompts.select(range(6)), ref_model=type(policy)(policy.config))
    rows, seed = trainer.eval_prompts, trainer.args.seed
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    others = torch.tensor([0.0, 2.0, 4.0, 3.0, 5.0, 7.0])  # won, even, lost, won, even, lost
    trainer.evaluation.reference_scores = others
    trainer.score = lambda rows, rollout: (scores, {"own": scores})
    assert trainer.evaluate()["eval_win_rate"] == pytest.approx(0.5)
    trainer.evaluation.reference_scores = scores - 1
    assert trainer.evaluate()["eval_win_rate"] == 1.0
    del trainer.score
    ours = trainer.score(rows, trainer.sample(rows, torch.Generator().manual_seed(seed)))[0]
    theirs = trainer.evaluation.scores_of_reference(rows)
    assert not torch.equal(ours, theirs)  # the reference is another model, and it is the one that was asked


def test_a_policy_that_is_its_reference_wins_half(make_trainer, prompts):
    trainer = make_trainer(eval_dataset=prompts.select(range(5)))
    assert trainer.evaluate()["eval_win_rate"] == 0.5
    lora = make_trainer(eval_dataset=prompts.select(range(5)), peft_config=LoraConfig(r=4))
    assert lora.evaluate()["eval_win_rate"] == 0.5


def test_the_best_checkpoint_is_loaded_and_early_stopping_stops(make_trainer, prompts, tmp_path):
    worse = iter(range(1000))
    trainer = make_trainer(
        reward_funcs=lambda completions, **_: [-float(next(worse))] * len(completions),  # every look is a worse one
        reward_clip=None,
        eval_dataset=prompts.select(range(4)),
        total_episodes=8 * 10,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
        greater_is_better=True,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()
    assert trainer.state.global_step == 12  # best at 4, patience for 8 and 12
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-4")
    for name, weight in best.state_dict().items():
        assert torch.equal(weight, trainer.model.policy.state_dict()[name]), name


# --- Logs --------------------------------------------------------------------------------------------------------


def test_completions_are_kept_and_shown(make_trainer, tmp_path, capsys):
    trainer = make_trainer(log_completions=True, num_completions_to_print=2)
    trainer.train()
    files = sorted((tmp_path / "run" / "completions").iterdir())
    assert [file.name for file in files] == ["completions_00004.parquet", "completions_00008.parquet"]
    table = pandas.read_parquet(files[0])
    assert len(table) == 8 and {"step", "prompt", "completion", "score", "rewards/brief"} == set(table.columns)
    assert table["prompt"].str.startswith("hello").all() and (table["score"] <= 0).all()
    assert "step 8" in capsys.readouterr().err


def test_completions_of_an_evaluation_are_kept_too(make_trainer, prompts, tmp_path, capsys):
    trainer = make_trainer(log_completions=True, eval_dataset=prompts, eval_strategy="steps", eval_steps=8)
    trainer.train()
    files = sorted(file.name for file in (tmp_path / "run" / "completions").iterdir())
    assert files == ["completions_00004.parquet", "completions_00008.parquet", "eval_completions_00008.parquet"]
    table = pandas.read_parquet(tmp_path / "run" / "completions" / files[2])
    assert len(table) == len(trainer.eval_prompts) and table["score"].mean() == pytest.approx(
        next(log["eval_reward"] for log in trainer.state.log_history if "eval_reward" in log)
    )
    assert "eval_completions, step 8" in capsys.readouterr().err


def test_the_phases_are_timed_and_the_speed_is_told(make_trainer):
    trainer = make_trainer()
    trainer.train()
    log = next(log for log in trainer.state.log_history if "seconds/update" in log)
    parts = [log[f"seconds/{name}"] for name in ("rollout", "score", "reference")]
    assert all(x > 0 for x in parts) and sum(parts) <= log["seconds/collect"]
    assert log["rollout/tokens_per_second"] > 0
    assert json.dumps(log)


# --- bf16 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_bf16_trains_to_the_same_weights_with_casts_held_or_not(make_trainer, policy, monkeypatch, lora):
    """Held over the micro-batches of a step, they must be forgotten before the weights change."""
    start = {k: v.clone() for k, v in policy.state_dict().items()}

    def run():
        model = type(policy)(policy.config)
        model.load_state_dict(start)
        torch.manual_seed(0)
        options = {"peft_config": LoraConfig(r=4)} if lora else {}
        trainer = make_trainer(model=model, bf16=True, learning_rate=1e-2, **options)
        trainer.train()
        return trainer.model.state_dict()

    held = run()
    monkeypatch.setattr("rlhf_kit.models.precision.HeldCasts.hold", lambda self: None)
    for (name, weight), other in zip(held.items(), run().values(), strict=True):
        assert torch.equal(weight, other), name


def test_bf16_keeps_logprobs_in_float32_and_old_ones_from_the_training_forward(make_trainer):
    trainer = make_trainer(bf16=True, learning_rate=0.0)
    experience, _ = trainer.collect(trainer.prompts[:8], torch.Generator().manual_seed(0))
    assert experience.logprobs.dtype == torch.float32 and experience.rollout.values is None
    trainer.train()
    for ratio in logs_of(trainer, "policy/ratio"):
        assert abs(ratio - 1) < 1e-3
