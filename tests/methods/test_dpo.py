"""DPO: what reaches TRL's loss is the kit's, each list weighs once, and the reference is the policy as it was."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_kit.errors import UserError
from rlhf_kit.methods.config import DPOConfig
from rlhf_kit.methods.dpo import DPOTrainer
from rlhf_kit.models.forward import copied
from tests.methods.apart import answer_logprobs, moved

LISTS = [  # one pair, three and five of them
    {"prompt": [{"role": "user", "content": "say it"}], "completions": ["cat", "a dog"], "ranks": [1, 2]},
    {"prompt": [{"role": "user", "content": "hello"}], "completions": ["mat", "the cat", "so"], "ranks": [3, 1, 2]},
    {"prompt": [{"role": "user", "content": "and"}], "completions": ["on", "mat", "dog", "at"], "ranks": [1, 2, 2, 3]},
]  # fmt: skip


def config(folder, **options):
    given = {"max_steps": 2, "per_device_train_batch_size": 3, "report_to": "none", "use_cpu": True, "bf16": False}
    given |= {"disable_tqdm": True, "logging_steps": 1, "learning_rate": 1e-3, "gradient_checkpointing": False}
    return DPOConfig(str(folder), **given | options)


def make(policy, tokenizer, folder, rows=LISTS, peft_config=None, ref_model=None, **options):
    return DPOTrainer(policy, config(folder, **options), list(rows), None, tokenizer, peft_config, ref_model=ref_model)


def whole_batch(trainer):
    return trainer.data_collator([*trainer.train_dataset])


def by_hand(policy, reference, rows, beta=0.1):
    """The mean over lists of the mean over their pairs of -log sigmoid(beta * (difference of log ratios))."""
    losses = []
    for row in rows:
        prompts = [row["prompt_ids"]] * len(row["answer_ids"])
        ratios = [answer_logprobs(model, prompts, row["answer_ids"]).sum(1) for model in (policy, reference)]
        ratio = ratios[0] - ratios[1]
        losses.append(-F.logsigmoid(beta * (ratio[row["better"]] - ratio[row["worse"]])).mean())
    return torch.stack(losses).mean().item()


def test_each_list_weighs_once_by_log_probs_computed_apart(policy, tokenizer, tmp_path):
    reference = moved(policy)
    trainer = make(policy, tokenizer, tmp_path, ref_model=copied(reference))
    rows = [*trainer.train_dataset]
    assert [len(row["better"]) for row in rows] == [1, 3, 5]
    loss = trainer.compute_loss(trainer.model, whole_batch(trainer)).item()
    assert abs(loss - by_hand(policy.eval(), reference.eval(), rows)) < 1e-6
    halves = [trainer.compute_loss(trainer.model, trainer.data_collator([row])).item() for row in rows]
    assert abs(loss - sum(halves) / 3) < 1e-6


def test_a_steps_loss_is_the_mean_over_its_lists_however_it_is_divided(policy, tokenizer, tmp_path):
    logged = []
    for size, parts in ((3, 1), (1, 3)):
        trainer = make(
            copied(policy), tokenizer, tmp_path, max_steps=2,
            per_device_train_batch_size=size, gradient_accumulation_steps=parts,
        )  # fmt: skip
        trainer.train()
        logged.append([(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row])
    torch.testing.assert_close(torch.tensor(logged[0]), torch.tensor(logged[1]), atol=1e-5, rtol=1e-4)


def test_a_weight_is_how_often_a_list_counts(policy, tokenizer, tmp_path):
    weighted = [LISTS[0] | {"weight": 3.0}, *({**row, "weight": 1.0} for row in LISTS[1:])]
    losses = []
    for rows in (weighted, [LISTS[0], LISTS[0], *LISTS]):
        trainer = make(policy, tokenizer, tmp_path, rows, ref_model=moved(policy))
        losses.append(trainer.compute_loss(trainer.model, whole_batch(trainer)).item())
    assert abs(losses[0] - losses[1]) < 1e-6


def test_what_reaches_trls_loss_is_what_the_kit_computes(policy, tokenizer, tmp_path, monkeypatch):
    """Tokens, masks, and both log-probs of each pair, to 1e-6."""
    reference, seen = moved(policy), []
    trainer = make(policy, tokenizer, tmp_path, ref_model=copied(reference))

    def look(self, model, inputs, *args):
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        seen.append((inputs, model(input_ids=inputs["input_ids"], labels=labels).log_probs.detach()))
        return inner(self, model, inputs, *args)

    inner = trl.DPOTrainer.compute_loss
    monkeypatch.setattr(trl.DPOTrainer, "compute_loss", look)
    trainer.compute_loss(trainer.model, whole_batch(trainer))
    for row, (inputs, found) in zip(trainer.train_dataset, seen, strict=True):
        answers = [row["answer_ids"][at] for at in row["better"] + row["worse"]]
        prompts = [row["prompt_ids"]] * len(answers)
        for place, answer in enumerate(answers):
            kept = inputs["attention_mask"][place].bool()
            assert inputs["input_ids"][place][kept].tolist() == row["prompt_ids"] + answer
            assert inputs["input_ids"][place][inputs["completion_mask"][place].bool()].tolist() == answer
        expected = answer_logprobs(policy, prompts, answers).sum(1)
        assert (found.sum(1) - expected).abs().max() < 1e-5
        given = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        assert (given - answer_logprobs(reference, prompts, answers).sum(1)).abs().max() < 1e-5


def test_of_pairs_it_is_trls_trainer_with_the_kits_tokens(policy, tokenizer, tmp_path):
    rows = [
        {"prompt": row["prompt"], **{name: [{"role": "assistant", "content": text}] for name, text in
         (("chosen", row["completions"][0]), ("rejected", row["completions"][1]))}}
        for row in LISTS
    ]  # fmt: skip
    reference = moved(policy)
    args = trl.DPOConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False)
    plain = trl.DPOTrainer(
        copied(policy), copied(reference), args, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    theirs = plain.compute_loss(plain.model, plain.data_collator([*plain.train_dataset])).item()
    ranked = [row | {"completions": row["completions"][:2], "ranks": [1, 2]} for row in LISTS]
    trainer = make(policy, tokenizer, tmp_path, ranked, ref_model=reference)
    for own, other in zip(trainer.train_dataset, plain.train_dataset, strict=True):
        assert own["prompt_ids"] == other["prompt_ids"]
        assert own["answer_ids"] == [other["chosen_ids"], other["rejected_ids"]]
    assert abs(trainer.compute_loss(trainer.model, whole_batch(trainer)).item() - theirs) < 1e-6


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)], ids=["whole", "lora"])
def test_without_learning_the_policy_stays_on_its_reference(policy, tokenizer, tmp_path, lora):
    """In training mode, whatever dropout GPT-2 came with."""
    trainer = make(policy, tokenizer, tmp_path, peft_config=lora, learning_rate=0.0)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == 2
    for row in logs:
        assert abs(row["loss"] - math.log(2)) < 1e-6
        assert max(abs(row[f"rewards/{name}"]) for name in ("chosen", "rejected", "margins")) < 1e-6


def test_rates_that_no_dropout_module_holds_are_0_too(tokenizer, tmp_path):
    """Llama keeps that of its attention as a number, which TRL leaves."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, attention_dropout=0.5, **sizes)
    trainer = make(LlamaForCausalLM(config), tokenizer, tmp_path, learning_rate=0.0)
    trainer.train()
    assert all(abs(row["loss"] - math.log(2)) < 1e-6 for row in trainer.state.log_history if "loss" in row)


def test_lora_compares_with_its_base_and_saves_one_adapter(policy, tokenizer, tmp_path):
    base = copied(policy)
    trainer = make(policy, tokenizer, tmp_path, peft_config=LoraConfig(r=2), learning_rate=1e-2, max_steps=3)
    assert trainer.ref_model is None and {*trainer.model.peft_config} == {"default"}
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "ref").exists() and not (tmp_path / "README.md").exists()
    row = trainer.train_dataset[2]
    prompts = [row["prompt_ids"]] * len(row["answer_ids"])
    batch = trainer.data_collator([row])
    rows = {name: batch[name] for name in ("input_ids", "attention_mask", "completion_mask")}
    found = torch.cat(trainer.compute_ref_log_probs(trainer.model, rows))
    expected = answer_logprobs(base.eval(), prompts, row["answer_ids"]).sum(1)
    assert (found - expected).abs().max() < 1e-5
    with trainer.model.disable_adapter():
        assert abs(trainer.compute_loss(trainer.model, batch).item() - math.log(2)) < 1e-6
    assert trainer.compute_loss(trainer.model, batch).item() < math.log(2) - 0.005


def test_the_reference_is_the_policy_as_it_was_handed_over(policy, tokenizer, tmp_path):
    """Not what its name says: that may be another model by now, or none."""
    policy.config._name_or_path = str(tmp_path / "nowhere")
    trainer = make(policy, tokenizer, tmp_path)
    before = copy.deepcopy(trainer.ref_model.state_dict())
    trainer.train()
    assert all(torch.equal(before[name], weight) for name, weight in trainer.ref_model.state_dict().items())
    assert any((weight != before[name]).any() for name, weight in trainer.model.state_dict().items())


def test_evaluation_counts_each_list_once(policy, tokenizer, tmp_path):
    trainer = make(policy, tokenizer, tmp_path, ref_model=moved(policy), per_device_eval_batch_size=2)
    report = trainer.evaluate(list(LISTS))
    assert abs(report["eval_loss"] - by_hand(policy, trainer.ref_model, trainer.train_dataset)) < 1e-6


@pytest.mark.parametrize(
    "options, message",
    [
        ({"disable_dropout": False}, "disable_dropout=False: with dropout"),
        ({"precompute_ref_log_probs": True}, "precompute_ref_log_probs=True: .*LoRA"),
        ({"ld_alpha": 0.5, "padding_free": True}, "padding_free=True: .*; ld_alpha=0.5: "),
        ({"label_smoothing": 0.1}, "label_smoothing=0.1: nothing reads it unless loss_type is robust"),
        ({"discopop_tau": 0.1}, "discopop_tau=0.1: nothing reads it"),
        ({"ref_model_sync_steps": 3}, "unless sync_ref_model is True"),
        ({"remove_unused_columns": True}, "remove_unused_columns=True"),
    ],
)
def test_options_that_contradict_it_are_refused(policy, tokenizer, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make(policy, tokenizer, tmp_path, **options)


def test_what_is_read_with_another_option_is_taken(tmp_path):
    DPOTrainer.refuse(config(tmp_path, label_smoothing=0.1, loss_type=["robust"]))
    with pytest.raises(UserError, match="beta=-1 must"):
        config(tmp_path, beta=-1)
    with pytest.raises(UserError, match="lora_dropout=0.1: with dropout"):
        DPOTrainer.refuse(config(tmp_path), lora_dropout=0.1)


def test_an_adapter_on_the_output_layer_would_learn_nothing(policy, tokenizer, tmp_path):
    policy.config.tie_word_embeddings = False
    policy.lm_head.weight = torch.nn.Parameter(policy.lm_head.weight.clone())
    with pytest.raises(UserError, match="DPO puts no LoRA on the output layer 'lm_head'"):
        make(policy, tokenizer, tmp_path, peft_config=LoraConfig(target_modules=["lm_head"]))


def test_a_run_cut_off_goes_on_to_the_same_end(policy, tokenizer, tmp_path):
    ends = []
    for folder, steps in (("whole", 4), ("cut", 2)):
        rows = [LISTS[at % 3] for at in range(8)]
        options = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "warmup_steps": 0}
        trainer = make(copied(policy), tokenizer, tmp_path / folder, rows, **options)
        if steps == 2:
            (tmp_path / "whole" / "checkpoint-4" / "trainer_state.json").read_text()
            trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        else:
            trainer.train()
        ends.append({name: weight.clone() for name, weight in trainer.model.state_dict().items()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert json.loads((tmp_path / "whole" / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4
