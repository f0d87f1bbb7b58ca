"""What all tests share: no network beyond loopback, a tiny tokenizer, tiny models."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # as the trainers ask of one process

import socket
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_kit.data.chat import set_chat_template
from rlhf_kit.models.checkpoints import load_tokenizer

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
LOOPBACK = ("127.", "localhost", "::1", "0.0.0.0")


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Connecting to anything but this machine fails the test that tries."""
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        if isinstance(address, tuple) and not str(address[0]).startswith(LOOPBACK):
            raise AssertionError(f"a test opened a connection to {address}")
        return connect(self, address)

    def guarded_resolve(host, *args, **kwargs):
        if host is not None and not str(host).startswith(LOOPBACK) and str(host) != socket.gethostname():
            raise AssertionError(f"a test looked up {host!r}")
        return resolve(host, *args, **kwargs)

    socket.socket.connect, socket.getaddrinfo = guarded_connect, guarded_resolve
    yield
    socket.socket.connect, socket.getaddrinfo = connect, resolve


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A byte-level BPE of about 300 tokens as a folder: end-of-text token, no pad, no chat template, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(
        ["User: hello there\nAssistant: the cat sat on the mat, and so did the dog."], trainer
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder):
    """The tiny tokenizer as the stages use it: pad == eos, the chat template set."""
    return set_chat_template(load_tokenizer(tokenizer_folder))


@pytest.fixture
def tiny_config(tokenizer) -> GPT2Config:
    return GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=2,
        n_positions=128,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


@pytest.fixture
def policy(tiny_config) -> GPT2LMHeadModel:
    """A small random GPT-2, dropout at GPT-2's 0.1, weights large enough for its distribution not to be flat."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(5)
    return model.eval()


@pytest.fixture
def reward_model(tiny_config, tokenizer) -> GPT2ForSequenceClassification:
    torch.manual_seed(1)
    tiny_config.num_labels = 1
    tiny_config.pad_token_id = tokenizer.pad_token_id
    return GPT2ForSequenceClassification(tiny_config).eval()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED
