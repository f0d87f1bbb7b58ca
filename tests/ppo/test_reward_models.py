"""Models as rewards: only those that give a score, and only prompts and completions that they can read."""

import copy
import logging
from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel, GPT2Model

from rlhf_kit.data.chat import set_chat_template
from rlhf_kit.errors import UserError
from rlhf_kit.models.adapters import wrap
from rlhf_kit.models.checkpoints import load_reward_model, load_tokenizer
from rlhf_kit.models.ensemble import Ensemble
from rlhf_kit.ppo import best_of_n
from rlhf_kit.ppo.rewards import Rewards

NO_HEAD = "is not a reward model: it is a GPT2LMHeadModel, without a head that gives scores"
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def folder_of(tmp_path, tokenizer):
    def save(model, name, template=None):
        model.save_pretrained(tmp_path / name)
        own = load_tokenizer(tokenizer.name_or_path)
        own.chat_template = template if template is not None else tokenizer.chat_template
        own.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


# --- A language model is no reward -------------------------------------------------------------------------------


def test_a_language_model_as_a_reward_is_refused_by_name(make_trainer, policy, folder_of, monkeypatch):
    folder = folder_of(policy, "lm")
    monkeypatch.setattr("rlhf_kit.ppo.rewards.load_reward_model", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr("rlhf_kit.models.ensemble.load_reward_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match=f"lm' {NO_HEAD}"):
        make_trainer(reward_funcs=folder)
    with pytest.raises(UserError, match=NO_HEAD):
        make_trainer(reward_funcs=[lambda **_: [0.0], folder])
    with pytest.raises(UserError, match=NO_HEAD):
        make_trainer(reward_funcs=folder, value_model="reward")
    with pytest.raises(UserError, match=NO_HEAD):
        Ensemble.from_pretrained([folder, folder])


def test_a_language_model_in_memory_too(make_trainer, policy, tokenizer, tiny_config):
    other = GPT2LMHeadModel(tiny_config)
    with pytest.raises(UserError, match=f"Reward model 'reward_model' {NO_HEAD}"):
        make_trainer(reward_funcs=other)
    tiny_config.num_labels = 1
    for model in (GPT2LMHeadModel(tiny_config), wrap(GPT2LMHeadModel(tiny_config), LoraConfig(r=2))):
        with pytest.raises(UserError, match=NO_HEAD):
            make_trainer(reward_funcs=model)
        with pytest.raises(UserError, match=NO_HEAD):
            Ensemble([model, model], [tokenizer, tokenizer])
        with pytest.raises(UserError, match=NO_HEAD):
            best_of_n(policy, tokenizer, ["hello"], model, 2, max_completion_length=4)
    with pytest.raises(UserError, match="it is a GPT2Model, without a head"):
        make_trainer(reward_funcs=GPT2Model(tiny_config))


def test_a_reward_adapter_in_memory_scores(make_trainer, reward_model):
    trainer = make_trainer(reward_funcs=wrap(reward_model, LoraConfig(r=2)))
    assert trainer.score(trainer.prompts[:4], trainer.sample(trainer.prompts[:4]))[0].shape == (4,)


def test_folders_may_be_paths(make_trainer, policy, reward_model, folder_of):
    folder, judge = Path(folder_of(policy, "lm")), Path(folder_of(reward_model, "rm"))
    trainer = make_trainer(model=folder, ref_model=folder, reward_funcs=judge)
    assert trainer.rewards.names == ["rm"] and trainer.ref_model is not None


def test_a_language_model_still_starts_a_reward_model(policy, folder_of):
    assert load_reward_model(folder_of(policy, "lm")).config.num_labels == 1


# --- What a reward model cannot read is told before anything is sampled ------------------------------------------


def asked(*contents):
    return Dataset.from_list([{"prompt": [{"role": "user", "content": content}]} for content in contents])


def test_prompts_that_the_reward_s_template_refuses_are_found_first(make_trainer, reward_model, folder_of):
    folder = folder_of(reward_model, "reward", NO_SYSTEM)
    rows = [{"prompt": [{"role": "user", "content": "hello"}]}]
    rows += [{"prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]}]
    plain, system = Dataset.from_list(rows[:1]), Dataset.from_list(rows)
    make_trainer(reward_funcs=folder, train_dataset=plain)
    told = "Reward model 'reward' cannot read the prompts: .*System role not supported.*row 2"
    with pytest.raises(UserError, match=told):
        make_trainer(reward_funcs=folder, train_dataset=system)
    with pytest.raises(UserError, match=told):
        make_trainer(reward_funcs=folder, train_dataset=plain, eval_dataset=system)


def test_messages_for_a_reward_without_a_template_are_refused_first(make_trainer, reward_model, folder_of):
    folder = folder_of(reward_model, "reward", "")
    with pytest.raises(UserError, match="Reward model 'reward' cannot read the prompts: .* has no chat template"):
        make_trainer(reward_funcs=folder)
    make_trainer(reward_funcs=folder, train_dataset=Dataset.from_dict({"prompt": ["hello", "the cat"]}))


def test_a_context_too_short_for_a_completion_is_refused_first(make_trainer, reward_model, tiny_config, caplog):
    shape = copy.deepcopy(tiny_config)
    shape.n_positions = 12
    small = type(reward_model)(shape)
    with pytest.raises(UserError, match="'reward_model': .* max_completion_length has 13 tokens; the context has 12"):
        make_trainer(reward_funcs=small, max_completion_length=13)
    with caplog.at_level(logging.WARNING):
        make_trainer(reward_funcs=small, train_dataset=asked("hi", "the cat sat on the mat, and so did the dog"))
    assert "reads 12 tokens: 2 of 2 prompts lose their beginning to a completion of 10" in caplog.text


def test_a_model_from_a_folder_is_read_with_its_own_tokenizer(make_trainer, reward_model, folder_of):
    folder = folder_of(reward_model, "reward", NO_SYSTEM)
    trainer = make_trainer(reward_funcs=load_reward_model(folder))
    assert trainer.rewards.tokenizers[0].chat_template == NO_SYSTEM
    given = set_chat_template(load_tokenizer(folder))
    given.chat_template = None
    set_chat_template(given)
    trainer = make_trainer(reward_funcs=load_reward_model(folder), reward_processing_classes=given)
    assert trainer.rewards.tokenizers[0] is given


def test_a_tokenizer_of_more_tokens_than_the_reward_knows_is_refused(make_trainer, reward_model, tiny_config):
    shape = copy.deepcopy(tiny_config)
    shape.vocab_size -= 5
    with pytest.raises(UserError, match="tokens and the model knows"):
        make_trainer(reward_funcs=type(reward_model)(shape))


def test_best_of_n_tells_it_first_too(policy, tokenizer, reward_model, folder_of):
    own = load_tokenizer(folder_of(reward_model, "reward", NO_SYSTEM))
    system = [[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]]
    judges = Rewards(reward_model, own, None, tokenizer, 4)
    with pytest.raises(UserError, match="cannot read the prompts: .*System role not supported"):
        best_of_n(policy, tokenizer, system, judges, 2, max_completion_length=4)
    with pytest.raises(UserError, match="cannot be called with the trainer's arguments"):
        best_of_n(policy, tokenizer, ["hello"], lambda completions: [0.0], 2, max_completion_length=4)


def test_a_prompt_without_tokens_is_refused(make_trainer, tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="row 2: `prompt` is empty"):
        make_trainer(train_dataset=Dataset.from_dict({"prompt": ["hello", ""]}))


def test_a_reward_model_without_its_head_is_refused(make_trainer, reward_model, folder_of):
    """Its config promises one; the files hold none, and a new one would be random."""
    folder = folder_of(reward_model, "reward")
    weights = load_file(f"{folder}/model.safetensors")
    save_file({name: x for name, x in weights.items() if name != "score.weight"}, f"{folder}/model.safetensors")
    with pytest.raises(UserError, match="files lack 1 of the weights of GPT2ForSequenceClassification.*score.weight"):
        make_trainer(reward_funcs=folder)
