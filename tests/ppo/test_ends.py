"""What ends a completion, and what it costs not to end."""

import pytest
import torch
from datasets import Dataset
from families import FAMILIES, model_of, tokenizer_of
from torch import nn

from rlhf_kit.models.checkpoints import end_ids
from rlhf_kit.ppo import PPOConfig, PPOTrainer, best_of_n


def collect(trainer):
    return trainer.collect(trainer.prompts[:8], torch.Generator().manual_seed(3))


@pytest.mark.parametrize("shape", [{}, {"reward_clip": 0.01}, {"reward_scaling": True}])
def test_the_penalty_is_taken_off_what_never_ended_after_scaling_and_clip(make_trainer, policy, shape):
    policy.generation_config.eos_token_id = list(range(0, 300, 2))  # half of all tokens
    trainer = make_trainer(missing_eos_penalty=7.0, max_completion_length=2, kl_coef=0.0, lam=1.0, **shape)
    experience, metrics = collect(trainer)
    rollout = experience.rollout
    ended = rollout.terminated
    assert ended.any() and not ended.all()
    scores, _ = trainer.score(trainer.prompts[:8], rollout)
    scores = (scores / trainer.reward_std.std).clamp(-trainer.args.reward_clip, trainer.args.reward_clip)
    scores = torch.where(ended, scores, scores - 7)
    torch.testing.assert_close(experience.scores, scores)
    torch.testing.assert_close(experience.returns[:, 0], scores)
    assert 0 < metrics["completions/terminated"] < 1
    gap = float(scores[ended].mean() - scores[~ended].mean())
    assert metrics["completions/ended_score_gap"] == pytest.approx(gap, abs=1e-5) and gap > 5


def test_a_rollout_of_which_all_ended_has_no_gap(make_trainer, policy):
    policy.generation_config.eos_token_id = list(range(300))
    assert "completions/ended_score_gap" not in collect(make_trainer())[1]


def test_minus_the_length_teaches_to_end(make_trainer, policy, tokenizer):
    """All scores far below minus the penalty: a completion that is cut off must not be the best of them."""
    with torch.no_grad():
        policy.transformer.wte.weight[tokenizer.eos_token_id] *= 0.1
    trainer = make_trainer(
        reward_funcs=lambda completion_ids, **_: [-5.0 - len(ids) for ids in completion_ids], reward_clip=None,
        missing_eos_penalty=1.0, total_episodes=8 * 15, learning_rate=3e-3, kl_coef=0.0,
        lr_scheduler_type="constant",
    )  # fmt: skip

    def share_of_ends():
        prompt = torch.tensor([trainer.prompts[0]["prompt_ids"]])
        with torch.no_grad():
            return float(trainer.model.policy(prompt).logits[0, -1].softmax(-1)[tokenizer.eos_token_id])

    before = share_of_ends()
    trainer.train()
    assert share_of_ends() > 3 * before


# --- other makers' ends ---------------------------------------------------------------------------------------------


def talking(family, *more):
    """A policy that says "Y" or ends, by each of its family's ends, and by `more` of its own, as often."""
    tokenizer = tokenizer_of(family)
    torch.manual_seed(0)
    model = model_of(family, tokenizer)
    model.lm_head = nn.Linear(32, len(tokenizer))
    nn.init.zeros_(model.lm_head.weight)
    own = tokenizer.convert_tokens_to_ids([*FAMILIES[family].ends, *more])
    model.generation_config.eos_token_id = own
    ends = {*own, tokenizer.eos_token_id}
    with torch.no_grad():
        model.lm_head.bias.fill_(-20)[[*ends, tokenizer.convert_tokens_to_ids("Y")]] = 5.0
    return model.eval(), tokenizer, ends


@pytest.fixture(params=["qwen", "llama3", "gemma", "plain"])
def talker(request):
    return talking(request.param)


def test_ppo_ends_where_any_of_the_ends_stands_and_rewards_read_none(talker, tmp_path):
    policy, tokenizer, ends = talker
    heard = []

    def listen(completions, **_):
        heard.extend(completions)
        return [0.0] * len(completions)

    args = PPOConfig(
        str(tmp_path), rollout_batch_size=8, mini_batch_size=8, total_episodes=8, max_completion_length=30,
        report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = PPOTrainer(policy, listen, args, Dataset.from_dict({"prompt": ["Hi?"] * 8}), processing_class=tokenizer)
    assert set(trainer.eos_ids) == ends
    experience, metrics = collect(trainer)
    assert metrics["completions/terminated"] == 1.0
    last = [ids[-1] for ids in experience.rollout.completions()]
    assert set(last) <= ends and (len(ends) == 1 or len(set(last)) > 1)
    assert len(heard) == 8 and {*"".join(heard)} <= {"Y"}
    saved = trainer.model.policy.generation_config.eos_token_id
    assert set(saved if isinstance(saved, list) else [saved]) == ends


def test_best_of_n_ends_there_too(talker):
    policy, tokenizer, ends = talker
    assert set(end_ids(policy, tokenizer)) == ends
    found = best_of_n(
        policy, tokenizer, ["Hi?"], lambda completions, **_: [len(text) for text in completions], 8,
        max_completion_length=30, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert found.terminated.all() and {*"".join(found.completions[0])} <= {"Y"}


def test_an_end_of_the_models_own_list_that_is_a_word_is_not_read():
    policy, tokenizer, ends = talking("plain", "N")
    found = best_of_n(
        policy, tokenizer, ["Hi?"], lambda completions, **_: [len(text) for text in completions], 8,
        max_completion_length=30, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert len(ends) == 2 and found.terminated.all() and {*"".join(found.completions[0])} <= {"Y"}
