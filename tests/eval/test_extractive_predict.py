"""Predictions: as a plain forward makes them, alike in every batch, of every sort of model; what is refused."""

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_reader import reader, saved_reader, tokenizer_of, world_questions
from transformers import GPT2Config, GPT2ForQuestionAnswering, PreTrainedTokenizerFast

from rlhf_kit.errors import UserError
from rlhf_kit.eval.extractive.models import load_reader
from rlhf_kit.eval.extractive.predict import predict
from rlhf_kit.models.qanet import QANetConfig, QANetForQuestionAnswering, train_word_tokenizer

ASKED = [*world_questions(6), *world_questions(6, "squad_en")]
TOKENIZER = tokenizer_of([one.context + " " + one.question for one in ASKED])
CUT = {"max_length": 40, "step": 13}


@torch.inference_mode()
def alone(model, tokenizer, one, max_length, step, longest=30):
    """(text, start) by a forward a window and a loop over all spans."""
    asked = tokenizer(one.question, add_special_tokens=False)["input_ids"]
    room = max_length - len(asked) - 3
    theirs = tokenizer(
        [one.question], [one.context], truncation="only_second", max_length=max_length, stride=max(0, room - step),
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    best = None
    for at, ids in enumerate(theirs["input_ids"]):
        types = torch.tensor([theirs["token_type_ids"][at]])
        out = model(torch.tensor([ids]), token_type_ids=types)
        starts, ends = out.start_logits[0].tolist(), out.end_logits[0].tolist()
        there = [place for place, owner in enumerate(theirs.sequence_ids(at)) if owner == 1]
        for first in there:
            for last in there:
                if first <= last < first + longest and (best is None or starts[first] + ends[last] > best[0]):
                    low, high = theirs["offset_mapping"][at][first][0], theirs["offset_mapping"][at][last][1]
                    best = starts[first] + ends[last], one.context[low:high], low
    return best[1:]


def test_answers_are_those_of_a_forward_a_window_in_any_batch():
    model = reader(len(TOKENIZER))
    expected = [alone(model, TOKENIZER, one, **CUT) for one in ASKED]
    for max_batch_tokens in (1, 90, 8192):
        found = predict(model, TOKENIZER, ASKED, **CUT, max_batch_tokens=max_batch_tokens)
        assert [(one.text, one.start) for one in found] == expected
        assert [one.id for one in found] == [one.id for one in ASKED]
    assert len({one.text for one in found}) > 6
    backwards = predict(model, TOKENIZER, ASKED[::-1], **CUT)[::-1]
    assert [one.text for one in backwards] == [text for text, _ in expected]


def test_the_best_is_the_first_of_the_n_best_and_all_are_cut_from_the_passage():
    for one, question in zip(predict(reader(len(TOKENIZER)), TOKENIZER, ASKED, **CUT, n_best=7), ASKED, strict=True):
        first = one.n_best[0]
        assert len(one.n_best) == 7 and (first.text, first.start, first.probability) == (
            one.text, one.start, one.probability
        )  # fmt: skip
        assert sum(candidate.probability for candidate in one.n_best) == pytest.approx(1)
        assert [candidate.score for candidate in one.n_best] == sorted((c.score for c in one.n_best), reverse=True)
        assert all(question.context.startswith(candidate.text, candidate.start) for candidate in one.n_best)


@torch.inference_mode()
def test_no_answer_is_where_cls_beats_the_best_span_by_more_than_the_threshold():
    model = reader(len(TOKENIZER))
    plain = predict(model, TOKENIZER, ASKED, **CUT)
    for one, found in zip(ASKED, plain, strict=True):
        windows = TOKENIZER(
            [one.question], [one.context], truncation="only_second", max_length=40,
            stride=40 - 3 - len(TOKENIZER(one.question, add_special_tokens=False)["input_ids"]) - 13,
            return_overflowing_tokens=True,
        )  # fmt: skip
        nulls = []
        for ids, types in zip(windows["input_ids"], windows["token_type_ids"], strict=True):
            out = model(torch.tensor([ids]), token_type_ids=torch.tensor([types]))
            nulls.append((out.start_logits[0, 0] + out.end_logits[0, 0]).item())
        assert found.null_score == pytest.approx(min(nulls), abs=1e-4)
        difference = found.null_score - found.n_best[0].score
        assert found.null_score_difference == pytest.approx(difference) and found.text
        assert found.no_answer_probability == pytest.approx(1 / (1 + math.exp(-difference)))
    middle = sorted(one.null_score_difference for one in plain)[len(plain) // 2]
    for found, always in zip(predict(model, TOKENIZER, ASKED, **CUT, null_threshold=middle), plain, strict=True):
        if always.null_score_difference > middle:
            assert (found.text, found.start, found.probability) == ("", -1, always.no_answer_probability)
            assert found.n_best == always.n_best
        else:
            assert found == always
    assert [one.text for one in predict(model, TOKENIZER, ASKED, **CUT, null_threshold=1e9)] == [
        one.text for one in plain
    ]
    assert not any(one.text for one in predict(model, TOKENIZER, ASKED, **CUT, null_threshold=-1e9))


def test_a_model_in_training_is_measured_without_dropout_and_goes_on_training():
    model = reader(len(TOKENIZER))
    expected = predict(model, TOKENIZER, ASKED, **CUT)
    model.train()
    assert predict(model, TOKENIZER, ASKED, **CUT) == expected and model.training


def test_token_types_are_given():
    model = reader(len(TOKENIZER))
    before = [one.text for one in predict(model, TOKENIZER, ASKED, **CUT)]
    model.bert.embeddings.token_type_embeddings.weight.data[1] += torch.randn(32)
    assert [one.text for one in predict(model, TOKENIZER, ASKED, **CUT)] != before


def test_a_model_without_types_and_mask_token_answers_too():
    letters = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=letters, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    torch.manual_seed(0)
    sizes = dict(vocab_size=256, n_positions=256, n_embd=32, n_layer=1, n_head=2)
    sizes |= dict(bos_token_id=0, eos_token_id=0)
    model = GPT2ForQuestionAnswering(GPT2Config(**sizes, initializer_range=0.2)).eval()
    found = predict(model, tokenizer, ASKED[:4], max_length=256)
    by_one = predict(model, tokenizer, ASKED[:4], max_length=256, max_batch_tokens=1)
    assert [(one.text, one.start) for one in found] == [(one.text, one.start) for one in by_one]
    for one, question in zip(found, ASKED, strict=False):
        assert one.text and question.context.startswith(one.text, one.start) and "\ufffd" not in one.text


def test_qanet_answers_too():
    texts = [one.context + " " + one.question for one in ASKED]
    tokenizer = train_word_tokenizer(texts, 500)
    torch.manual_seed(0)
    model = QANetForQuestionAnswering(QANetConfig(vocab_size=len(tokenizer), hidden_size=16, num_attention_heads=2))
    found = predict(model.eval(), tokenizer, ASKED, max_length=100)
    assert all(question.context.startswith(one.text, one.start) for one, question in zip(found, ASKED, strict=True))


def test_logits_that_are_no_numbers_and_windows_too_long_are_refused():
    model = reader(len(TOKENIZER))
    with pytest.raises(UserError, match="do not fit a model that reads 64"):
        predict(model, TOKENIZER, ASKED, max_length=65)
    model.qa_outputs.bias.data[1] = float("nan")
    with pytest.raises(UserError, match=r"not numbers \(NaN\) in float32"):
        predict(model, TOKENIZER, ASKED, **CUT)


def test_no_questions_no_predictions():
    assert predict(reader(len(TOKENIZER)), TOKENIZER, [], **CUT) == []


def test_loading_a_reader(tmp_path):
    folder = saved_reader(tmp_path / "reader")
    model, tokenizer = load_reader(folder, "bfloat16")
    assert model.dtype == torch.bfloat16 and not model.training
    assert predict(model, tokenizer, world_questions(3), max_length=64)[0].text
    trunk = model.bert
    trunk.save_pretrained(tmp_path / "trunk")
    tokenizer.save_pretrained(tmp_path / "trunk")
    with pytest.raises(UserError, match="is a BertModel, without a head"):
        load_reader(str(tmp_path / "trunk"))
    assert load_reader(str(tmp_path / "trunk"), trained=False)[0].qa_outputs.weight.shape == (2, 32)
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="do not belong together"):
        load_reader(folder)
    (tmp_path / "reader" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="A question answering model could not be loaded from the folder"):
        load_reader(folder)
