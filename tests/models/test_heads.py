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
    BertTokenizer,
    BloomConfig,
    DistilBertConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    OpenAIGPTConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
)

from rlhf_kit.data.chat import GPT2_CHAT_TEMPLATE, encode_completion, encode_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.generation.sampling import Rollout
from rlhf_kit.models.adapters import wrap
from rlhf_kit.models.forward import pad_right
from rlhf_kit.models.heads import (
    PLAIN,
    RowFormat,
    calibration,
    fit_context,
    fold_calibration,
    logit_scale,
    logit_zero,
    row_format,
    score_texts,
    sequence_scores,
    set_calibration,
)
from rlhf_kit.models.value import build_policy_and_value

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


SMALL = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=258, num_labels=1, pad_token_id=PAD
)
# What becomes of a calibration on export, by how the trunk ends.
FOLDED = [
    GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=258, num_labels=1, pad_token_id=PAD),
    GPTNeoXConfig(**SMALL, intermediate_size=64),  # rotary angles stand behind its last norm
    BloomConfig(**SMALL | {"n_head": 2, "n_layer": 2}),  # another norm stands before its layers
    BertConfig(**SMALL, intermediate_size=64),  # a head with a bias of its own
    RobertaConfig(**SMALL, intermediate_size=64),  # two layers in the head
]
LEFT = [
    LlamaConfig(**SMALL, intermediate_size=64),  # RMSNorm
    OpenAIGPTConfig(n_embd=32, n_layer=2, n_head=2, vocab_size=258, num_labels=1, pad_token_id=PAD),  # no last norm
    OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=16),  # a projection behind its last norm
]


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


def test_the_logit_scale_turns_calibrated_differences_into_log_odds():
    config = GPT2Config()
    assert logit_scale(config) == 1.0
    config.reward_gain = 4.0  # as models were saved before they had a scale
    assert logit_scale(config) == 0.25
    config = GPT2Config()
    for gain in (2.5, 0.1):  # a raw difference of 3 is 3 nats of log-odds, whatever the calibration
        set_calibration(config, gain, -1.0)
        assert logit_scale(config) * (gain * 3.0) == pytest.approx(3.0)
    _, config = fold_calibration(gpt2().state_dict(), calibrated(gpt2(), 2.5, 0.5))
    assert calibration(config) == (1.0, 0.0) and logit_scale(config) == pytest.approx(0.4)
    set_calibration(config, 2.0, 0.0)  # raw scores are 2.5 times log-odds by now
    assert logit_scale(config) == pytest.approx(0.2)
    set_calibration(config, 1.0, 0.0, scale=1.0, zero=0.0)  # trained again
    assert (calibration(config), logit_scale(config)) == ((1.0, 0.0), 1.0)


def test_the_zero_of_the_log_odds_stays_known():
    config = GPT2Config()
    assert logit_zero(config) == 0.0
    set_calibration(config, 2.5, -1.5)
    assert logit_zero(config) == -1.5  # raw 0
    _, config = fold_calibration(gpt2().state_dict(), calibrated(gpt2(), 2.5, -1.5))
    assert calibration(config) == (1.0, 0.0) and logit_zero(config) == -1.5
    set_calibration(config, 2.0, 0.25)  # of the folded score: 2 * -1.5 + 0.25
    assert logit_zero(config) == -2.75
    set_calibration(config, 1.0, 0.0, scale=1.0, zero=0.0)
    assert logit_zero(config) == 0.0


def calibrated(model, gain=2.5, bias=-1.5):
    set_calibration(model.config, gain, bias)
    return model


@pytest.mark.parametrize("config", [*FOLDED, *LEFT], ids=lambda config: config.model_type)
def test_an_exported_model_gives_calibrated_scores_in_plain_transformers(tmp_path, config):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    tokenizer = byte_tokenizer("<pad>")
    prompts, completions = ["Hi", "Name a city"], ["Hello there", "Paris"]
    raw = score_texts(model, tokenizer, prompts, completions)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = score_texts(calibrated(model), tokenizer, prompts, completions)
    torch.testing.assert_close(expected, 2.5 * raw - 1.5)
    state_dict, exported = fold_calibration(model.state_dict(), model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert calibration(model.config) == (2.5, -1.5)
    model.save_pretrained(tmp_path, state_dict=state_dict)
    exported.save_pretrained(tmp_path)

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    left = -1.5 if config in LEFT else 0.0
    assert calibration(plain.config) == (1.0, left) and logit_scale(plain.config) == pytest.approx(0.4)
    rows = [
        encode_prompt(tokenizer, prompt) + encode_completion(tokenizer, completion, eos=False)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    torch.testing.assert_close(logits + left, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(score_texts(plain, tokenizer, prompts, completions), expected, atol=1e-5, rtol=1e-5)
    again, _ = fold_calibration(plain.state_dict(), plain)  # what is left stays where it is
    assert all(torch.equal(tensor, again[name]) for name, tensor in plain.state_dict().items())


def test_a_folded_model_can_be_calibrated_again_and_lend_its_value(tmp_path):
    tokenizer, model = byte_tokenizer(), calibrated(gpt2())
    expected = score_texts(model, tokenizer, ["a", "b"], ["c", "dd"])
    model.config = fold_calibration({}, model)[1]  # no head in it: nothing is folded
    torch.testing.assert_close(score_texts(model, tokenizer, ["a", "b"], ["c", "dd"]), expected)
    state_dict, model.config = fold_calibration(model.state_dict(), model)
    model.load_state_dict(state_dict)
    torch.testing.assert_close(score_texts(model, tokenizer, ["a", "b"], ["c", "dd"]), expected)
    values = build_policy_and_value(GPT2LMHeadModel(model.config), "reward", model)
    ids = torch.tensor([[5, 6, 7, 8]])
    two = torch.tensor([2])
    batch = Rollout(ids[:, :2], two, ids[:, 2:], two, torch.tensor([True])).model_inputs()
    score = sequence_scores(model, ids, torch.tensor([4]))
    torch.testing.assert_close(values(**batch)["values"][:, -1], score)
    set_calibration(model.config, 2.0, 1.0)
    torch.testing.assert_close(score_texts(model, tokenizer, ["a", "b"], ["c", "dd"]), 2 * expected + 1)
    state_dict, config = fold_calibration(model.state_dict(), model)
    model.load_state_dict(state_dict)
    model.config = config
    torch.testing.assert_close(score_texts(model, tokenizer, ["a", "b"], ["c", "dd"]), 2 * expected + 1)


def test_folding_keeps_the_type_of_the_weights_and_spares_a_head_of_zeros():
    model = calibrated(gpt2().bfloat16())
    state_dict, _ = fold_calibration(model.state_dict(), model)
    assert {tensor.dtype for tensor in state_dict.values()} == {torch.bfloat16}
    torch.testing.assert_close(state_dict["score.weight"], (2.5 * model.score.weight.float()).bfloat16())
    model.score.weight.data.zero_()
    state_dict, config = fold_calibration(model.state_dict(), model)
    assert calibration(config) == (1.0, -1.5) and torch.equal(state_dict["score.weight"], model.score.weight)


def test_a_norm_before_the_layers_takes_no_bias():
    model = calibrated(AutoModelForSequenceClassification.from_config(FOLDED[2]))
    model.transformer.ln_f = torch.nn.Identity()
    state_dict, config = fold_calibration(model.state_dict(), model)
    norm = "transformer.word_embeddings_layernorm.bias"
    assert calibration(config) == (1.0, -1.5) and torch.equal(state_dict[norm], model.state_dict()[norm])


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
    with pytest.raises(UserError, match=r"Row 2: the completion has 71 tokens; the context has 64. Shorten it"):
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


# ------------------------------------------------------------------------------------------
# Encoders

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", "[", "]", "sep", ":", "user", "assistant"]


def bert_tokenizer():
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})


def roberta_tokenizer():
    letters = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return RobertaTokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])


def encoder(config_class=BertConfig, **overrides):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=300)
    config = config_class(**sizes, num_labels=1, initializer_range=0.5, max_position_embeddings=40, **overrides)
    return AutoModelForSequenceClassification.from_config(config).eval()


def test_an_encoder_reads_a_pair_as_its_tokenizer_joins_it():
    bert, roberta = bert_tokenizer(), roberta_tokenizer()
    assert row_format(BertConfig(), bert) == RowFormat((2,), (3,), (3,), typed=True)
    assert row_format(BertConfig(type_vocab_size=1), bert) == RowFormat((2,), (3,), (3,))
    assert row_format(DistilBertConfig(), bert) == RowFormat((2,), (3,), (3,))
    assert row_format(RobertaConfig(), roberta) == RowFormat((0,), (2, 2), (2,))
    assert row_format(BertConfig(), byte_tokenizer()) == PLAIN  # which adds nothing
    for config in (GPT2Config(), LlamaConfig()):
        assert row_format(config, bert) == row_format(config, byte_tokenizer()) == PLAIN


def test_special_tokens_count_and_stay_when_the_prompt_is_cut():
    form = RowFormat((2,), (3,), (3,))
    assert fit_context([7, 8, 9], [5, 6], None, form) == [2, 7, 8, 9, 3, 5, 6, 3]
    assert fit_context([7, 8, 9], [5, 6], 8, form) == [2, 7, 8, 9, 3, 5, 6, 3]
    assert fit_context([7, 8, 9], [5, 6], 6, form) == [2, 9, 3, 5, 6, 3]
    assert fit_context([7, 8, 9], [5, 6], 5, form) == [2, 3, 5, 6, 3]
    assert fit_context([7, 8, 9], [5, 6], 4, form) is None


def test_token_types_begin_at_the_last_separator_but_one():
    rows, lengths = pad_right([[2, 7, 3, 8, 3, 5, 6, 3], [2, 3, 5, 3], [2, 7, 3, 3]], 3)  # padding may be a separator
    assert RowFormat((2,), (3,), (3,), typed=True).token_types(rows, lengths).tolist() == [
        [0, 0, 0, 0, 0, 1, 1, 1],
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("config_class", "make_tokenizer"), [(BertConfig, bert_tokenizer), (RobertaConfig, roberta_tokenizer)]
)
def test_encoders_score_as_plain_transformers_on_the_pair(config_class, make_tokenizer):
    tokenizer = make_tokenizer()
    model = encoder(config_class, pad_token_id=tokenizer.pad_token_id)
    prompts, completions = ["a b c", "d", "", "[SEP] a"], ["e f", "g h i j", "a", "b [SEP]"]
    expected = []
    for prompt, completion in zip(prompts, completions, strict=True):
        pair = tokenizer(prompt, completion, return_tensors="pt", split_special_tokens=True)
        with torch.no_grad():
            expected.append(model(**pair).logits[0, 0])
    scores = score_texts(model, tokenizer, prompts, completions)
    torch.testing.assert_close(scores, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert scores.std() > 0.01
    for batch_size in (1, 3):  # neither padding nor neighbours matter
        torch.testing.assert_close(score_texts(model, tokenizer, prompts, completions, batch_size), scores)
    longer = [*completions[:-1], "j" * 30]
    torch.testing.assert_close(score_texts(model, tokenizer, prompts, longer)[:-1], scores[:-1], atol=1e-5, rtol=1e-5)


def test_the_types_of_a_dialogue_are_exact():
    tokenizer, model = bert_tokenizer(), encoder()
    tokenizer.eos_token = tokenizer.sep_token
    tokenizer.chat_template = GPT2_CHAT_TEMPLATE
    dialogue = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    score = score_texts(model, tokenizer, [[*dialogue, {"role": "user", "content": "c"}]], ["d e"])
    text = "[CLS]user:a[SEP]assistant:b[SEP]user:c[SEP]assistant:[SEP]d e[SEP]"
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    types = torch.tensor([[0] * (ids.shape[1] - 3) + [1] * 3])
    with torch.no_grad():
        logit = model(input_ids=ids, token_type_ids=types).logits[:, 0]
        untyped = model(input_ids=ids).logits[:, 0]
    torch.testing.assert_close(score, logit)
    assert (logit - untyped).abs() > 1e-3


def test_an_encoder_reads_as_far_as_it_has_positions():
    model = encoder(RobertaConfig, pad_token_id=1)  # 40 positions, of which the first two are for padding
    tokenizer = roberta_tokenizer()
    full = score_texts(model, tokenizer, ["x" * 50], ["b" * 34])  # 34 and 4 special tokens
    torch.testing.assert_close(score_texts(model, tokenizer, [""], ["b" * 34]), full)
    with pytest.raises(UserError, match="has 35 tokens; the context of 38 less 4 for special tokens leaves 34"):
        score_texts(model, tokenizer, [""], ["b" * 35])
    with pytest.raises(UserError, match="nothing to score"):
        score_texts(model, tokenizer, [""], [""])
