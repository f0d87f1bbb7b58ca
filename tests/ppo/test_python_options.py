"""What the command line takes, the trainer takes: names of functions, ensembles, value models and lengths."""

import pytest
import torch

from rlhf_kit.data import chat
from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import load_reward_model
from rlhf_kit.ppo import best_of_n
from rlhf_kit.ppo import prompts as encoding
from tests.ppo.conftest import brief


@pytest.fixture
def judges(tmp_path, reward_model, tokenizer) -> list[str]:
    """Folders of two reward models."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        reward_model.score.weight.data.normal_()
        reward_model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return list(map(str, folders))


def test_a_function_by_its_name(make_trainer):
    trainer = make_trainer(reward_funcs="tests.rewards:brief")
    assert trainer.rewards.names == ["brief"]
    rows = trainer.prompts[:2]
    scores, _ = trainer.score(rows, trainer.sample(rows))
    assert scores.shape == (2,)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"reward_funcs": ["no_such_module:f", "tests.rewards:briefer"]}, "(?s)importing 'no_such_module'.*'brief'"),
        ({"reward_ensemble": "mean"}, "needs at least two reward models; reward_funcs names 0"),
        ({"reward_ensemble_std_coef": 1.0}, "applies to reward_ensemble='mean-std' only"),
        ({"value_model": "shraed"}, "Did you mean 'shared'"),
    ],
    ids=str,
)
def test_what_does_not_resolve_is_refused_before_a_model_is_loaded(make_trainer, monkeypatch, options, message):
    monkeypatch.setattr("rlhf_kit.ppo.trainer.load_policy", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=message):
        make_trainer(**options)


def test_models_in_memory_are_no_ensemble_by_argument(make_trainer, reward_model, judges):
    with pytest.raises(UserError, match="by folder or hub id"):
        make_trainer(reward_funcs=[reward_model, judges[0]], reward_ensemble="min")


def test_an_ensemble_by_argument_stands_where_its_first_model_stood(make_trainer, judges):
    funcs = [judges[0], brief, judges[1]]
    trainer = make_trainer(reward_funcs=funcs, reward_ensemble="mean-std", reward_ensemble_std_coef=0.5)
    assert trainer.rewards.names == ["ensemble-mean-std", "brief"]
    assert trainer.rewards.funcs[0].std_coef == 0.5 and len(trainer.rewards.models) == 2


def test_a_value_model_by_its_folder(make_trainer, judges):
    trainer = make_trainer(value_model=judges[1])
    expected = load_reward_model(judges[1]).score.weight
    torch.testing.assert_close(trainer.model.value_head.weight.cpu(), expected.float(), check_device=False)


def test_long_prompts_are_left_out(make_trainer):
    everything = make_trainer()
    most = min(len(row["prompt_ids"]) for row in everything.prompts)
    rows = make_trainer(max_prompt_length=most).prompts
    assert 0 < len(rows) < len(everything.prompts) and {len(row["prompt_ids"]) for row in rows} == {most}


def test_every_prompt_is_encoded_once(make_trainer, monkeypatch, prompts):
    calls = []

    def counted(tokenizer, prompt, unread=None):
        calls.append(prompt)
        return chat.encode_prompt(tokenizer, prompt, unread)

    monkeypatch.setattr(encoding, "encode_prompt", counted)
    trainer = make_trainer(eval_dataset=prompts.select(range(4)))
    trainer.evaluate()
    assert len(calls) == len(prompts) + 4


@pytest.mark.parametrize("through", ["the trainer", "best of n"])
def test_a_long_prompt_has_one_number(make_trainer, policy, tokenizer, through):
    texts = ["hello", "the cat " * 200]
    with pytest.raises(UserError, match="1 of 2 prompts are too long. The longest, row 2, has"):
        if through == "the trainer":
            make_trainer(train_dataset=[{"prompt": text} for text in texts])
        else:
            best_of_n(policy, tokenizer, texts, brief, 2, max_completion_length=4)
