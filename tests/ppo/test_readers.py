"""A reference and a value model read the policy's tokens: all of them, as many, and as they are meant."""

import copy

import pytest
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.prompts import Prompts
from rlhf_kit.ppo.trainer import check_models


@pytest.fixture
def other_tokenizer(tokenizer):
    """As large, of other words."""
    other = tokenizer.train_new_from_iterator(["Which river is longest? Why, which was it? It was rain."] * 9, 300)
    other.chat_template = tokenizer.chat_template
    assert other.get_vocab() != tokenizer.get_vocab()
    return other


@pytest.fixture
def short_config(tiny_config):
    short = copy.deepcopy(tiny_config)
    short.n_positions, short.num_labels, short.pad_token_id = 32, 1, 0
    return short


def test_a_context_shorter_than_prompt_and_completion_is_refused(make_trainer, short_config):
    told = "reads 32 tokens, and a prompt and its completion may have 38: lower max_completion_length"
    with pytest.raises(UserError, match=f"ref_model: GPT2LMHeadModel {told}"):
        make_trainer(ref_model=GPT2LMHeadModel(short_config), max_completion_length=24)
    judge = GPT2ForSequenceClassification(short_config)
    with pytest.raises(UserError, match=f"value_model: GPT2Model {told}"):
        make_trainer(reward_funcs=judge, value_model="reward", max_completion_length=24)
    with pytest.raises(UserError, match=f"value_model: GPT2Model {told}"):
        make_trainer(value_model=judge, max_completion_length=24)
    make_trainer(ref_model=GPT2LMHeadModel(short_config), reward_funcs=judge, max_completion_length=4)


def test_a_reference_is_looked_at_without_its_weights(tmp_path, policy, tokenizer, short_config):
    """As `PPOTrainer` would refuse it, by a Python user too, and by its files alone."""
    GPT2LMHeadModel(short_config).save_pretrained(tmp_path)
    args = PPOConfig(str(tmp_path / "out"), max_completion_length=24, use_cpu=True, report_to="none")
    prompts = [Prompts([{"prompt": "hello", "prompt_ids": [1] * length}]) for length in (8, 9)]
    roles = ([lambda prompts, **_: [0.0] * len(prompts)], prompts, tokenizer, args)
    with pytest.raises(UserError, match="reads 32 tokens, and a prompt and its completion may have 33: lower"):
        check_models(policy, *roles, ref_model=str(tmp_path))
    check_models(policy, *roles)
    check_models(None, *roles, ref_model=str(tmp_path))
    with pytest.raises(UserError, match="value_model='reward' needs exactly one reward model; reward_funcs has 0"):
        check_models(policy, *roles, value_model="reward")


def test_an_evaluation_s_prompts_count_too(make_trainer, short_config, prompts):
    few = prompts.select([0, 5, 10])
    make_trainer(train_dataset=few, ref_model=GPT2LMHeadModel(short_config), max_completion_length=20)
    with pytest.raises(UserError, match="reads 32 tokens"):
        make_trainer(
            train_dataset=few, eval_dataset=prompts, ref_model=GPT2LMHeadModel(short_config), max_completion_length=20
        )


def test_fewer_tokens_than_the_policy_s_are_refused(make_trainer, tiny_config):
    few = copy.deepcopy(tiny_config)
    few.vocab_size -= 1
    with pytest.raises(UserError, match="ref_model: GPT2LMHeadModel knows 293 tokens, and the policy"):
        make_trainer(ref_model=GPT2LMHeadModel(few))


def test_another_tokenizer_is_refused(make_trainer, policy, reward_model, other_tokenizer, tmp_path):
    """Its KL, or its values, would be of other texts."""
    policy.save_pretrained(tmp_path / "lm")
    other_tokenizer.save_pretrained(tmp_path / "lm")
    with pytest.raises(UserError, match="ref_model: GPT2LMHeadModel .*lm was trained with another tokenizer"):
        make_trainer(ref_model=tmp_path / "lm")
    told = "value_model: GPT2Model was trained with another tokenizer .* or leave value_model out"
    options = {"reward_funcs": reward_model, "reward_processing_classes": other_tokenizer}
    with pytest.raises(UserError, match=told):
        make_trainer(**options, value_model="reward")
    make_trainer(**options)  # as a reward it reads the text


def test_a_mark_that_got_another_name_is_the_same_tokenizer(make_trainer, policy, tokenizer, tmp_path):
    renamed = copy.deepcopy(tokenizer)
    renamed.add_special_tokens({"pad_token": "<|pad|>"})
    policy.save_pretrained(tmp_path / "lm")
    renamed.save_pretrained(tmp_path / "lm")
    assert len(load_tokenizer(tmp_path / "lm")) == len(tokenizer) + 1
    make_trainer(ref_model=tmp_path / "lm")
