"""Texts beside PPO: cut to what the policy reads, empty ones counted."""

import logging

import pytest
from datasets import Dataset

from rlhf_kit.errors import UserError
from rlhf_kit.ppo.prompts import PretrainingTexts, text_length

LONG = Dataset.from_dict({"text": ["the cat " * 200, "", "hello dog", "the mat"]})


def test_texts_longer_than_the_context_are_cut_to_it(make_trainer, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(ptx_dataset=LONG, ptx_coef=1.0, ptx_batch_size=4)
    assert sorted(map(len, trainer.ptx.rows))[-1] == 128 and len(trainer.ptx.rows) == 3
    assert "ptx_dataset: of 4 texts 1 are empty and left out, 1 are cut to 128 tokens" in caplog.text
    trainer.train()
    assert trainer.state.global_step == 8


def test_more_than_the_context_is_refused_by_name(make_trainer):
    with pytest.raises(UserError, match="ptx_max_length=129 is more than the policy's context of 128 tokens"):
        make_trainer(ptx_dataset=LONG, ptx_coef=1.0, ptx_batch_size=4, ptx_max_length=129)
    make_trainer(ptx_dataset=LONG, ptx_coef=1.0, ptx_batch_size=4, ptx_max_length=128)


@pytest.mark.parametrize(
    "asked,context,length", [(None, 128, 128), (None, 1024, 512), (None, None, 512), (700, None, 700), (64, 128, 64)]
)
def test_the_length_of_a_text(asked, context, length):
    assert text_length(asked, context) == length


@pytest.mark.parametrize(
    "rows,told",
    [
        ({"text": ["", ""]}, "no text to learn from"),
        ({"text": ["the cat", None]}, "row 2 has the `text` None"),
        ({"words": ["the cat"]}, "has the columns words; it needs `text`"),
    ],
    ids=str,
)
def test_what_is_no_text_is_told(tokenizer, rows, told):
    with pytest.raises(UserError, match=told):
        PretrainingTexts(Dataset.from_dict(rows), tokenizer, 16)
