"""KTO: TRL's loss gets the kit's rows, the KL is of other prompts' answers, the weights follow the counts."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from rlhf_kit.errors import UserError
from rlhf_kit.methods.config import KTOConfig
from rlhf_kit.methods.kto import KTOTrainer, balance
from rlhf_kit.models.forward import copied
from tests.methods.apart import answer_logprobs, moved

TEXTS = ["cat", "a dog", "mat", "the cat sat", "so did the dog"]
THUMBS = [
    {"prompt": [{"role": "user", "content": f"say {at}"}], "completion": text, "label": at % 2 == 0}
    for at, text in enumerate(TEXTS)
]
RANKED = [
    {"prompt": [{"role": "user", "content": f"say {at}"}], "completions": TEXTS[:4], "ranks": [1, 2, 3, 4]}
    for at in range(8)
]


def make(policy, tokenizer, folder, rows=THUMBS, peft_config=None, ref_model=None, **options):
    given = {"max_steps": 2, "per_device_train_batch_size": 5, "report_to": "none", "use_cpu": True, "bf16": False}
    given |= {"disable_tqdm": True, "logging_steps": 1, "learning_rate": 1e-3, "gradient_checkpointing": False}
    args = KTOConfig(str(folder), **given | options)
    return KTOTrainer(policy, args, list(rows), None, tokenizer, peft_config, ref_model=ref_model)


def by_hand(policy, reference, rows, weights, beta=0.1):
    """Eq. 7 and 8 of the paper; the KL's answers are each row's neighbour's, before it."""
    prompts, answers = ([row[name] for row in rows] for name in ("prompt_ids", "completion_ids"))
    others = [answers[-1], *answers[:-1]]
    ratio, of_others = (
        (answer_logprobs(policy, prompts, each) - answer_logprobs(reference, prompts, each)).sum(1)
        for each in (answers, others)
    )
    kl = of_others.mean().clamp(min=0)
    good = torch.tensor([row["label"] for row in rows])
    losses = torch.where(good, 1 - torch.sigmoid(beta * (ratio - kl)), 1 - torch.sigmoid(beta * (kl - ratio)))
    return (losses * torch.where(good, *weights)).mean().item()


def test_the_loss_is_the_papers_by_log_probs_computed_apart(policy, tokenizer, tmp_path):
    reference = moved(policy)
    trainer = make(policy, tokenizer, tmp_path, ref_model=copied(reference))
    rows = [*trainer.train_dataset]
    batch = trainer.data_collator(rows)
    for row, ids, attention, completion in zip(
        rows, batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        assert ids[attention.bool()].tolist() == row["prompt_ids"] + row["completion_ids"]
        assert ids[completion.bool()].tolist() == row["completion_ids"]
    loss = trainer.compute_loss(trainer.model, batch).item()
    weights = trainer.desirable_weight, trainer.undesirable_weight
    assert weights == (1.0, 1.125)  # three good ones and two bad
    assert abs(loss - by_hand(policy.eval(), reference.eval(), rows, weights)) < 1e-6


def test_the_answers_of_a_ranking_are_not_one_anothers_kl(policy, tokenizer, tmp_path):
    trainer = make(policy, tokenizer, tmp_path, RANKED, per_device_train_batch_size=4)
    rows = [*trainer.train_dataset]
    assert len(rows) == 32 and sum(row["label"] for row in rows) == 16
    neighbours = sum(a["prompt_ids"] == b["prompt_ids"] for a, b in zip(rows, rows[1:], strict=False))
    assert neighbours < 8  # 24 where the lists stand one after the other
    again = make(policy, tokenizer, tmp_path, RANKED, per_device_train_batch_size=4).train_dataset
    assert [*again] == rows  # by the seed alone


@pytest.mark.parametrize("good, bad", [(1, 1), (100, 200), (400, 300), (300, 100), (7, 90)])
def test_weights_follow_eq_8(good, bad):
    of_good, of_bad = balance(good, bad)
    ratio = of_good * good / (of_bad * bad)
    assert 1 - 1e-9 <= ratio <= 4 / 3 + 1e-9 and min(of_good, of_bad) == 1
    nearest = 4 / 3 if good > bad else 1
    assert (of_good, of_bad) == (1, 1) or abs(ratio - nearest) < 1e-9  # no more than is needed


def test_weights_that_are_given_stay(policy, tokenizer, tmp_path):
    trainer = make(policy, tokenizer, tmp_path, desirable_weight=2.0)
    assert (trainer.desirable_weight, trainer.undesirable_weight) == (2.0, 1.0)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)], ids=["whole", "lora"])
def test_without_learning_the_policy_stays_on_its_reference(policy, tokenizer, tmp_path, lora):
    trainer = make(policy, tokenizer, tmp_path, peft_config=lora, learning_rate=0.0)
    assert lora is None or {*trainer.model.peft_config} == {"default"}
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == 2
    for row in logs:
        assert max(abs(row[name]) for name in ("kl", "rewards/chosen", "rewards/rejected")) < 1e-6


def test_one_kind_alone_teaches_nothing(policy, tokenizer, tmp_path):
    with pytest.raises(UserError, match="All 3 answers are good; .*rlhf-kit sft"):
        make(policy, tokenizer, tmp_path, [row for row in THUMBS if row["label"]])


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"per_device_train_batch_size": 1},
            "per_device_train_batch_size=1: the KL .* other prompts; give at least 2",
        ),
        ({"train_sampling_strategy": "random"}, "train_sampling_strategy='random': .*order"),
        ({"disable_dropout": False}, "disable_dropout=False"),
        ({"undesirable_weight": -1.0}, "undesirable_weight=-1.0 must not be negative"),
    ],
)
def test_options_that_contradict_it_are_refused(policy, tokenizer, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make(policy, tokenizer, tmp_path, **options)


def test_a_run_cut_off_goes_on_to_the_same_end(policy, tokenizer, tmp_path):
    ends = []
    for folder in ("whole", "cut"):
        options = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4}
        trainer = make(copied(policy), tokenizer, tmp_path / folder, RANKED, **options)
        trainer.train(str(Path(tmp_path, "whole", "checkpoint-2")) if folder == "cut" else None)
        ends.append(trainer.model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
