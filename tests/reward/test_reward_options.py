"""What a reward model's training can be asked for: losses, ties, weights, one row for all answers to a prompt."""

import math

import pytest
import torch
from toys import RANKED, batch_of, byte_tokenizer, gradients, make, tiny
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, LlamaConfig

from rlhf_kit import ops
from rlhf_kit.errors import UserError
from rlhf_kit.models.heads import score_texts
from rlhf_kit.models.packed import take_padded
from rlhf_kit.reward.trainer import answer_scores

CLOSE = dict(atol=1e-6, rtol=1e-5)
TIED = [*RANKED, {"prompt": "five", "completions": ["this", "that"], "ranks": [1, 1]}]


@pytest.mark.parametrize("loss_type", ["pairwise", "plackett_luce", "best_of"])
def test_the_loss_is_the_one_asked_for(tmp_path, loss_type):
    trainer = make(tmp_path, loss_type=loss_type)
    batch = batch_of(trainer)
    scores = answer_scores(trainer.model, batch)
    expected = getattr(ops, f"{loss_type}_losses")(scores, batch["groups"], batch["ranks"])
    assert len(expected) == 4
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected.mean(), **CLOSE)
    before = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    assert before == pytest.approx(expected.mean().item(), rel=1e-5)


@pytest.mark.parametrize("loss_type", ["pairwise", "plackett_luce", "best_of"])
def test_every_loss_learns_a_toy_preference(tmp_path, loss_type):
    options = dict(loss_type=loss_type, learning_rate=5e-3, max_steps=30, calibrate=False, weight_decay=0.0)
    trainer = make(tmp_path, eval_rows=RANKED, warmup_steps=0, **options)
    trainer.train()
    told = trainer.evaluate()
    assert told["eval_accuracy"] > 0.9  # best_of knows nothing of the others than the best


def test_a_list_of_ties_teaches_where_the_loss_says_so(tmp_path):
    assert make(tmp_path, TIED).data_counts["train"]["lists dropped: all answers tied"] == 1
    trainer = make(tmp_path, TIED, tie_loss="half", eval_rows=TIED)
    batch = batch_of(trainer, slice(4, 5))
    gap = answer_scores(trainer.model, batch).detach().diff().item()
    expected = (math.log1p(math.exp(gap)) + math.log1p(math.exp(-gap))) / 2
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-5)
    # its accuracy is no number: the others' mean stands
    assert trainer.evaluate()["eval_accuracy"] == make(tmp_path, eval_rows=RANKED).evaluate()["eval_accuracy"]
    trainer.train()
    assert all(math.isfinite(log["accuracy"]) for log in trainer.state.log_history if "accuracy" in log)


def test_a_weight_counts_a_list_so_often(tmp_path):
    heavy = [{**row, "weight": weight} for row, weight in zip(RANKED, (3.0, 1.0, 1.0, 1.0), strict=True)]
    often = [RANKED[0], RANKED[0], *RANKED]
    options = dict(max_grad_norm=0.0, per_device_train_batch_size=8)
    one, other = gradients(make(tmp_path, heavy, **options)), gradients(make(tmp_path, often, **options))
    for name, grad in one.items():
        torch.testing.assert_close(other[name], grad, **CLOSE, msg=name)


def test_parts_of_like_length_are_the_whole(tmp_path):
    trainer = make(tmp_path)
    assert not batch_of(trainer)["parts"]  # without padding there is nothing to save
    take_padded(trainer.model)
    trainer.data_collator.bucketed = True
    batch = batch_of(trainer)
    assert len(batch["parts"]) > 1 and sorted(row for rows, _ in batch["parts"] for row in rows) == list(range(11))
    padding = sum(width * len(rows) for rows, width in batch["parts"]) / batch["lengths"].sum().item() - 1
    assert padding < 0.12 < batch["input_ids"].numel() / batch["lengths"].sum().item() - 1
    whole = answer_scores(trainer.model, {**batch, "parts": []})
    torch.testing.assert_close(answer_scores(trainer.model, batch), whole, **CLOSE)


# ------------------------------------------------------------------------------------------
# The prompt, once


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, num_labels=1, pad_token_id=256, initializer_range=0.2,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make_model", [tiny, llama])
def test_a_shared_prompt_changes_no_score_and_no_gradient(tmp_path, make_model, attention):
    kinds = []
    for shared in (False, True):
        model = make_model()
        model.set_attn_implementation(attention)
        trainer = make(tmp_path, model=model, shared_prefix=shared, max_grad_norm=0.0, calibrate=False)
        scores = answer_scores(trainer.model, batch_of(trainer)).detach()
        kinds.append((scores, gradients(trainer)))
    (alone, grads), (shared, shared_grads) = kinds
    torch.testing.assert_close(shared, alone, **CLOSE)
    assert alone.std() > 0.01 and grads.keys() == shared_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(shared_grads[name], grad, atol=2e-6, rtol=1e-4, msg=name)


def test_a_shared_prompt_is_computed_once(tmp_path):
    rows = [{"prompt": "a long prompt " * 2, "completions": ["yes", "no", "well"], "ranks": [1, 2, 3]}]
    trainer = make(tmp_path, rows, shared_prefix=True)
    batch = batch_of(trainer)
    prompt = len("User: " + "a long prompt " * 2 + ".Assistant: ") - 1
    assert batch["input_ids"].shape == (1, prompt + len("yesnowell"))
    assert batch["position_ids"][0, -4:].tolist() == [prompt, prompt + 1, prompt + 2, prompt + 3]
    assert batch["ends"].tolist() == [[prompt + 2, prompt + 4, prompt + 8]]


def test_one_answer_that_begins_another_ends_in_the_shared_part(tmp_path):
    rows = [{"prompt": "p", "completions": ["good", "good enough", "good grief"], "ranks": [1, 2, 3]}]
    one, other = (make(tmp_path, rows, shared_prefix=shared) for shared in (True, False))
    torch.testing.assert_close(
        answer_scores(one.model, batch_of(one)), answer_scores(other.model, batch_of(other)), **CLOSE
    )


def test_an_encoder_cannot_share_a_prompt(tmp_path):
    config = BertConfig(
        vocab_size=257, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    with pytest.raises(UserError, match="BertForSequenceClassification is not a causal model"):
        make(tmp_path, model=BertForSequenceClassification(config), shared_prefix=True)


def test_a_model_that_looks_further_than_the_mask_is_refused(tmp_path):
    model = tiny()
    # positions as they stand in the row, whatever is asked for
    model.transformer.wpe.register_forward_pre_hook(
        lambda module, args: (torch.arange(args[0].shape[-1]).expand_as(args[0]),)
    )
    with pytest.raises(UserError, match="gives other scores with the prompt shared"):
        make(tmp_path, model=model, shared_prefix=True)


# ------------------------------------------------------------------------------------------
# Encoders


def test_an_encoder_reads_pairs_as_it_was_trained_to_and_learns(tmp_path):
    config = BertConfig(
        vocab_size=257, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, num_labels=1, initializer_range=0.2, hidden_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"cls_token": "<eos>", "sep_token": "<eos>"})
    model = BertForSequenceClassification(config)
    options = dict(learning_rate=5e-3, max_steps=40, warmup_steps=0, weight_decay=0.0)
    trainer = make(tmp_path, model=model, eval_rows=RANKED, **options)
    assert trainer.evaluate()["eval_accuracy"] < 1
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] == 1
    trainer.save_model(str(tmp_path / "saved"))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    texts = [(row["prompt"], completion) for row in RANKED for completion in row["completions"]]
    scores = score_texts(plain, tokenizer, *zip(*texts, strict=True))
    assert scores.mean().item() == pytest.approx(0, abs=1e-4) and scores.std(correction=0).item() == pytest.approx(1)
