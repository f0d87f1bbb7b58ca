"""Words of English and single characters of Chinese as tokens, with their places in the original text."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, UNK, CLS, SEP = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SINGLE = Regex(r"[\p{Han}\p{Hiragana}\p{Katakana}]")  # written without spaces: each character is a token


def train_word_tokenizer(
    texts: Iterable[str], size: int = 50_000, min_count: int = 2, lowercase: bool = False
) -> PreTrainedTokenizerFast:
    """A vocabulary of the most frequent words, as a fast tokenizer that pairs question and passage like BERT's.

        [CLS] question [SEP] context [SEP]      token types 0 ... 0 1 ... 1

    Words end at white space, and each punctuation mark and each Chinese or Japanese character is one of its own.
    Offsets point into the original string.

    Args:
        size: at most this many tokens, the four special ones included.
        min_count: rarer words are [UNK], which so is trained. Their characters are not seen either.
        lowercase: A and a are the same word.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(SINGLE, "isolated")]
    )
    trainer = trainers.WordLevelTrainer(
        vocab_size=size, min_frequency=min_count, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        cls_token=CLS,
        sep_token=SEP,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
