import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.models.packed import is_packed
from rlhf_kit.models.roles import reference_of
from rlhf_kit.sft import SFTTrainer, encode_demonstrations

DIALOGUE = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "the cat"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "the dog sat"},
]


def config(folder, **options):
    options = {"use_cpu": True, "bf16": False, "report_to": "none", "activation_checkpointing": False} | options
    return SFTConfig(str(folder), disable_tqdm=True, **options)


def dialogues(*rows):
    return Dataset.from_list([{"messages": messages} for messages in rows])


def trained_text(row, tokenizer):
    return tokenizer.decode([label for label in row["labels"] if label != -100])


def test_the_loss_lies_on_every_assistant_turn_and_its_end_and_on_nothing_else(tokenizer):
    rows, counts = encode_demonstrations(dialogues(DIALOGUE), tokenizer, None)
    row = rows[0]
    assert tokenizer.decode(row["input_ids"]) == (
        "System: be kind<|endoftext|>User: hello<|endoftext|>Assistant: the cat<|endoftext|>"
        "User: and?<|endoftext|>Assistant: the dog sat<|endoftext|>"
    )
    assert trained_text(row, tokenizer) == " the cat<|endoftext|> the dog sat<|endoftext|>"
    assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))
    assert counts == {"rows": 1, "kept": 1, "cut": 0, "dropped": 0}


def test_a_prompt_and_completion_of_plain_text_stay_verbatim_without_a_template(tokenizer_folder):
    tokenizer = load_tokenizer(tokenizer_folder)
    rows, _ = encode_demonstrations(Dataset.from_list([{"prompt": "Q: cat?", "completion": " mat"}]), tokenizer, None)
    assert tokenizer.decode(rows[0]["input_ids"]) == "Q: cat? mat<|endoftext|>"
    assert trained_text(rows[0], tokenizer) == " mat<|endoftext|>"
    assert tokenizer.chat_template is None


def test_a_long_dialogue_ends_with_its_last_whole_answer(tokenizer):
    whole, _ = encode_demonstrations(dialogues(DIALOGUE), tokenizer, None)
    first, _ = encode_demonstrations(dialogues(DIALOGUE[:3]), tokenizer, None)
    length, enough = len(whole[0]["input_ids"]), len(first[0]["input_ids"])
    for limit in (length - 1, enough):
        rows, counts = encode_demonstrations(dialogues(DIALOGUE), tokenizer, limit)
        assert rows[0] == first[0] and counts["cut"] == 1
    rows, counts = encode_demonstrations(dialogues(DIALOGUE), tokenizer, length)
    assert rows[0] == whole[0] and counts["cut"] == 0
    short = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows, counts = encode_demonstrations(dialogues(DIALOGUE, short), tokenizer, enough - 1)
    assert len(rows) == 1 and counts == {"rows": 2, "kept": 1, "cut": 0, "dropped": 1}


def test_nothing_left_is_the_users_to_mend(tokenizer):
    with pytest.raises(UserError, match="None of the 1 demonstrations fits max_length=5"):
        encode_demonstrations(dialogues(DIALOGUE), tokenizer, 5)
    with pytest.raises(UserError, match="the columns are `text`; needed: `messages`, or `prompt` \\+ `completion`"):
        encode_demonstrations(Dataset.from_list([{"text": "x"}]), tokenizer, None)


def test_every_batch_masks_by_length_though_padding_is_the_end_of_text(policy, tokenizer, tmp_path):
    short = DIALOGUE[1:3]
    trainer = SFTTrainer(policy, config(tmp_path), dialogues(DIALOGUE, short), processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    lengths = [len(row["input_ids"]) for row in trainer.train_dataset]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["labels"][1, lengths[1] - 1] == tokenizer.eos_token_id  # the end of the answer is learnt
    assert (batch["labels"][1, lengths[1] :] == -100).all()  # and padding is not
    assert (batch["input_ids"][1, lengths[1] :] == tokenizer.pad_token_id).all()  # on the right


def test_the_loss_is_the_cross_entropy_of_the_assistants_tokens(policy, tokenizer, tmp_path):
    trainer = SFTTrainer(policy, config(tmp_path), dialogues(DIALOGUE, DIALOGUE[1:3]), processing_class=tokenizer)
    rows = list(trainer.train_dataset)
    batch = trainer.data_collator(rows)
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch))
        plain = AutoModelForCausalLM.from_config(policy.config).eval()
        plain.load_state_dict(policy.state_dict())
        total, count = 0.0, 0
        for row in rows:  # alone, unpadded
            logits = plain(torch.tensor([row["input_ids"]])).logits[0]
            logprobs = logits.log_softmax(-1)
            for at, label in enumerate(row["labels"]):
                if label != -100:
                    total, count = total - logprobs[at - 1, label].item(), count + 1
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_packing_changes_no_loss(policy, tokenizer, tmp_path):
    rows = dialogues(DIALOGUE, DIALOGUE[1:3], DIALOGUE[1:], DIALOGUE[3:])
    losses = []
    for packing in (False, True):
        args = config(tmp_path, packing=packing, max_length=128, per_device_eval_batch_size=4)
        trainer = SFTTrainer(policy, args, rows, eval_dataset=rows, processing_class=tokenizer)
        assert (len(trainer.eval_dataset) < 4) == packing
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_saved_model_stops_and_says_the_same_in_plain_transformers(policy, tokenizer_folder, tmp_path):
    tokenizer = load_tokenizer(tokenizer_folder)
    policy.generation_config.eos_token_id = None
    args = config(tmp_path, max_steps=60, learning_rate=3e-3, per_device_train_batch_size=2, save_strategy="no")
    rows = dialogues(DIALOGUE[1:3], [DIALOGUE[3], DIALOGUE[4]])
    trainer = SFTTrainer(policy, args, rows, processing_class=tokenizer)
    before = policy.lm_head.weight.clone()
    trainer.train()
    assert not torch.equal(before, policy.lm_head.weight)
    trainer.save_model(str(tmp_path / "saved"))

    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    its_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    ids = its_tokenizer.apply_chat_template(
        [DIALOGUE[1]], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answers = [model.eval().generate(**ids, max_new_tokens=20, do_sample=False) for model in (policy, saved)]
    assert torch.equal(*answers)
    answer = answers[1][0, ids["input_ids"].shape[1] :]
    assert its_tokenizer.decode(answer) == " the cat<|endoftext|>"  # it has learnt to end


@pytest.mark.parametrize(
    "options, message",
    [
        ({"completion_only_loss": False}, "completion_only_loss=False"),
        ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy='wrapped'"),
        ({"eos_token": "x", "dataset_text_field": "body"}, "dataset_text_field='body'.*eos_token='x'"),
        ({"padding_free": True}, "padding_free=True"),
        ({"model_init_kwargs": {"dtype": "float32"}}, "model_init_kwargs"),
    ],
)
def test_options_that_contradict_the_trainer_are_refused_together(policy, tokenizer, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        SFTTrainer(policy, config(tmp_path, **options), dialogues(DIALOGUE), processing_class=tokenizer)


def test_a_template_can_be_given_and_fresh_rows_evaluated(policy, tokenizer_folder, tokenizer, tmp_path):
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}"
        "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    args = config(tmp_path, chat_template_path=str(tmp_path / "own.jinja"), assistant_only_loss=True)
    trainer = SFTTrainer(policy, args, dialogues(DIALOGUE[1:3]), processing_class=load_tokenizer(tokenizer_folder))
    assert tokenizer.decode(trainer.train_dataset[0]["input_ids"]) == "hellothe cat<|endoftext|>"
    assert trainer.evaluate(dialogues(DIALOGUE))["eval_loss"] > 0
    args = config(tmp_path, chat_template_path=str(tmp_path / "none.jinja"))
    with pytest.raises(UserError, match="chat_template_path: .*No such file"):
        SFTTrainer(policy, args, dialogues(DIALOGUE), processing_class=tokenizer)


def test_adapters_fit_gpt2_and_are_drawn_from_the_seed(policy, tokenizer, tmp_path):
    drawn = []
    for _ in range(2):
        model = copy.deepcopy(policy)
        rows = dialogues(DIALOGUE)
        trainer = SFTTrainer(
            model, config(tmp_path), rows, processing_class=tokenizer, peft_config=LoraConfig(lora_dropout=0.0)
        )
        named = dict(trainer.model.named_parameters())
        drawn.append(named["base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight"].detach())
        assert trainer.model.peft_config["default"].fan_in_fan_out
        assert all(".lora_" in name for name, parameter in named.items() if parameter.requires_grad)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_learns_what_a_step_of_the_plain_loss_learns(policy, tokenizer, tmp_path, packing, checkpointing):
    """Padded rows as TRL collates them, or packed ones side by side; with activations computed anew too."""
    rows = dialogues(DIALOGUE, DIALOGUE[1:3], DIALOGUE[1:], DIALOGUE[:3])
    args = config(tmp_path, packing=packing, max_length=64, activation_checkpointing=checkpointing)
    trainer = SFTTrainer(policy, args, rows, processing_class=tokenizer)
    assert is_packed(trainer.model)
    batch = trainer.data_collator([trainer.train_dataset[at] for at in range(len(trainer.train_dataset))])
    found = []
    for alone in (True, False):
        trainer._labelled_alone = alone
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model.eval(), dict(batch), num_items_in_batch=torch.tensor(20))
        loss.backward()
        found.append([loss.detach(), *[p.grad.clone() for p in trainer.model.parameters()]])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing_factor": 0.1}, {"torch_compile": True}, {"neftune_noise_alpha": 5.0}]
)
def test_what_needs_all_logits_has_them(policy, tokenizer, tmp_path, options):
    """A smoothed loss, a compiled model, and predictions with any loss; NEFTune, whose noise goes by the row."""
    trainer = SFTTrainer(policy, config(tmp_path, **options), dialogues(DIALOGUE), processing_class=tokenizer)
    assert trainer._labelled_alone == (not options)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    if not options:
        _, logits, _ = trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
        assert logits.shape[:2] == batch["input_ids"].shape


def test_a_copy_of_a_model_that_was_fine_tuned_computes_by_itself(policy, tokenizer, tmp_path):
    """As a PPO in the same program needs of its reference: TRL leaves a forward on the model that it trains."""
    SFTTrainer(policy, config(tmp_path), dialogues(DIALOGUE), processing_class=tokenizer)
    reference, ids = reference_of(policy, None, None), torch.tensor([[1, 2, 3]])
    before = reference(input_ids=ids).logits
    torch.testing.assert_close(before, policy(input_ids=ids).logits)
    for parameter in policy.parameters():
        parameter.data += 0.1
    assert torch.equal(reference(input_ids=ids).logits, before)
