"""The reward trainer: InstructGPT's loss, exact over batches and processes, TRL's for pairs; saved calibrated.

Run as a script under torch.distributed it trains one step and writes what came of it: see `main`.
"""

import copy
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import trl
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from ranks import launched
from toys import EOS, PAIRS, RANKED, batch_of, byte_tokenizer, gradients, make, tiny
from transformers import AutoModelForSequenceClassification

from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import load_config, load_reward_model
from rlhf_kit.models.forward import pad_right
from rlhf_kit.models.heads import calibration, logit_scale, score_texts, sequence_scores
from rlhf_kit.ops import length_mask
from rlhf_kit.reward import RewardConfig, encode_comparisons

# ------------------------------------------------------------------------------------------
# The loss


def test_the_loss_is_the_mean_over_lists_of_the_mean_over_ordered_pairs(tmp_path):
    trainer = make(tmp_path)
    batch = batch_of(trainer)
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
        means, at = [], 0
        for row in RANKED:
            ids = batch["input_ids"][at : at + len(row["ranks"])]
            alone = sequence_scores(trainer.model, ids, batch["lengths"][at : at + len(row["ranks"])])
            at += len(row["ranks"])
            pairs = [
                -F.logsigmoid(alone[i] - alone[j])
                for i, j in itertools.permutations(range(len(alone)), 2)
                if row["ranks"][i] < row["ranks"][j]
            ]
            means.append(sum(pairs) / len(pairs))
    torch.testing.assert_close(loss, sum(means) / len(means), atol=1e-6, rtol=1e-6)


def test_the_order_of_a_list_and_ties_between_others_change_nothing(tmp_path):
    turned = [
        {**row, "completions": row["completions"][::-1], "ranks": [10 * rank for rank in row["ranks"][::-1]]}
        for row in RANKED[::-1]
    ]
    trainer, other = make(tmp_path), make(tmp_path, turned)
    loss = trainer.compute_loss(trainer.model, batch_of(trainer))
    torch.testing.assert_close(other.compute_loss(other.model, batch_of(other)), loss, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("coefficient", [None, 0.01])
def test_pairs_give_trl_loss_and_gradients(tmp_path, coefficient):
    trainer = make(tmp_path, PAIRS, center_rewards_coefficient=coefficient)
    rows = [trainer.train_dataset[i] for i in range(len(PAIRS))]
    peer_rows = [
        {"chosen_ids": row["input_ids"][0], "rejected_ids": row["input_ids"][1], "margin": row["margin"]}
        for row in rows
    ]
    options = dict(bf16=False, gradient_checkpointing=False, use_cpu=True, report_to="none", max_length=None)
    peer = trl.RewardTrainer(
        tiny(),
        trl.RewardConfig(str(tmp_path / "trl"), center_rewards_coefficient=coefficient, **options),
        train_dataset=Dataset.from_list(peer_rows),
        processing_class=byte_tokenizer(),
    )
    ours = trainer.compute_loss(trainer.model, batch_of(trainer))
    theirs = peer.compute_loss(peer.model, peer.data_collator(peer_rows))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    ours.backward()
    theirs.backward()
    for (name, p), q in zip(trainer.model.named_parameters(), peer.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("size, steps", [(1, 4), (2, 2), (3, 2)])
def test_gradients_do_not_depend_on_the_micro_batches(tmp_path, size, steps):
    options = dict(max_grad_norm=0.0, center_rewards_coefficient=0.1)
    whole = gradients(make(tmp_path, **options))
    split = gradients(make(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, **options))
    assert whole.keys() == split.keys() and len(whole) > 20
    for name, grad in whole.items():
        torch.testing.assert_close(split[name], grad, atol=1e-6, rtol=1e-4, msg=name)


def test_thumbs_are_binary_cross_entropy(tmp_path):
    rows = [
        {"prompt": "one", "completion": "fine", "label": True},
        {"prompt": "two", "completion": "bad", "label": False},
        {"prompt": "three", "completion": "so so", "label": False},
    ]
    trainer = make(tmp_path, rows, eval_rows=rows)
    batch = batch_of(trainer)
    scores = sequence_scores(trainer.model, batch["input_ids"], batch["lengths"])
    expected = F.binary_cross_entropy_with_logits(scores, torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)
    told = trainer.evaluate()
    assert told["eval_accuracy"] == pytest.approx(((scores > 0) == batch["thumbs"]).float().mean().item())
    assert told["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    trainer.train()


def test_every_answer_is_forwarded_once_an_epoch(tmp_path):
    trainer = make(tmp_path, per_device_train_batch_size=2, calibrate=False)
    seen = []  # of each forward: how many answers begin in it
    trainer.model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(int((kwargs["position_ids"] == 0).sum())), with_kwargs=True
    )
    trainer.train()
    assert sum(seen) == sum(len(row["completions"]) for row in RANKED) and len(seen) == trainer.state.global_step


def test_dropout_is_off_unless_asked_for(tmp_path):
    for off in (True, False):
        trainer = make(tmp_path, disable_dropout=off)
        trainer.model.train()
        batch = batch_of(trainer)
        losses = {trainer.compute_loss(trainer.model, batch).item() for _ in range(4)}
        assert (len(losses) == 1) == off


# ------------------------------------------------------------------------------------------
# Data


def test_rows_are_prompt_and_answer_without_eos():
    tokenizer = byte_tokenizer()
    data, counts = encode_comparisons(Dataset.from_list(RANKED), tokenizer, 64)
    assert tokenizer.decode(data[0]["input_ids"][0]) == "User: one<eos>Assistant: good"
    assert data[1]["ranks"] == [2, 1, 2, 3] and data[1]["length"] == len("User: two, longer.Assistant: dddd")
    assert counts["lists"] == 4 and sum(counts.values()) == 4


def test_what_is_cut_or_dropped_is_counted(tmp_path):
    rows = [
        {"prompt": "p" * 90, "completions": ["one", "two"], "ranks": [1, 2]},
        {"prompt": "q", "completions": ["z" * 80, "short", "shorter"], "ranks": [1, 2, 3]},
        {"prompt": "q", "completions": ["z" * 80, "short"], "ranks": [1, 2]},
        {"prompt": "q", "completions": ["same", " same "], "ranks": [1, 2]},
        {"prompt": "q", "completions": ["this", "that"], "ranks": [1, 1]},
        {"prompt": "q", "completions": ["same", " same "], "ranks": [1, 1]},
    ]
    with pytest.raises(UserError, match=r"row 4: `completions` 1 and 2 are the same text with ranks 1 and 2"):
        make(tmp_path, rows)
    with pytest.raises(UserError, match=r"Of 5 lists there are 1 with fewer than two answers \(row 3\)\."):
        make(tmp_path, [*rows[:3], *rows[4:]])
    trainer = make(tmp_path, rows, on_bad_row="drop")
    assert trainer.data_counts["train"] == {
        "lists": 6,
        "prompts cut at the beginning": 2,
        "answers longer than the context": 2,
        "lists dropped: fewer than two answers": 1,
        "lists dropped: equal texts with different ranks": 1,
        "lists dropped: identical answers": 1,
        "lists dropped: all answers tied": 1,
    }
    assert len(trainer.train_dataset) == 2
    assert [len(ids) for ids in trainer.train_dataset[0]["input_ids"]] == [64, 64]
    assert byte_tokenizer().decode(trainer.train_dataset[0]["input_ids"][1]).endswith("p<eos>Assistant: two")
    assert trainer.train_dataset[1]["ranks"] == [2, 3]
    assert make(tmp_path, RANKED, max_length=20).train_dataset[0]["length"] == 20
    with pytest.raises(UserError, match="No comparison is left"):
        make(tmp_path, rows[2:], on_bad_row="drop")


def test_lists_that_teach_nothing_are_left_out_and_counted_by_default(tmp_path):
    tied, equal = {"completions": ["this", "that"], "ranks": [2, 2]}, {"completions": ["a", "a "], "ranks": [1, 1]}
    rows = [*RANKED, {"prompt": "q", **tied}, {"prompt": "q", **equal}]
    trainer = make(tmp_path, rows)
    assert len(trainer.train_dataset) == len(RANKED)
    counts = trainer.data_counts["train"]
    assert counts["lists dropped: all answers tied"] == counts["lists dropped: identical answers"] == 1
    with pytest.raises(UserError, match="No comparison is left to learn from"):
        make(tmp_path, rows[len(RANKED) :])


def test_mistakes_are_told_before_training(tmp_path):
    with pytest.raises(UserError, match="2 labels"):
        make(tmp_path, model=tiny(num_labels=2))
    with pytest.raises(UserError, match="row 1: there is no `prompt`, and `chosen` and `rejected` are not dialogues"):
        make(tmp_path, [{"chosen": "a", "rejected": "b"}])
    for options, message in (
        ({"max_length": 0}, "max_length=0"),
        ({"loss_type": "pairwize"}, "Did you mean 'pairwise'"),
        ({"on_bad_row": "skip"}, "not one of error, drop"),
        ({"label_smoothing_factor": 0.5}, "below 0.5"),
        ({"loss_type": "best_of", "tie_loss": "half"}, "belong to loss_type='pairwise'"),
    ):
        with pytest.raises(UserError, match=message):
            RewardConfig(str(tmp_path), **options)
    with pytest.raises(UserError, match="margins, which loss_type='best_of'"):
        make(tmp_path, PAIRS, loss_type="best_of")


# ------------------------------------------------------------------------------------------
# Measures and calibration


def test_evaluation_is_exact_over_uneven_batches(tmp_path):
    told = []
    for size in (1, 3, 4):
        trainer = make(tmp_path, eval_rows=RANKED, per_device_eval_batch_size=size)
        told.append(trainer.evaluate())
    batch = batch_of(trainer)
    with torch.no_grad():
        scores = sequence_scores(trainer.model.eval(), batch["input_ids"], batch["lengths"])
        loss = trainer.compute_loss(trainer.model, batch).item()
    accuracy, margin = [], []
    for group in range(4):
        s, r = scores[batch["groups"] == group], batch["ranks"][batch["groups"] == group]
        gaps = [s[i] - s[j] for i in range(len(s)) for j in range(len(s)) if r[i] < r[j]]
        accuracy.append(sum(float(gap > 0) for gap in gaps) / len(gaps))
        margin.append(float(sum(gaps)) / len(gaps))
    for each in told:
        assert each["eval_accuracy"] == pytest.approx(sum(accuracy) / 4)
        assert each["eval_margin"] == pytest.approx(sum(margin) / 4, rel=1e-4)
        assert each["eval_loss"] == pytest.approx(loss, rel=1e-5)
        assert each["eval_mean_reward"] == pytest.approx(scores.mean().item(), rel=1e-4)
        assert each["eval_std_reward"] == pytest.approx(scores.std(correction=0).item(), rel=1e-4)
    assert trainer.evaluate(Dataset.from_list(RANKED[:1]))["eval_accuracy"] == accuracy[0]


def test_equal_scores_count_one_half(tmp_path):
    model = tiny()
    model.score.weight.data.zero_()
    assert make(tmp_path, model=model, eval_rows=RANKED).evaluate()["eval_accuracy"] == 0.5


def test_training_leaves_calibrated_scores_in_a_plain_saved_model(tmp_path):
    trainer = make(tmp_path, learning_rate=1e-3, num_train_epochs=2, per_device_train_batch_size=3)
    assert trainer.model.config.pad_token_id == EOS  # from the start: a model may be saved without training
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 4 and all({"accuracy", "margin", "mean_reward"} <= log.keys() for log in logs)
    trainer.save_model(str(tmp_path / "saved"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    gain, bias = calibration(trainer.model.config)
    assert calibration(model.config) == (1.0, 0.0) != (gain, bias)
    assert logit_scale(model.config) == logit_scale(trainer.model.config) == pytest.approx(1 / gain)
    assert model.config.pad_token_id == EOS
    texts = [(row["prompt"], completion) for row in RANKED for completion in row["completions"]]
    rows = [byte_tokenizer().encode(f"User: {p}<eos>Assistant: {c}", add_special_tokens=False) for p, c in texts]
    input_ids, lengths = pad_right(rows, EOS)
    with torch.no_grad():  # transformers alone
        plain = model(input_ids=input_ids, attention_mask=length_mask(lengths, input_ids.shape[1]).long()).logits[:, 0]
    torch.testing.assert_close(plain, gain * sequence_scores(trainer.model, input_ids, lengths).detach() + bias)
    scores = score_texts(model, byte_tokenizer(), *zip(*texts, strict=True))
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    first = calibration(trainer.model.config)
    trainer.train()
    assert calibration(trainer.model.config) != first


def test_a_model_without_opinions_cannot_be_calibrated(tmp_path):
    model = tiny()
    model.score.weight.data.zero_()
    trainer = make(tmp_path, model=model)
    with pytest.raises(UserError, match="same score"):
        trainer.calibrate()
    assert calibration(model.config) == (1.0, 0.0)
    kept = make(tmp_path, calibrate=False)
    kept.train()
    assert calibration(kept.model.config) == (1.0, 0.0)


def test_resume_goes_on_where_it_stopped_and_recalibrates(tmp_path):
    rows, options = RANKED * 2, dict(per_device_train_batch_size=2, save_strategy="steps", save_steps=2)
    whole = make(tmp_path / "run", rows, learning_rate=1e-3, **options)
    whole.train()
    again = make(tmp_path / "run", rows, learning_rate=1e-3, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert again.state.global_step == whole.state.global_step == 4
    for p, q in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert calibration(again.model.config) == pytest.approx(calibration(whole.model.config), rel=1e-5)


def test_a_toy_preference_is_learnt(tmp_path):
    words = ["red", "blue", "green", "stone", "river", "cloud", "seven", "lamp"]
    rows = [
        {"prompt": first, "completions": [f"{second} yes", f"{second} hm", f"{second} no"], "ranks": [1, 2, 3]}
        for first, second in itertools.permutations(words, 2)
    ]
    options = dict(learning_rate=3e-3, num_train_epochs=2, per_device_train_batch_size=8)
    trainer = make(tmp_path, rows[:48], eval_rows=rows[48:], **options)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_accuracy"] > 0.9 > before["eval_accuracy"]
    assert after["eval_loss"] < before["eval_loss"]


# ------------------------------------------------------------------------------------------
# Adapters


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_keeps_its_head_and_calibration(tmp_path, checkpointing):
    tiny().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    model = load_reward_model(tmp_path / "base")
    lora = LoraConfig(r=4, lora_dropout=0.0)
    options = dict(learning_rate=1e-2, num_train_epochs=3, gradient_checkpointing=checkpointing)
    options |= dict(gradient_checkpointing_kwargs={"use_reentrant": True} if checkpointing else None)
    trainer = make(tmp_path, model=model, peft_config=lora, **options)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert all("lora_" in name or "score.modules_to_save" in name for name in moved)
    assert sum("lora_A" in name for name in moved) == 2 * 4 and any("score" in name for name in moved)
    trainer.save_model(str(tmp_path / "adapter"))
    texts = (["one", "two"], ["good", "bad"])
    expected = score_texts(trainer.model, byte_tokenizer(), *texts)
    gain, bias = calibration(load_config(tmp_path / "adapter"))
    assert (gain, bias) == (1.0, calibration(model.config)[1]) and calibration(model.config)[0] != 1.0
    assert not (tmp_path / "adapter" / "config.json").exists()
    plain = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=1)
    raw = score_texts(plain, byte_tokenizer(), *texts)  # the base's config knows no bias
    torch.testing.assert_close(raw + bias, expected, atol=1e-5, rtol=1e-5)
    merged = load_reward_model(tmp_path / "adapter")
    torch.testing.assert_close(score_texts(merged, byte_tokenizer(), *texts), expected, atol=1e-5, rtol=1e-5)
    trainer.model.merge_and_unload().save_pretrained(tmp_path / "merged")
    alone = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(score_texts(alone, byte_tokenizer(), *texts), expected, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    plain = gradients(make(tmp_path, max_grad_norm=0.0))
    saved = gradients(make(tmp_path, max_grad_norm=0.0, gradient_checkpointing=True))
    for name, grad in plain.items():
        torch.testing.assert_close(saved[name], grad, atol=1e-6, rtol=1e-5, msg=name)


# ------------------------------------------------------------------------------------------
# Two processes


def main(folder, processes):
    """One optimizer step on four lists, an evaluation on three and a calibration on four; written by the first."""
    options = dict(learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=0.0)
    sizes = dict(per_device_train_batch_size=4, per_device_eval_batch_size=2)
    if processes == 2:  # the same four lists by another road
        sizes |= dict(per_device_train_batch_size=1, gradient_accumulation_steps=2, gradient_checkpointing=True)
    trainer = make(folder, eval_rows=RANKED[:3], center_rewards_coefficient=0.1, **options, **sizes)
    trainer.train()
    told = trainer.evaluate()
    if trainer.is_world_process_zero():
        log = next(log for log in trainer.state.log_history if "loss" in log)
        numbers = {name: log[name] for name in ("loss", "accuracy", "margin", "mean_reward")}
        numbers |= {name: told[name] for name in told if name in ("eval_loss", "eval_accuracy", "eval_margin")}
        numbers["gain"], numbers["bias"] = calibration(trainer.model.config)
        Path(folder, f"{processes}.json").write_text(json.dumps(numbers))
        torch.save(trainer.model.state_dict(), Path(folder, f"{processes}.pt"))


def test_two_processes_train_and_measure_as_one(tmp_path):
    main(tmp_path, 1)
    launched(__file__, tmp_path, 2)
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert two == pytest.approx(one, rel=1e-4, abs=1e-5)
    before, one, two = copy.deepcopy(tiny().state_dict()), torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "2.pt")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5, msg=name)
    assert not torch.equal(before["score.weight"], one["score.weight"])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
    torch.distributed.destroy_process_group()  # left to the interpreter's end, its threads now and then abort it
