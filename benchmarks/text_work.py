"""A random GPT-2 and a tokenizer of plain words, and lm-evaluation-harness around them: CoQA and multiple choice."""

from __future__ import annotations

import torch
from ppo_work import SHAPES, config_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

BATCH = 16  # prompts at once, where a system takes them


def model_of(shape: str, dtype: str) -> GPT2LMHeadModel:
    set_seed(0)
    return GPT2LMHeadModel(config_of(SHAPES[shape])).to(getattr(torch, dtype)).eval()


def tokenizer_of(vocabulary: int) -> PreTrainedTokenizerFast:
    """Words w0, w1, ... and the layout's own, with white space between them."""
    words = ["Q:", "A:", *(f"w{i}" for i in range(vocabulary - 3)), "</s>"]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="</s>", eos_token="</s>", pad_token="</s>", padding_side="left"
    )


def words(draw, vocabulary: int, count: int) -> str:
    """Of a `random.Random`."""
    return " ".join(f"w{draw.randrange(vocabulary - 3)}" for _ in range(count))


def lm_eval_asked(model, tokenizer, kind: str, arguments: list[tuple]) -> list:
    """The answers of lm-evaluation-harness's HF backend to requests of a kind of its own."""
    from lm_eval.api.instance import Instance  # noqa: PLC0415
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=BATCH)
    requests = [Instance(kind, {}, each, at) for at, each in enumerate(arguments)]
    return getattr(wrapped, kind)(requests, disable_tqdm=True)
