from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TEXTS = [
    "User: What is the capital of France?",
    "Assistant: Paris is the capital.",
    "System: Be brief.",
    "巴黎是首都。",
]


def byte_level_bpe(special_tokens):
    """A byte-level BPE tokenizer of about 300 tokens, trained on the spot."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special_tokens, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@pytest.fixture
def tiny():
    return PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(["<|endoftext|>"]), eos_token="<|endoftext|>")


@pytest.fixture
def chatml():
    """A tokenizer of another maker: its own template, turn markers that are special tokens, no generation marks."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(["<|im_start|>", "<|im_end|>"]),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return tokenizer


@pytest.fixture
def real_data():
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(params=["tiny", "gpt2"])
def tokenizer(request):
    if request.param == "tiny":
        return request.getfixturevalue("tiny")
    folder = REAL_DATA / "gpt2-tokenizer"
    if not folder.is_dir():
        pytest.skip(f"no GPT-2 tokenizer at {folder}")
    return GPT2TokenizerFast.from_pretrained(folder)
