"""The shape of a QANet."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from rlhf_kit.errors import UserError


@strict
class QANetConfig(PreTrainedConfig):
    """Sizes and rates; the defaults are the paper's (Yu et al. 2018, arXiv:1804.09541, sections 2.2 and 4.1).

    Args:
        vocab_size, unk_token_id, cls_token_id: the tokenizer's; `from_tokenizer` of the model fills them in.
        word_dim: width of the word vectors.
        learned_words: 0: every word has a trained vector. Else vectors come from a file and stay as they are, but for
            this many trained rows: unknown words and the special tokens.
        char_vocab_size, char_dim, word_length: characters known, their width (0: no character channel, as for
            Chinese), and how many of a word are read.
        hidden_size: the paper's d.
        embedding_convs, embedding_kernel: of the one block that reads question and context.
        model_blocks, model_convs, model_kernel: of the stack that is passed three times.
        survival: probability p_L that the last sublayer of a stack is not skipped in training (stochastic depth).
    """

    model_type = "qanet"

    vocab_size: int = 30000
    pad_token_id: int | None = 0
    unk_token_id: int = 1
    cls_token_id: int = 2
    word_dim: int = 300
    learned_words: int = 0
    char_vocab_size: int = 256
    char_dim: int = 200
    char_kernel: int = 5
    word_length: int = 16
    hidden_size: int = 128
    num_attention_heads: int = 8
    embedding_convs: int = 4
    embedding_kernel: int = 7
    model_blocks: int = 7
    model_convs: int = 2
    model_kernel: int = 5
    dropout: float = 0.1
    char_dropout: float = 0.05
    survival: float = 0.9

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"QANet: hidden_size {self.hidden_size} is not a multiple of twice num_attention_heads "
                f"({self.num_attention_heads}). Choose sizes that divide."
            )
        even = [name for name in ("char_kernel", "embedding_kernel", "model_kernel") if getattr(self, name) % 2 == 0]
        if even:
            raise UserError(f"QANet: {', '.join(even)} must be odd, so that the middle is a token.")
