"""Scores of a reward model: the right token, whatever the padding, the neighbours, the wrapper."""

import copy

import pytest
import torch
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf_kit.data.chat import GPT2_CHAT_TEMPLATE, encode_completion, encode_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.models.adapters import wrap
from rlhf_kit.models.heads import calibration, fit_context, pad_right, score_texts, sequence_scores, set_calibration

EOS, PAD = 256, 257
ROWS = [[5, 6, 7, 8, 9], [7], [9, 8, EOS, 3], [1, 2, 3, 4, 5, 6, 7, 8]]


def byte_tokenizer(pad="<eos>"):
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab={**letters, "<eos>": EOS, "<pad>": PAD}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", bos_token="<eos>", pad_token=pad)
    tokenizer.chat_template = GPT2_CHAT_TEMPLATE
    return tokenizer


def gpt2(**overrides):
    torch.manual_seed(0)
    options = dict(vocab_size=258, n_positions=64, n_embd=32, n_layer=2, n_head=2, num_labels=1, pad_token_id=None)
    config = GPT2Config(**{**options, "bos_token_id": EOS, "eos_token_id": EOS, "initializer_range": 0.3, **overrides})
    return GPT2ForSequenceClassification(config).eval()


def llama():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=258)
    config = LlamaConfig(**sizes, num_labels=1, pad_token_id=None, initializer_range=0.3)
    return LlamaForSequenceClassification(config).eval()


def bert():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=258)
    return BertForSequenceClassification(BertConfig(**sizes, num_labels=1, initializer_range=0.3)).eval()


def one_by_one(model, rows):
    """Plain forwards of single rows without any padding: what every other way must agree with."""
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([row])).logits[0, 0] for row in rows])


@pytest.mark.parametrize("make", [gpt2, llama, bert])
@pytest.mark.parametrize("pad_token_id", [None, EOS, 3])
def test_scores_depend_on_the_tokens_alone(make, pad_token_id):
    model = make()
    model.config.pad_token_id = None if make is not bert else 0
    alone = one_by_one(model, ROWS)
    if make is not bert:
        model.config.pad_token_id = pad_token_id  # 3 and EOS also occur in the rows
    for filler, extra in ((0, 0), (EOS, 3), (3, 11)):
        input_ids, lengths = pad_right([*ROWS, [1] * (8 + extra)], filler)
        scores = sequence_scores(model, input_ids, lengths)[: len(ROWS)]
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-5)
    shuffled, lengths = pad_right(ROWS[::-1], 0)
    torch.testing.assert_close(sequence_scores(model, shuffled, lengths).flip(0), alone, atol=1e-5, rtol=1e-5)
    if make is not bert:
        assert model.config.pad_token_id == pad_token_id
        assert not model.score._forward_hooks


def test_gradients_are_those_of_single_rows():
    model = gpt2()
    reference = copy.deepcopy(model)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    (sequence_scores(model, *pad_right(ROWS, EOS)) * weights).sum().backward()
    for row, weight in zip(ROWS, weights, strict=True):
        (reference(input_ids=torch.tensor([row])).logits[0, 0] * weight).backward()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    model = gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train()
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    for each in (model, other):
        sequence_scores(each, *pad_right(ROWS, 0)).square().sum().backward()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_adapters_and_their_trained_head_are_read():
    base = gpt2()
    plain = sequence_scores(base, *pad_right(ROWS, 0)).detach()
    model = wrap(base, LoraConfig(r=2, init_lora_weights=False)).eval()
    model.base_model.model.score.modules_to_save["default"].weight.data.normal_()
    scores = sequence_scores(model, *pad_right(ROWS, 0))
    torch.testing.assert_close(scores, one_by_one(model, ROWS), atol=1e-4, rtol=1e-5)
    assert (scores - plain).abs().max() > 0.1
    with model.disable_adapter():
        torch.testing.assert_close(sequence_scores(model, *pad_right(ROWS, 0)), plain, atol=1e-5, rtol=1e-5)


def test_the_head_stays_float32_under_autocast():
    model = gpt2()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = sequence_scores(model, *pad_right(ROWS, 0))
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


@pytest.mark.parametrize("pad", ["<eos>", "<pad>"])
def test_a_saved_model_scores_the_same_in_plain_transformers(tmp_path, pad):
    tokenizer = byte_tokenizer(pad)
    model = gpt2(pad_token_id=tokenizer.pad_token_id)
    prompts = ["Hi", [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me"}], "Name a city"]
    completions = ["Hello there", "No", "Paris"]
    prompts[1].append({"role": "user", "content": "You?"})
    model.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    rows = [
        encode_prompt(tokenizer, prompt) + encode_completion(tokenizer, completion, eos=False)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    scores = score_texts(model, tokenizer, prompts, completions)
    torch.testing.assert_close(scores, logits, atol=1e-5, rtol=1e-5)
    tokenizer.padding_side = "left"  # how the tokenizer would pad is of no concern
    for batch_size in (1, 2):
        torch.testing.assert_close(score_texts(model, tokenizer, prompts, completions, batch_size), scores)


def test_calibration_is_applied_saved_and_checked(tmp_path):
    tokenizer, model = byte_tokenizer(), gpt2()
    assert calibration(model.config) == (1.0, 0.0)
    raw = score_texts(model, tokenizer, ["a", "b"], ["c", "dd"])
    set_calibration(model.config, 2.5, -1.0)
    torch.testing.assert_close(score_texts(model, tokenizer, ["a", "b"], ["c", "dd"]), 2.5 * raw - 1.0)
    model.save_pretrained(tmp_path)
    assert calibration(AutoConfig.from_pretrained(tmp_path)) == (2.5, -1.0)
    for gain, bias in ((0.0, 0.0), (-1.0, 0.0), (float("inf"), 0.0), (1.0, float("nan"))):
        with pytest.raises(UserError, match="gain above 0"):
            set_calibration(model.config, gain, bias)
    assert calibration(model.config) == (2.5, -1.0)


def test_the_prompt_gives_way_never_the_completion():
    assert fit_context([1, 2, 3], [4, 5], 5) == [1, 2, 3, 4, 5]
    assert fit_context([1, 2, 3], [4, 5], 4) == [2, 3, 4, 5]
    assert fit_context([1, 2, 3], [4, 5], 2) == [4, 5]
    assert fit_context([1, 2, 3], [4, 5], 1) is None
    assert fit_context([1, 2], [3], None) == [1, 2, 3]
    tokenizer, model = byte_tokenizer(), gpt2()
    long = score_texts(model, tokenizer, ["x" * 100 + "the end"], ["answer"])
    longer = score_texts(model, tokenizer, ["y" * 50 + "x" * 100 + "the end"], ["answer"])
    torch.testing.assert_close(long, longer)
    with pytest.raises(UserError, match=r"Row 1: the completion has 71 tokens and the reward model reads 64"):
        score_texts(model, tokenizer, ["a", "a"], ["fine", "z" * 70])
    with pytest.raises(UserError, match="2 prompts and 1 completions"):
        score_texts(model, tokenizer, ["a", "a"], ["b"])
    assert score_texts(model, tokenizer, [], []).shape == (0,)


def test_scoring_leaves_the_mode_as_it_was_and_ignores_dropout():
    tokenizer, model = byte_tokenizer(), gpt2(resid_pdrop=0.5)
    expected = score_texts(model, tokenizer, ["a"], ["b"])
    model.train()
    torch.testing.assert_close(score_texts(model, tokenizer, ["a"], ["b"]), expected)
    assert model.training
