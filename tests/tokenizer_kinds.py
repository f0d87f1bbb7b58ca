"""Tokenizers of each kind, made on the spot: what they put before a text, and what they join at a border.

kind          a text's first word   words are parted          texts begin with
byte_bpe      as it stands          before a space            (GPT-2)
byte_joined   as it stands          nowhere: ".\\n" is one     <s> (Llama 3 joins these)
first         with "▁"              nowhere                   (Metaspace)
always        with "▁"              before "▁"                <s> (Metaspace)
prepended     with "▁"              nowhere                   <s> (Llama 2's normalizer)
wordpiece     as it stands          at spaces, which go       (BERT)
unigram       with "▁"              before "▁"                (T5)
unigram_begun with "▁"              before "▁"                <s>
"""

import functools

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

NAMES = "Anna Tom Lucy Jack Mia Ben Eva Leo Ida Max Nora Paul Rosa Sam Tina Uma".split()
TOWNS = "Riverton Sunport Redwood Lakeside Goldsand Whitecliff Oakham Milltown".split()
PASSAGES = [
    f"{name} packed a bag and took the early train home to {TOWNS[at % len(TOWNS)]}" for at, name in enumerate(NAMES)
]
TEXTS = [
    *PASSAGES,
    "Q: Where did Anna go?\nA: To Riverton.\n\nTL;DR: she is home.\nTL;DR:",
    "問：安娜去哪裡？\n答：河口鎮。",
]
BEGUN = ("byte_joined", "always", "prepended", "unigram_begun")
KINDS = ("byte_bpe", "byte_joined", "first", "always", "prepended", "wordpiece", "unigram", "unigram_begun")
SIZE = 400


# The part of Llama 3's pattern that joins punctuation with the line's end behind it.
JOINED = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+|\p{N}")


def _trained_on(made: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    trainer.show_progress = False
    made.train_from_iterator(TEXTS, trainer)
    return made


def _bytes(pattern: Regex | None) -> Tokenizer:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    parted = [] if pattern is None else [pre_tokenizers.Split(pattern, "isolated")]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence([*parted, level]), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained_on(made, trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=SIZE))


def _pieces(kind: str) -> Tokenizer:
    """Pieces with "▁", learnt from words with it as SentencePiece learns them; BPE or Unigram."""
    unigram = kind.startswith("unigram")
    made = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer if unigram else trainers.BpeTrainer
    unknown = {"unk_token": "<unk>"} if unigram else {}
    made = _trained_on(made, trainer(vocab_size=SIZE, special_tokens=["<unk>"], **unknown))
    if kind == "first":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    if kind == "prepended":
        made.pre_tokenizer = None
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made


def _wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return _trained_on(made, trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=["<unk>"]))


MAKERS = {
    "byte_bpe": lambda: _bytes(None),
    "byte_joined": lambda: _bytes(JOINED),
    "wordpiece": _wordpiece,
}


@functools.cache
def _trained(kind: str) -> str:
    made = MAKERS[kind]() if kind in MAKERS else _pieces(kind)
    made.add_special_tokens(["<s>", "</s>"])
    if kind in BEGUN:
        begin = ("<s>", made.token_to_id("<s>"))
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[begin])
    return made.to_str()


def tokenizer_of_kind(kind: str) -> PreTrainedTokenizerFast:
    made = Tokenizer.from_str(_trained(kind))
    begins = {"bos_token": "<s>"} if kind in BEGUN else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", **begins)
