"""Several reward models as one score: by hand from the members' own, whatever tokenizers they read with."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from rlhf_kit.errors import UserError
from rlhf_kit.models.ensemble import Ensemble
from rlhf_kit.models.heads import score_texts, set_calibration

PROMPTS, COMPLETIONS = ["hello", "the cat", "a"], ["dog", "sat on the mat", "b"]


def member(tokenizer, seed, gain, bias=0.0):
    torch.manual_seed(seed)
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=64, vocab_size=len(tokenizer), num_labels=1)
    config.pad_token_id = tokenizer.pad_token_id
    model = GPT2ForSequenceClassification(config).eval()
    model.score.weight.data.normal_()
    set_calibration(model.config, gain, bias)
    return model


@pytest.fixture
def members(tokenizer):
    return [member(tokenizer, seed, gain, bias) for seed, gain, bias in ((1, 1.0, 0.0), (2, 0.5, 0.3), (3, 2.0, -1))]


class Known(Ensemble):
    """Members whose scores are known."""

    def member_scores(self, prompts, completions):
        return torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, -1.0]])


def test_reductions_by_hand(members, tokenizer):
    models, tokenizers = members[:2], [tokenizer] * 2
    by_hand = {"mean": [2.0, 0.0, 0.5], "min": [1.0, 0.0, -1.0], "mean-std": [1.0, 0.0, -1.0]}
    for reduce, expected in by_hand.items():  # population std: 1, 0 and 1.5
        assert Known(models, tokenizers, reduce)(PROMPTS, COMPLETIONS).tolist() == expected
    assert Known(models, tokenizers, "mean-std", std_coef=2.0)(PROMPTS, COMPLETIONS).tolist() == [0.0, 0.0, -2.5]
    assert Known(models, tokenizers, "mean-std", std_coef=0.0)(PROMPTS, COMPLETIONS).tolist() == by_hand["mean"]


def test_members_give_their_calibrated_scores(members, tokenizer):
    ensemble = Ensemble(members, [tokenizer] * 3, batch_size=2)
    own = torch.stack([score_texts(model, tokenizer, PROMPTS, COMPLETIONS) for model in members])
    scores = ensemble.member_scores(PROMPTS, COMPLETIONS)
    assert scores.shape == (3, 3) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, own)
    torch.testing.assert_close(ensemble(PROMPTS, COMPLETIONS), own.mean(0))
    swapped = Ensemble(members[::-1], [tokenizer] * 3, "mean-std")
    expected = own.mean(0) - own.std(0, correction=0)
    torch.testing.assert_close(swapped(PROMPTS, COMPLETIONS), expected)
    assert ensemble([], []).shape == (0,)


def test_members_of_other_architectures_read_with_tokenizers_of_their_own(members, tokenizer, tmp_path):
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "dog"])}
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=7)
    encoder = BertForSequenceClassification(BertConfig(**sizes, num_labels=1, initializer_range=1.0)).eval()
    encoder.save_pretrained(tmp_path / "encoder")
    BertTokenizer(vocab=words).save_pretrained(tmp_path / "encoder")
    members[0].save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    ensemble = Ensemble.from_pretrained([tmp_path / "decoder", tmp_path / "encoder"], reduce="min")
    with torch.no_grad():
        logit = encoder(**BertTokenizer(vocab=words)("hello", "dog", return_tensors="pt")).logits[0, 0]
    scores = ensemble.member_scores(["hello"], ["dog"])[:, 0]
    torch.testing.assert_close(scores[1], logit)
    torch.testing.assert_close(scores[0], score_texts(members[0], tokenizer, ["hello"], ["dog"])[0])
    assert ensemble(["hello"], ["dog"]).item() == scores.min().item()


def test_what_makes_no_ensemble(members, tokenizer):
    tokenizers = [tokenizer] * 3
    with pytest.raises(UserError, match="An ensemble of 1 reward models: give at least two"):
        Ensemble(members[:1], tokenizers[:1])
    with pytest.raises(UserError, match="3 reward models and 2 tokenizers"):
        Ensemble(members, tokenizers[:2])
    with pytest.raises(UserError, match="Did you mean 'mean'?"):
        Ensemble(members, tokenizers, "meen")
    for coef in (-0.5, float("nan")):
        with pytest.raises(UserError, match=f"std_coef={coef}"):
            Ensemble(members, tokenizers, "mean-std", std_coef=coef)
    members[1].config.num_labels = 2
    with pytest.raises(UserError, match=r"have \[1, 2, 1\] labels"):
        Ensemble(members, tokenizers)
