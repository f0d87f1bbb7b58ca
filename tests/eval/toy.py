"""A reward model of two layers with a tokenizer of bytes, saved as a folder; lists of answers to rank."""

import json
import math

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    ConvBertConfig,
    ConvBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf_kit.data.chat import GPT2_CHAT_TEMPLATE
from rlhf_kit.models.heads import set_calibration

EOS = 256
CONTEXT = 64
WORDS = ("good", "a bad one", "so so", "the longest of all the answers", "no", "why not", "yes, it is", "perhaps")


def byte_tokenizer():
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab={**letters, "<eos>": EOS}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = GPT2_CHAT_TEMPLATE
    return tokenizer


def reward_model(seed=0, gain=2.0, bias=0.5):
    torch.manual_seed(seed)
    sizes = dict(vocab_size=257, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2, num_labels=1)
    ids = dict(bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS)
    model = GPT2ForSequenceClassification(GPT2Config(**sizes, **ids, initializer_range=0.3)).eval()
    set_calibration(model.config, gain, bias)
    return model


def padding_reader():
    """A reward model whose scores change with the padding: its convolutions take in what stands beside a token."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=257, hidden_size=16, embedding_size=16, num_hidden_layers=2, num_attention_heads=2)
    sizes |= dict(intermediate_size=16, num_labels=1, pad_token_id=EOS, initializer_range=0.5)
    return ConvBertForSequenceClassification(ConvBertConfig(**sizes)).eval()


def save_model(folder, model=None):
    (model or reward_model()).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def ranked(count=12):
    """Lists of two to five answers, with ties, some of the same prompt."""
    rows = []
    for i in range(count):
        size = 2 + i % 4
        answers = [WORDS[(i + 3 * k) % len(WORDS)] for k in range(size)]
        rows.append(
            {"prompt": f"q{i // 2}", "completions": answers, "ranks": [1 + (i + k * k) % 3 for k in range(size)]}
        )
        if len(set(rows[-1]["ranks"])) == 1:
            rows[-1]["ranks"][0] += 1
    return rows


def thumbs(count=10):
    return [{"prompt": f"q{i // 2}", "completion": WORDS[i % 8], "label": i % 3 != 0} for i in range(count)]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def almost(first, second, tolerance=1e-5):
    """Two trees of results are the same up to float32's rounding."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(almost(first[key], second[key], tolerance) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(almost(a, b, tolerance) for a, b in zip(first, second, strict=True))
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance) or (
            first != first and second != second
        )
    return first == second
