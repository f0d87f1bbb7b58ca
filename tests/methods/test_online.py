"""RLOO and GRPO: TRL's log-probs are the model's own, scores are PPO's, and without learning the KL is 0."""

import json
from collections import Counter

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

from rlhf_kit.data.chat import decode_completion, encode_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.methods.grpo import GRPOTrainer
from rlhf_kit.methods.online import GroupSampler
from rlhf_kit.methods.online_config import GRPOConfig, RLOOConfig
from rlhf_kit.methods.positions import follow_mask, positions_of
from rlhf_kit.methods.rloo import RLOOTrainer
from rlhf_kit.models.checkpoints import end_ids
from rlhf_kit.models.forward import copied
from rlhf_kit.models.heads import score_texts
from rlhf_kit.ppo.prompts import prompt_order
from tests.methods.apart import answer_logprobs, moved

KINDS = {"rloo": (RLOOTrainer, RLOOConfig, trl.RLOOTrainer, trl.RLOOConfig)}
KINDS["grpo"] = (GRPOTrainer, GRPOConfig, trl.GRPOTrainer, trl.GRPOConfig)
PROMPTS = [
    {"prompt": [{"role": "user", "content": text}], "topic": at}
    for at, text in enumerate(["hi", "say hello to the cat, and so on", "the dog", "on the mat, the mat"])
]
OPTIONS = {"max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 2, "max_completion_length": 6}
OPTIONS |= {"report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "logging_steps": 1}
OPTIONS |= {"gradient_checkpointing": False, "learning_rate": 1e-3}


def length(completions, **_):
    return [float(len(completion[0]["content"])) for completion in completions]


def make(
    kind, policy, tokenizer, folder, reward_funcs=length, rows=PROMPTS, peft_config=None, ref_model=None, **options
):
    trainer, config, *_ = KINDS[kind]
    args = config(str(folder), **OPTIONS | options)
    return trainer(
        policy,
        reward_funcs,
        args,
        list(rows),
        processing_class=tokenizer,
        peft_config=peft_config,
        ref_model=ref_model,
    )


def generated(trainer):
    """One generation of all prompts, as the loss reads it."""
    trainer.model.train()
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


def rows_of(batch):
    """(prompts, completions) of a batch, without padding."""
    parts = (("prompt_ids", "prompt_mask"), ("completion_ids", "completion_mask"))
    return [
        [ids[mask.bool()].tolist() for ids, mask in zip(batch[name], batch[kept], strict=True)] for name, kept in parts
    ]


def logprobs_of(trainer, batch, model=None):
    ids, mask = (torch.cat([batch[f"prompt_{x}"], batch[f"completion_{x}"]], 1) for x in ("ids", "mask"))
    width = batch["completion_ids"].shape[1]
    return trainer._get_per_token_logps_and_entropies(model or trainer.model, ids, mask, width)[0].detach()


def error(found, model, batch):
    prompts, completions = rows_of(batch)
    apart = answer_logprobs(model.eval(), prompts, completions)
    return ((found - apart) * batch["completion_mask"]).abs().max().item()


@pytest.mark.parametrize("kind", KINDS)
def test_plain_trl_is_wrong_on_gpt2_and_this_is_not(kind, policy, tokenizer, tmp_path):
    """Left padding without positions, and dropout: how far TRL's own log-probs are off, and that nothing is left."""
    _, _, plain_trainer, plain_config = KINDS[kind]
    twin, rows = copied(policy), Dataset.from_list(PROMPTS)
    args = plain_config(str(tmp_path), **OPTIONS | {"beta": 0.0})
    plain = plain_trainer(twin, length, args, rows, processing_class=tokenizer)
    batch = generated(plain)
    assert len({*batch["prompt_mask"].sum(1).tolist()}) > 1  # of several lengths, so padded
    both = error(logprobs_of(plain, batch), twin, batch)
    plain.model.eval()
    positions = error(logprobs_of(plain, batch), twin, batch)
    trainer = make(kind, policy, tokenizer, tmp_path)
    own = generated(trainer)
    mended = error(logprobs_of(trainer, own), policy, own)
    assert both > 0.1 and positions > 0.1 and mended < 2e-6
    reference = moved(policy)
    trainer = make(kind, policy, tokenizer, tmp_path, ref_model=reference)
    assert error(logprobs_of(trainer, own, trainer.ref_model), reference, own) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_ends_and_scores_are_those_of_ppo(kind, policy, tokenizer, reward_model, tmp_path):
    """A reward model reads what PPO gives it, and so does a function, with the columns of its rows."""
    given = {}

    def look(prompts, completions, completion_ids, topic, trainer_state):
        given.update(prompts=prompts, completions=completions, ids=completion_ids, topic=topic)
        return [1.0] * len(prompts)

    reward_model.config.pad_token_id = tokenizer.pad_token_id
    trainer = make(kind, policy, tokenizer, tmp_path, [reward_model, look], beta=0.0)
    assert trainer.eos_token_ids == end_ids(policy, tokenizer) == trainer.generation_config.eos_token_id
    scored = []
    score = trainer.rewards.part
    trainer.rewards.part = lambda at, *rest, **more: scored.append(score(at, *rest, **more)) or scored[-1]
    prompts, completions = rows_of(generated(trainer))
    assert prompts == [encode_prompt(tokenizer, prompt) for prompt in given["prompts"]]
    assert completions == given["ids"] and {*given["topic"]} == {0, 1, 2, 3}
    assert [PROMPTS[at]["prompt"] for at in given["topic"]] == given["prompts"]
    texts = [decode_completion(tokenizer, ids) for ids in completions]
    assert [completion[0]["content"] for completion in given["completions"]] == texts
    expected = score_texts(reward_model, tokenizer, given["prompts"], texts)
    torch.testing.assert_close(scored[0], expected, atol=1e-6, rtol=0)
    for prompt, text, value in zip(given["prompts"], texts, scored[0].tolist(), strict=True):  # whatever its batch
        assert abs(score_texts(reward_model, tokenizer, [prompt], [text]).item() - value) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)], ids=["whole", "lora"])
def test_without_learning_the_policy_stays_on_its_reference(kind, lora, policy, tokenizer, tmp_path):
    trainer = make(kind, policy, tokenizer, tmp_path, peft_config=lora, learning_rate=0.0)
    assert lora is None or {*trainer.model.peft_config} == {"default"} and trainer.ref_model is None
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == 2 and all(abs(row["kl"]) < 1e-6 for row in logs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_papers_by_log_probs_computed_apart(kind, policy, tokenizer, tmp_path):
    """On the policy that sampled the ratio is 1: the value is that of advantages and penalty."""
    reference = moved(policy)
    trainer = make(kind, policy, tokenizer, tmp_path, ref_model=copied(reference), beta=0.3, num_generations=4)
    trainer.sets[0] = [*trainer.sets[0]]
    batch = generated(trainer)
    prompts, completions = rows_of(batch)
    ratio = answer_logprobs(policy.eval(), prompts, completions) - answer_logprobs(reference, prompts, completions)
    rewards = torch.tensor([float(len(decode_completion(tokenizer, ids))) for ids in completions])
    mask = batch["completion_mask"]
    if kind == "rloo":
        rewards = (rewards - 0.3 * ratio.sum(1)).view(-1, 4)
        advantages = (rewards - (rewards.sum(1, keepdim=True) - rewards) / 3).view(-1)
        expected = -advantages.mean()
    else:
        groups = rewards.view(-1, 4)
        advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).view(-1)
        k3 = torch.exp(-ratio) + ratio - 1
        expected = ((0.3 * k3 - advantages[:, None]) * mask).sum(1).div(mask.sum(1)).mean()
    torch.testing.assert_close(batch["advantages"], advantages, atol=1e-4, rtol=1e-4)
    trainer.current_gradient_accumulation_steps = 1
    found = trainer.compute_loss(trainer.model, batch).item()
    assert abs(found - expected.item()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_policy_as_it_was_handed_over(kind, policy, tokenizer, tmp_path):
    policy.config._name_or_path = str(tmp_path / "nowhere")
    before = copied(policy).state_dict()
    trainer = make(kind, policy, tokenizer, tmp_path)
    trainer.train()
    assert trainer.args.beta == trainer.beta > 0
    assert all(torch.equal(before[name], weight) for name, weight in trainer.ref_model.policy.state_dict().items())
    assert any((weight != before[name]).any() for name, weight in trainer.model.state_dict().items())
    assert make(kind, policy, tokenizer, tmp_path, beta=0.0).ref_model is None


SIZES = {"hidden_size": 32, "vocab_size": 300}
LLAMA = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "attention_dropout": 0.5}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["rotary", "no position_ids"])
def test_positions_are_right_for_other_families(kind, family, tokenizer, tmp_path):
    torch.manual_seed(0)
    if family == "rotary":
        model = LlamaForCausalLM(LlamaConfig(**SIZES, **LLAMA, max_position_embeddings=128))
    else:
        model = BloomForCausalLM(BloomConfig(**SIZES, n_layer=2, n_head=2, hidden_dropout=0.2))
    trainer = make(kind, model, tokenizer, tmp_path)
    batch = generated(trainer)
    assert error(logprobs_of(trainer, batch), model, batch) < 2e-6
    trainer.train()


def test_a_pass_takes_up_the_prompts_where_the_last_ended():
    sampler = GroupSampler(5, 2, 2, 3, seed=1, shuffle=True)
    passes = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        passes.append([*sampler])
        assert len(passes[-1]) == len(sampler) == 2 * 2 * 3 * 2
    first = passes[0][:12]
    assert first[:4] == first[4:8] == first[8:] and first[0] == first[1] != first[2] == first[3]
    assert len({tuple(each) for each in passes}) > 1
    taken = Counter(row for each in passes for row in each)
    assert {*taken.values()} == {4 * 6}  # 20 places of 5 prompts, each of them 6 times: none is left out
    sampler.set_epoch(3)
    assert [*sampler] == passes[3]
    assert len(GroupSampler(1, 2, 4, 1, 0, True)) == 8  # fewer prompts than a generation has: they come round again


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_takes_the_prompts_in_the_order_of_ppos(kind, policy, tokenizer, tmp_path):
    topics = []

    def look(completions, topic, **_):
        topics.extend(topic[::2])
        return [0.0] * len(completions)

    make(kind, policy, tokenizer, tmp_path, look, max_steps=4, per_device_train_batch_size=4, seed=3).train()
    assert topics == prompt_order(4, range(8), seed=3) and topics[:4] != topics[4:]


def test_a_model_that_takes_no_positions_gets_none():
    class Plain(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return input_ids

    model = Plain()
    follow_mask(model)
    ids = torch.tensor([[0, 5, 6]])
    assert model(input_ids=ids, attention_mask=torch.tensor([[0, 1, 1]])) is ids
    assert positions_of(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_cut_off_in_its_second_pass_goes_on_to_the_same_end(kind, policy, tokenizer, tmp_path):
    ends = []
    options = {"max_steps": 8, "save_steps": 6, "num_iterations": 2, "per_device_train_batch_size": 4}
    for folder in ("whole", "cut"):
        trainer = make(kind, copied(policy), tokenizer, tmp_path / folder, **options)
        trainer.train(str(tmp_path / "whole" / "checkpoint-6") if folder == "cut" else None)
        ends.append(trainer.model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    logged = [
        json.loads((tmp_path / folder / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
        for folder in ("whole", "cut")
    ]
    for first, second in zip(*logged, strict=True):
        assert {k: v for k, v in first.items() if k != "step_time"} == {
            k: v for k, v in second.items() if k != "step_time"
        }


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_are_written_between_generations_alone(kind, policy, tokenizer, tmp_path):
    trainer = make(kind, policy, tokenizer, tmp_path, num_iterations=2, save_steps=1, max_steps=3)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2"]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_samples_whole_groups(kind, policy, tokenizer, tmp_path):
    trainer = make(kind, policy, tokenizer, tmp_path, per_device_eval_batch_size=6)
    report = trainer.evaluate(PROMPTS[:3])
    assert report["eval_reward"] > 0 and abs(report["eval_kl"]) < 1e-6
    with pytest.raises(UserError, match="per_device_eval_batch_size=5 must be a multiple of the 2 completions"):
        make(kind, policy, tokenizer, tmp_path, per_device_eval_batch_size=5).evaluate(PROMPTS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options, message",
    [
        ({"top_p": 0.9, "top_k": 5}, "top_p=0.9: a token would be drawn .*; top_k=5: "),
        ({"disable_dropout": False}, "disable_dropout=False: "),
        ({"use_vllm": True}, "use_vllm=True: `generate` samples here"),
        ({"vllm_server_port": 1}, "vllm_server_port=1: nothing reads it unless use_vllm is True"),
        ({"num_completions_to_print": 3}, "num_completions_to_print=3: nothing reads it unless log_completions"),
        ({"sync_ref_model": True}, "sync_ref_model=True: the reference stays"),
        ({"generation_batch_size": 8}, "generation_batch_size follows from the others"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"num_generations": 1}, "num_generations=1 must be at least 2"),
        ({"per_device_train_batch_size": 5}, "must be divisible by num_generations"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "does not run under DeepSpeed's ZeRO stage 3"),
    ],
)
def test_options_that_contradict_it_are_refused(kind, options, message, policy, tokenizer, tmp_path):
    with pytest.raises(UserError, match=message):
        make(kind, policy, tokenizer, tmp_path, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loss_type": "gpro"}, "loss_type='gpro' is not one of .*Did you mean 'grpo'"),
        ({"vespo_k_pos": 3.0}, "vespo_k_pos=3.0: nothing reads it unless loss_type is vespo"),
        ({"loss_type": "sapo", "epsilon": 0.1}, "epsilon=0.1: nothing reads it"),
        ({"entropy_target": 0.1}, "unless use_adaptive_entropy is True"),
        ({"cast_lm_head_to_fp32": True}, "cast_lm_head_to_fp32=True"),
    ],
)
def test_grpos_own_options_are_looked_at(options, message, policy, tokenizer, tmp_path):
    with pytest.raises(UserError, match=message):
        make("grpo", policy, tokenizer, tmp_path, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_penalty_nothing_reads_a_reference(kind, policy, tokenizer, tmp_path):
    with pytest.raises(UserError, match="with beta=0 nothing reads the reference"):
        make(kind, policy, tokenizer, tmp_path, beta=0.0, ref_model=moved(policy))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options, steps",
    [
        ({"per_device_train_batch_size": 4}, 2),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_iterations": 2}, 4),
        ({"per_device_train_batch_size": 2, "steps_per_generation": 4, "num_train_epochs": 2}, 8),
        ({"per_device_train_batch_size": 16}, 1),  # fewer prompts than a generation has
    ],
)
def test_a_plan_counts_the_steps_of_a_run(kind, options, steps, policy, tokenizer, tmp_path):
    trainer = make(kind, policy, tokenizer, tmp_path, **{"num_train_epochs": 1} | options | {"max_steps": -1})
    assert trainer.args.steps(len(PROMPTS)) == steps
    trainer.train()
    assert trainer.state.global_step == steps
