"""What is tried before a stage trains: it tells a leak, leaves nothing behind, finds the arrangement that is right."""

import pytest
import torch
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_kit.data.packing import PackedCollator, row_of
from rlhf_kit.errors import UserError
from rlhf_kit.models import heads, preflight

ROWS = [[5, 6, 7], [8, 9]]


class OneRowAlone(GPT2LMHeadModel):
    """Keeps documents apart in a batch of one row only, as flash attention does."""

    def forward(self, input_ids=None, position_ids=None, attention_mask=None, use_cache=None, **options):
        if position_ids is not None and len(input_ids) > 1:
            attention_mask = torch.ones_like(input_ids)
        inputs = {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": attention_mask}
        return super().forward(**inputs, use_cache=use_cache, **options)


class CountsPadding(GPT2ForSequenceClassification):
    """Scores what it was given, padding too."""

    def forward(self, input_ids=None, **options):
        output = super().forward(input_ids=input_ids, **options)
        output.logits = output.logits + 0.1 * input_ids.shape[1]
        return output


def remade(cls, model):
    made = cls(model.config).eval()
    made.load_state_dict(model.state_dict())
    return made


def test_short_texts_are_of_different_lengths(policy, tiny_config):
    assert (*map(len, preflight.short_texts(policy, ROWS)),) == preflight.LENGTHS == (24, 13)
    assert preflight.short_texts(policy, [[], [5, 6]]) == [[5, 6] * 12, [5, 6] * 6 + [5]]
    tiny_config.n_positions = 8
    lengths = [*map(len, preflight.short_texts(GPT2LMHeadModel(tiny_config), ROWS))]
    assert sum(lengths) <= 8 and lengths[0] > lengths[1] >= 2


def test_a_trial_leaves_model_and_random_numbers_as_they_were(policy):
    policy.train()
    policy.transformer.h[0].eval()
    before, state = [module.training for module in policy.modules()], torch.get_rng_state()
    with preflight.trial(policy):
        assert not any(module.training for module in policy.modules())
        torch.rand(3)
        assert not preflight.alone(policy, [5, 6]).requires_grad
    assert [module.training for module in policy.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_documents_are_arranged_as_the_model_keeps_them_apart(policy):
    texts = preflight.short_texts(policy, ROWS)
    assert preflight.arrangement(policy, texts) == ("packed", None)
    how, fault = preflight.arrangement(remade(OneRowAlone, policy), texts)
    assert how == "flattened" and "logits are off" in fault


def test_flattened_rows_are_one_row():
    rows = [row_of([([5, 6], 1), ([7, 8, 9], 1)]), row_of([([3, 4], 1)])]
    batch = PackedCollator(0, "flattened")(rows)
    assert {name: x.tolist() for name, x in batch.items()} == {
        "input_ids": [[5, 6, 7, 8, 9, 3, 4]],
        "position_ids": [[0, 1, 0, 1, 2, 0, 1]],
        "labels": [[-100, 6, -100, 8, 9, -100, 4]],
    }
    apart = PackedCollator(0, "apart")([row_of([([5, 6, 7], 1)]), row_of([([3, 4], 1)])])
    assert {name: x.tolist() for name, x in apart.items()} == {
        "input_ids": [[5, 6, 7], [3, 4, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[-100, 6, 7], [-100, 4, -100]],
    }


def test_scores_that_change_with_padding_are_refused(reward_model):
    heads.check_scores(reward_model, ROWS)
    with pytest.raises(UserError, match="CountsPadding: a score must not depend on padding"):
        heads.check_scores(remade(CountsPadding, reward_model), ROWS)


def test_a_frozen_model_is_refused(policy):
    preflight.check_trainable(policy)
    with pytest.raises(UserError, match="every parameter is frozen"):
        preflight.check_trainable(policy.requires_grad_(False))
