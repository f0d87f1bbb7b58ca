"""Fine-tuning: the loss, what is frozen, LoRA and back, QANet; a small model learns its questions by heart."""

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from toy_reader import reader, tokenizer_of, world_questions
from transformers import BertConfig, BertForQuestionAnswering

from rlhf_kit.errors import UserError
from rlhf_kit.eval import scorers
from rlhf_kit.eval.extractive.data import Question
from rlhf_kit.eval.extractive.finetune import ExtractiveConfig, finetune, freeze
from rlhf_kit.eval.extractive.models import load_reader
from rlhf_kit.eval.extractive.predict import predict
from rlhf_kit.models import adapters

ASKED = world_questions(8)
TOKENIZER = tokenizer_of([one.context + one.question for one in ASKED])


def config(folder, **options):
    base = dict(max_length=64, use_cpu=True, disable_tqdm=True, seed=0, logging_strategy="no")
    return ExtractiveConfig(str(folder), **(base | options))


def test_the_defaults_are_those_of_run_squad(tmp_path):
    args = ExtractiveConfig(str(tmp_path), use_cpu=True)
    assert (args.per_device_train_batch_size, args.learning_rate, args.num_train_epochs) == (32, 5e-5, 3)
    assert (args.max_length, args.max_query_length, args.get_warmup_steps(1000)) == (384, 64, 100)
    assert (args.weight_decay, args.adam_epsilon, args.max_grad_norm, args.lr_scheduler_type) == (
        0.01, 1e-6, 1.0, "linear"
    )  # fmt: skip


def test_a_small_model_learns_its_questions_by_heart_through_several_windows(tmp_path):
    model = reader(len(TOKENIZER), width=32, layers=1)
    args = config(tmp_path, max_length=48, step=16, learning_rate=5e-3, max_steps=60)
    trainer = finetune(model, TOKENIZER, ASKED, args)
    assert len(trainer.windows) > len(ASKED)
    found = predict(trainer.model, TOKENIZER, ASKED, max_length=48, step=16)
    scores = [scorers.drcd(one.text, question.references).em for one, question in zip(found, ASKED, strict=True)]
    assert sum(scores) >= 7


def test_a_small_model_learns_where_there_is_no_answer(tmp_path):
    """Half of the questions are asked of a passage that has no answer to them."""
    asked = [
        one if at % 2 else replace(one, answers=(), context=ASKED[at - 1].context) for at, one in enumerate(ASKED)
    ]
    assert [bool(one.answers) for one in asked] == [False, True] * 4
    model = reader(len(TOKENIZER), width=32, layers=1)
    trainer = finetune(model, TOKENIZER, asked, config(tmp_path, max_length=64, learning_rate=5e-3, max_steps=60))
    found = predict(trainer.model, TOKENIZER, asked, max_length=64, null_threshold=0.0)
    scores = [scorers.squad2(one.text, question.references).em for one, question in zip(found, asked, strict=True)]
    assert sum(scores) >= 7 and sum(not one.text for one in found) >= 3
    always = predict(trainer.model, TOKENIZER, asked, max_length=64)  # as of SQuAD 1.1
    assert all(one.text for one in always)


def test_labels_and_the_loss_are_those_of_the_pair_as_its_tokenizer_makes_it(tmp_path):
    model = reader(len(TOKENIZER), positions=128)
    asked = [*ASKED[:3], Question("short", "狗", "誰？", (("狗", 0),), "short", "who")]
    options = dict(max_steps=1, per_device_train_batch_size=4, learning_rate=0.0, max_length=128)
    trainer = finetune(model, TOKENIZER, asked, config(tmp_path, **options))
    assert trainer.state.log_history[-1]["train_loss"] > 0
    batch = trainer.data_collator([trainer.train_dataset[at] for at in range(4)])
    model.eval()
    losses = []
    for at, one in enumerate(asked):
        encoded = TOKENIZER(one.question, one.context, return_tensors="pt", return_offsets_mapping=True)
        places = encoded.pop("offset_mapping")[0].tolist()
        shift = encoded["token_type_ids"][0].tolist().index(1)
        (text, start), end = one.answers[0], one.answers[0][1] + len(one.answers[0][0])
        first = next(place for place in range(shift, len(places)) if places[place][0] == start)
        last = next(place for place in range(shift, len(places)) if places[place][1] == end)
        assert (first, last) == (batch["start_positions"][at], batch["end_positions"][at])
        assert text == one.context[start:end]
        out = model(**encoded)
        losses += [-out.start_logits[0].log_softmax(0)[first], -out.end_logits[0].log_softmax(0)[last]]
    padding = batch["attention_mask"].sum(1)
    assert padding.min() < padding.max() == batch["input_ids"].shape[1]
    # the softmax of a padded row runs over the padding too, as BERT's does: of whole rows it is the same
    longest = int(padding.argmax())
    one = {name: values[longest : longest + 1] for name, values in batch.items()}
    assert model(**one).loss.item() == pytest.approx(
        (losses[2 * longest] + losses[2 * longest + 1]).item() / 2, abs=1e-5
    )


@pytest.mark.parametrize(
    ("what", "learns", "rests"),
    [
        ("embeddings", ["encoder.layer.0", "encoder.layer.1", "qa_outputs"], ["embeddings"]),
        ("encoder", ["embeddings", "qa_outputs"], ["encoder"]),
        ("1-layers", ["encoder.layer.1", "qa_outputs"], ["embeddings", "encoder.layer.0"]),
        ("2-layers", ["qa_outputs"], ["embeddings", "encoder"]),
    ],
)
def test_what_is_frozen_stays_and_the_rest_learns(what, learns, rests, tmp_path):
    model = reader(len(TOKENIZER))
    before = {name: value.clone() for name, value in model.named_parameters()}
    finetune(model, TOKENIZER, ASKED, config(tmp_path, freeze=what, max_steps=2, learning_rate=1e-2, warmup_steps=0))
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    for part in learns:
        assert any(part in name for name in moved), part
    assert not [name for name in moved if any(part in name for part in rests)]


def test_frozen_names_and_what_cannot_be_frozen():
    model = reader(len(TOKENIZER))
    names = freeze(model, "embeddings")
    assert names == [name for name, value in model.named_parameters() if not value.requires_grad]
    assert names and all(name.startswith("bert.embeddings.") for name in names)
    for what, told in (("head", "give embeddings, encoder"), ("3-layers", "has 2 layers"), ("0-layers", "has 2")):
        with pytest.raises(UserError, match=told):
            freeze(model, what)


def test_an_adapter_comes_back_with_its_head_and_reads_token_types(tmp_path):
    base = reader(len(TOKENIZER))
    base.save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    model, tokenizer = load_reader(str(tmp_path / "base"), trained=False)
    plain = predict(model, tokenizer, ASKED, max_length=64)
    args = config(tmp_path / "run", max_steps=3, learning_rate=3e-2, warmup_steps=0)
    trainer = finetune(model, tokenizer, ASKED, args, peft_config=LoraConfig(r=2, lora_alpha=4))
    trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in name or "qa_outputs" in name for name in trained)
    expected = predict(trainer.model, tokenizer, ASKED, max_length=64)
    assert [one.text for one in expected] != [one.text for one in plain]
    adapters.save(trainer.model, tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    again = predict(*load_reader(str(tmp_path / "adapter")), ASKED, max_length=64)
    for one, other in zip(again, expected, strict=True):
        assert (one.text, one.start) == (other.text, other.start)
        assert math.isclose(one.probability, other.probability, rel_tol=1e-4)


def test_what_gives_nothing_to_learn_or_does_not_fit_is_refused(tmp_path):
    nothing = Question("q", "狗 \u200b", "誰？", (("\u200b", 2),), "g", "who")
    model = reader(len(TOKENIZER))
    with pytest.raises(UserError, match="no question to learn from"):
        finetune(model, TOKENIZER, [nothing], config(tmp_path))
    with pytest.raises(UserError, match="do not fit"):
        finetune(model, TOKENIZER, ASKED, config(tmp_path, max_length=65))


def test_equal_seeds_give_equal_models(tmp_path):
    def weights():
        torch.manual_seed(1)
        sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        model = BertForQuestionAnswering(BertConfig(vocab_size=len(TOKENIZER), **sizes))
        return finetune(model, TOKENIZER, ASKED, config(tmp_path, max_steps=3)).model.qa_outputs.weight

    assert torch.equal(weights(), weights())


def test_lora_and_freeze_together_are_refused(tmp_path):
    with pytest.raises(UserError, match="leave out freeze, or LoRA"):
        finetune(
            reader(len(TOKENIZER)), TOKENIZER, ASKED, config(tmp_path, freeze="encoder"), peft_config=LoraConfig(r=2)
        )


def test_what_was_trained_in_bf16_is_measured_in_its_own_precision(tmp_path):
    args = config(tmp_path / "a", max_steps=1, bf16=True)
    model = finetune(reader(len(TOKENIZER)), TOKENIZER, ASKED, args).model.eval()
    model.save_pretrained(tmp_path / "b")
    again = BertForQuestionAnswering.from_pretrained(tmp_path / "b").eval()
    ids = torch.tensor([[2, 5, 3, 6, 7, 3]])
    with torch.no_grad():
        assert torch.equal(model(ids).start_logits, again(ids).start_logits)


class ReadsPadding(BertForQuestionAnswering):
    def forward(self, input_ids, attention_mask=None, **options):
        return super().forward(input_ids, torch.ones_like(input_ids), **options)


def test_a_model_that_reads_padding_is_refused_but_in_rows_of_one(tmp_path):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = ReadsPadding(BertConfig(vocab_size=len(TOKENIZER), initializer_range=0.5, **sizes))
    with pytest.raises(UserError, match="cannot be trained on windows of different lengths: .* spans are off by"):
        finetune(model, TOKENIZER, ASKED, config(tmp_path, max_steps=1))
    alone = config(tmp_path, max_steps=1, per_device_train_batch_size=1, remove_unused_columns=False)
    finetune(model, TOKENIZER, ASKED, alone)
