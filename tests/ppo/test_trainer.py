"""The PPO trainer: each rule of the design has a test that goes red when its line is broken."""

import json
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback

from rlhf_kit.data.chat import encode_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.generation.backends import BACKENDS
from rlhf_kit.generation.sampling import Rollout, sample
from rlhf_kit.models.value import PolicyAndValue, ValueHead, completion_logprobs
from rlhf_kit.ppo import PPOConfig, PPOTrainer


def rows_of(trainer, count=8):
    return trainer.prompts[:count]


def inputs_of(prompt_ids, prompt_lengths, completion_ids, completion_lengths):
    ended = torch.ones(len(prompt_ids), dtype=torch.bool)
    return Rollout(prompt_ids, prompt_lengths, completion_ids, completion_lengths, ended).model_inputs()


def collected(trainer, count=8, seed=0):
    return trainer.collect(rows_of(trainer, count), torch.Generator().manual_seed(seed))


# --- Log-probs and values depend on the tokens only --------------------------------------------------------------


@pytest.mark.parametrize("left,right", [(0, 0), (5, 0), (0, 4), (3, 6)])
def test_padding_moves_neither_logprobs_nor_values(policy, left, right):
    module = PolicyAndValue(policy, None, ValueHead(32))
    torch.nn.init.normal_(module.value_head.weight)
    prompt, completion = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]])
    lengths = torch.tensor([3]), torch.tensor([2])
    plain = module(**inputs_of(prompt, lengths[0], completion, lengths[1]))
    wide_prompt = torch.nn.functional.pad(prompt, (left, 0), value=99)
    wide_completion = torch.nn.functional.pad(completion, (0, right), value=99)
    inputs = inputs_of(wide_prompt, lengths[0], wide_completion, lengths[1])
    wide = module(**inputs)
    torch.testing.assert_close(wide["logprobs"][:, :2], plain["logprobs"], atol=1e-5, rtol=0)
    torch.testing.assert_close(wide["values"][:, :3], plain["values"], atol=1e-5, rtol=0)


def test_logprobs_are_those_of_the_plain_model(policy):
    module = PolicyAndValue(policy, None, ValueHead(32))
    ids, completion = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[8, 9]])
    inputs = inputs_of(ids[:, :3], torch.tensor([3]), completion, torch.tensor([2]))
    expected = policy(ids).logits[:, 2:4].log_softmax(-1).gather(-1, completion[..., None]).squeeze(-1)
    torch.testing.assert_close(module(**inputs)["logprobs"], expected)


def test_values_read_the_state_before_each_token(policy):
    module = PolicyAndValue(policy, None, ValueHead(32))
    torch.nn.init.normal_(module.value_head.weight)
    ids, completion = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[8, 9]])
    inputs = inputs_of(ids[:, :3], torch.tensor([3]), completion, torch.tensor([2]))
    hidden = policy.transformer(ids).last_hidden_state[:, 2:5]  # the states before 8, before 9, after 9
    expected = (hidden @ module.value_head.weight.T).squeeze(-1)
    torch.testing.assert_close(module(**inputs)["values"], expected)


# --- A policy that does not move ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("value_model", ["shared", "separate"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_learning_rate_0_means_ratio_1_clip_0_kl_0(make_trainer, temperature, lora, value_model):
    peft_config = LoraConfig(r=4, lora_dropout=0.3, init_lora_weights=True) if lora else None
    trainer = make_trainer(
        learning_rate=0.0, peft_config=peft_config, value_model=value_model, temperature=temperature
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "policy/ratio" in log]
    assert len(logs) == 2
    for log in logs:
        assert abs(log["policy/ratio"] - 1) < 1e-6
        assert log["policy/clip_fraction"] == 0
        assert abs(log["kl"]) < 1e-5 and log["policy/approx_kl"] < 1e-9


@pytest.mark.parametrize("per_device", [4, 1])
@pytest.mark.parametrize("padding", ["none", "left", "right", "both"])
@pytest.mark.parametrize("pad_is_eos", [True, False], ids=["pad=eos", "pad!=eos"])
def test_learning_rate_0_whatever_the_padding(make_trainer, policy, tokenizer, pad_is_eos, padding, per_device):
    """Prompts of one or several lengths (left padding), completions likewise (right padding)."""
    if not pad_is_eos:
        tokenizer.pad_token = "!"
        assert tokenizer.pad_token_id != tokenizer.eos_token_id
    if padding in ("right", "both"):
        policy.generation_config.eos_token_id = list(range(60))
    words = ["hello"] * 16 if padding in ("none", "right") else ["hello " * (1 + i % 5) for i in range(16)]
    trainer = make_trainer(
        train_dataset=Dataset.from_dict({"prompt": words}),
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        learning_rate=0.0,
        per_device_train_batch_size=per_device,
    )
    experience, _ = collected(trainer)
    lengths = experience.rollout.completion_lengths.tolist()
    assert (len(set(lengths)) > 1) == (padding in ("right", "both"))
    trainer.train()
    for log in (log for log in trainer.state.log_history if "policy/ratio" in log):
        assert abs(log["policy/ratio"] - 1) < 1e-6
        assert log["policy/clip_fraction"] == 0 and log["policy/approx_kl"] < 1e-9 and abs(log["kl"]) < 1e-5


def test_dropout_is_off_everywhere(make_trainer, policy, reward_model):
    assert policy.config.resid_pdrop == 0.1
    trainer = make_trainer(reward_funcs=reward_model, peft_config=LoraConfig(lora_dropout=0.5))
    for model in (trainer.model, *trainer.rewards.models):
        assert all(m.p == 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))


# --- What is collected -------------------------------------------------------------------------------------------


def test_rewards_are_kl_a_token_and_the_score_at_the_end(make_trainer, policy):
    """Returns with gamma = lam = 1 add up to score - kl_coef * KL, the objective of the paper."""
    other = type(policy)(policy.config)
    trainer = make_trainer(ref_model=other, lam=1.0, kl_coef=0.3, reward_clip=None)
    experience, _ = collected(trainer)
    rollout = experience.rollout
    scores, _ = trainer.score(rows_of(trainer), rollout)
    kl = (experience.logprobs - trainer.reference_logprobs(rollout)) * rollout.completion_mask
    torch.testing.assert_close(experience.returns[:, 0], scores - 0.3 * kl.sum(1), atol=1e-4, rtol=1e-4)
    assert kl.abs().sum() > 1


def test_truncated_and_terminated_bootstrap_differently(make_trainer, policy):
    policy.generation_config.eos_token_id = list(range(0, 300, 2))
    trainer = make_trainer(
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        bootstrap_truncated=True,
        max_completion_length=2,
        kl_coef=0.0,
        lam=1.0,
    )
    torch.nn.init.constant_(trainer.model.value_head.bias, 5.0)  # V = 5 everywhere
    experience, _ = collected(trainer)
    ended = experience.rollout.terminated
    assert ended.any() and not ended.all()
    torch.testing.assert_close(experience.returns[ended][:, 0], torch.zeros(int(ended.sum())), atol=1e-5, rtol=0)
    torch.testing.assert_close(experience.returns[~ended][:, 0], torch.full((int((~ended).sum()),), 5.0))


def test_advantages_are_whitened_over_the_rollout(make_trainer):
    experience, _ = collected(make_trainer())
    kept = experience.advantages[experience.rollout.completion_mask]
    assert abs(kept.mean()) < 1e-5 and abs(kept.std(unbiased=False) - 1) < 1e-4


def test_kl_in_float32_and_named_right_in_the_logs(make_trainer, policy):
    other = type(policy)(policy.config)
    trainer = make_trainer(ref_model=other)
    experience, metrics = collected(trainer)
    mask = experience.rollout.completion_mask
    kl = experience.logprobs - trainer.reference_logprobs(experience.rollout)
    assert metrics["kl"] == pytest.approx(float((kl * mask).sum(1).mean()), rel=1e-5)
    assert metrics["kl_per_token"] == pytest.approx(float(kl[mask].mean()), rel=1e-5)
    assert experience.logprobs.dtype == experience.values.dtype == torch.float32


def test_the_reference_is_the_policy_as_handed_over(make_trainer, policy):
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    trainer = make_trainer(learning_rate=1e-2)
    trainer.train()
    assert any(not torch.equal(v, before[k]) for k, v in trainer.model.policy.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in trainer.ref_model.state_dict().items())


def test_under_lora_the_reference_is_the_model_without_adapters(make_trainer, policy):
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    trainer = make_trainer(learning_rate=1e-2, peft_config=LoraConfig(r=4))
    trainer.train()
    assert trainer.ref_model is None
    experience, metrics = collected(trainer)
    assert abs(metrics["kl"]) > 1e-4
    plain = type(policy)(policy.config)
    plain.load_state_dict(before)
    experience.rollout.pack = False
    expected = completion_logprobs(plain.eval(), experience.rollout.model_inputs()).detach()
    torch.testing.assert_close(trainer.reference_logprobs(experience.rollout), expected)


# --- The update --------------------------------------------------------------------------------------------------


def test_a_mini_batch_is_one_forward_unless_told(make_trainer):
    trainer = make_trainer(per_device_train_batch_size=None)
    assert trainer.args.per_device_train_batch_size == trainer.args.mini_batch_size
    assert trainer.args.gradient_accumulation_steps == 1
    assert make_trainer(per_device_train_batch_size=2).args.gradient_accumulation_steps == 2


def gradients(trainer, experience, per_device):
    trainer.args.per_device_train_batch_size = per_device
    trainer.args.gradient_accumulation_steps = 4 // per_device
    trainer.model.zero_grad()
    batches = list(trainer.minibatches(experience, torch.Generator().manual_seed(0)))
    for batch in batches[: trainer.args.gradient_accumulation_steps]:  # the first mini-batch
        trainer.compute_loss(trainer.model, batch).backward()
    return [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


def test_gradients_do_not_depend_on_the_micro_batch(make_trainer, policy):
    policy.generation_config.eos_token_id = list(range(60))  # completions of different lengths
    trainer = make_trainer()
    experience, _ = collected(trainer)
    assert len(set(experience.rollout.completion_lengths.tolist())) > 2
    whole = gradients(trainer, experience, 4)
    for per_device in (2, 1):
        for a, b in zip(whole, gradients(trainer, experience, per_device), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_every_completion_is_used_once_an_epoch(make_trainer):
    trainer = make_trainer(num_ppo_epochs=3)
    experience, _ = collected(trainer)
    batches = list(trainer.minibatches(experience, torch.Generator().manual_seed(0)))
    assert len(batches) == 3 * 2 * 2  # epochs x mini-batches x micro-batches
    whole = sorted(tuple(c) for c in experience.rollout.completions())
    for epoch in range(3):
        seen = []
        for batch in batches[epoch * 4 : epoch * 4 + 4]:
            lengths = batch["completion_mask"].sum(1).tolist()
            seen += [tuple(ids[:n]) for ids, n in zip(batch["completion_ids"].tolist(), lengths, strict=True)]
        assert sorted(seen) == whole


def test_the_end_token_is_trained(make_trainer, policy, tokenizer):
    """pad == eos, and a reward for short answers: ending at once gets likelier."""
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    with torch.no_grad():  # an end token about as likely as any other, so that it is met at all
        policy.transformer.wte.weight[tokenizer.eos_token_id] *= 0.1
    trainer = make_trainer(
        total_episodes=8 * 40, learning_rate=3e-3, kl_coef=0.0, num_ppo_epochs=2, lr_scheduler_type="constant"
    )

    def share_of_ends():
        prompt = torch.tensor([rows_of(trainer)[0]["prompt_ids"]])
        return float(trainer.model.policy(prompt).logits[0, -1].softmax(-1)[tokenizer.eos_token_id])

    before = share_of_ends()
    trainer.train()
    assert share_of_ends() > max(2 * before, 0.05)


def test_optimizer_steps_are_epochs_times_mini_batches_on_the_last_rollout_too(make_trainer, prompts):
    trainer = make_trainer(total_episodes=20, num_ppo_epochs=3)  # 20 episodes are 2.5 rollouts: 3 are run
    trainer.train()
    assert trainer.state.global_step == 3 * 3 * 2
    small = make_trainer(train_dataset=prompts.select(range(3)), total_episodes=8)  # fewer prompts than a rollout
    small.train()
    assert small.state.global_step == 2 * 2


def test_gradients_are_clipped(make_trainer, policy):
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    trainer = make_trainer(max_grad_norm=1e-9, optim="sgd", learning_rate=1.0)
    trainer.train()
    change = max(float((v - before[k]).abs().max()) for k, v in trainer.model.policy.state_dict().items())
    assert change < 1e-7


def test_adaptive_kl_by_hand(make_trainer, policy):
    trainer = make_trainer(ref_model=type(policy)(policy.config), kl_target=0.001, kl_horizon=80, kl_coef=0.1)
    trainer.train()  # KL far above the target: +0.2 * 8 / 80 a rollout, twice
    assert trainer.kl_controller.coef == pytest.approx(0.1 * 1.02**2)


def test_value_learning_rate_moves_the_value_head_alone(make_trainer, policy):
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    trainer = make_trainer(learning_rate=0.0, value_learning_rate=1e-2)
    trainer.train()
    assert trainer.model.value_head.weight.abs().sum() > 0
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.policy.state_dict().items())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("value_model", ["shared", "separate", "reward"])
def test_the_value_function_learns(make_trainer, reward_model, value_model, lora):
    trainer = make_trainer(
        reward_funcs=reward_model,
        value_model=value_model,
        peft_config=LoraConfig(r=4) if lora else None,
        total_episodes=8 * 12,
        learning_rate=0.0,
        value_learning_rate=1e-2,
        kl_coef=0.0,
        vf_coef=1.0,
        lr_scheduler_type="constant",
    )
    torch.nn.init.constant_(trainer.model.value_head.bias, 2.0)
    trainer.train()
    losses = [log["loss/value"] for log in trainer.state.log_history if "loss/value" in log]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_value_from_the_reward_model_starts_as_its_calibrated_score(make_trainer, reward_model):
    reward_model.config.reward_gain, reward_model.config.reward_bias = 3.0, -1.0
    trainer = make_trainer(reward_funcs=reward_model, value_model="reward")
    head = trainer.model.value_head
    torch.testing.assert_close(head.weight.data, 3 * reward_model.score.weight.data)
    assert head.bias.item() == -1.0


# --- The run: evaluate, save, resume -----------------------------------------------------------------------------


def test_saved_policy_is_a_plain_model_that_generates_the_same(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    prompt = torch.tensor([rows_of(trainer)[0]["prompt_ids"]])
    options = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)
    ours = trainer.model.policy.eval().generate(prompt, **options)
    assert torch.equal(plain.generate(prompt, **options), ours)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step


@pytest.mark.parametrize(
    "options",
    [{}, {"peft_config": LoraConfig(r=4)}, {"value_model": "separate"}, {"generation_backend": "transformers"}],
    ids=str,
)
def test_resume_is_exact(make_trainer, policy, tmp_path, options):
    settings = dict(total_episodes=32, kl_target=1.0, kl_horizon=50, save_strategy="steps", save_steps=8, **options)
    start = {k: v.clone() for k, v in policy.state_dict().items()}

    def fresh(folder, **more):
        model = type(policy)(policy.config)
        model.load_state_dict(start)
        return make_trainer(model=model, output_dir=str(tmp_path / folder), **settings, **more)

    torch.manual_seed(0)
    whole = fresh("whole")
    whole.train()
    fresh("halves", callbacks=[StopAt(8)]).train()
    resumed = fresh("halves")
    resumed.train(resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-8"))
    assert resumed.state.global_step == whole.state.global_step == 16
    assert resumed.kl_controller.coef == whole.kl_controller.coef != 0.05
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_save_inside_a_rollout_waits_for_its_end(make_trainer, tmp_path):
    trainer = make_trainer(total_episodes=32, save_strategy="steps", save_steps=3)
    trainer.train()
    saved = sorted(int(p.name.split("-")[1]) for p in (tmp_path / "run").glob("checkpoint-*"))
    assert saved == [4, 8, 12, 16]  # 4 steps a rollout
    state = json.loads((tmp_path / "run" / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["global_step"] == 8 and state["epoch"] == 1.0  # 16 of 16 prompts


def test_evaluate_reports_reward_kl_length(make_trainer, prompts):
    trainer = make_trainer(eval_dataset=prompts.select(range(5)))
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first == second
    assert abs(first["eval_kl"]) < 1e-4 and 0 < first["eval_length"] <= 10 and first["eval_reward"] < 0


@pytest.mark.parametrize("size, slots", [(None, 4), (3, 3)])
def test_no_more_is_sampled_at_once_than_a_rollout_has(make_trainer, prompts, monkeypatch, size, slots):
    """An evaluation of sixteen prompts in a run of rollouts of four."""
    asked = []
    monkeypatch.setitem(BACKENDS, "pool", lambda *a, **k: asked.append(k["batch_size"]) or sample(*a, **k))
    trainer = make_trainer(eval_dataset=prompts, rollout_batch_size=4, generation_batch_size=size)
    trainer.evaluate()
    assert asked == [slots, slots]  # the policy's answers and the reference's


# --- Rewards -----------------------------------------------------------------------------------------------------


def test_functions_get_text_columns_and_state(make_trainer):
    seen = {}

    def look(prompts, completions, completion_ids, tag, trainer_state, **rest):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, tag=tag, state=trainer_state)
        return [0.0] * len(prompts)

    trainer = make_trainer(reward_funcs=look)
    experience, _ = collected(trainer)
    assert seen["tag"] == list(range(8)) and seen["state"] is trainer.state
    assert seen["ids"] == experience.rollout.completions()
    assert seen["completions"][0][0]["role"] == "assistant" and seen["prompts"][0][0]["role"] == "user"


def test_weights_none_and_coroutines(make_trainer):
    async def half(completions, **_):
        return [1.0 if i % 2 else None for i in range(len(completions))]

    trainer = make_trainer(
        reward_funcs=[lambda completions, **_: [3.0] * len(completions), half], reward_weights=[2.0, 10.0]
    )
    scores, parts = trainer.score(rows_of(trainer), collected(trainer)[0].rollout)
    assert scores.tolist() == [6.0, 16.0] * 4
    assert parts["half"].isnan().tolist() == [True, False] * 4


@pytest.mark.parametrize(
    "function,message",
    [
        (lambda completions, **_: [math.nan] * len(completions), "returned nan for the completion"),
        (lambda completions, **_: [None] * len(completions), "No reward function scored"),
        (lambda completions, **_: [1.0], "returned 1 scores for 8 completions"),
        (lambda completions, **_: 1 / 0, "raised ZeroDivisionError"),
    ],
    ids=["nan", "none", "count", "raises"],
)
def test_a_bad_reward_is_named(make_trainer, function, message):
    with pytest.raises(UserError, match=message):
        collected(make_trainer(reward_funcs=function))


# --- Bad input ---------------------------------------------------------------------------------------------------


def test_a_prompt_that_leaves_no_room_is_refused(make_trainer, prompts):
    long = Dataset.from_list([{"prompt": "hello"}, {"prompt": "word " * 200}])
    with pytest.raises(UserError, match=r"1 of 2 prompts are too long. The longest, row 2, has \d+ tokens"):
        make_trainer(train_dataset=long)


def test_a_prompt_may_leave_just_the_room_of_a_completion(make_trainer, tokenizer):
    """128 positions, completions of 10: a prompt of 118 tokens fits and one of 119 does not."""
    fitting = "x" * (118 - len(encode_prompt(tokenizer, "x")) + 1)
    assert len(encode_prompt(tokenizer, fitting)) == 118
    assert len(make_trainer(train_dataset=Dataset.from_list([{"prompt": fitting}])).prompts) == 1
    with pytest.raises(UserError, match="row 1, has 119 tokens"):
        make_trainer(train_dataset=Dataset.from_list([{"prompt": fitting + "x"}]))


def test_a_reward_model_with_two_labels_is_refused(make_trainer, reward_model):
    reward_model.config.num_labels = 2
    with pytest.raises(UserError, match="has 2 labels"):
        make_trainer(reward_funcs=reward_model)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"mini_batch_size": 3}, "rollout_batch_size=8 must be a multiple of mini_batch_size=3"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"kl_estimator": "k2"}, "kl_estimator='k2'"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps follows"),
        (
            {"bootstrap_truncated": True, "missing_eos_penalty": 1.0},
            "bootstrap_truncated and missing_eos_penalty exclude each other",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, settings, message):
    fields = {"rollout_batch_size": 8, "mini_batch_size": 4, "use_cpu": True, **settings}
    with pytest.raises(UserError, match=message):
        PPOConfig(str(tmp_path), **fields)


def test_value_model_names_are_checked(make_trainer):
    with pytest.raises(UserError, match="needs exactly one reward model; reward_funcs has 0"):
        make_trainer(value_model="reward")
    with pytest.raises(UserError, match="'share' is not one of shared, separate, reward"):
        make_trainer(value_model="share")


def test_a_dataset_without_rows_is_refused(policy, tokenizer, tmp_path):
    with pytest.raises(UserError, match="train_dataset holds no rows"):
        PPOTrainer(policy, lambda **_: [], PPOConfig(str(tmp_path), use_cpu=True), None, processing_class=tokenizer)
