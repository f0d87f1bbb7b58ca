"""QANet: reading comprehension by convolution and self-attention, without recurrence (Yu et al. 2018,
arXiv:1804.09541)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.modeling_outputs import QuestionAnsweringModelOutput
from transformers.utils import can_return_tuple

from rlhf_kit.errors import UserError
from rlhf_kit.models.qanet.config import QANetConfig
from rlhf_kit.models.qanet.layers import (
    CharacterEmbedding,
    ContextQueryAttention,
    EncoderStack,
    Highway,
    LastLinear,
)
from rlhf_kit.models.qanet.words import WordEmbedding, character_table, read_vectors, vocabulary

SPECIAL_IDS = ("pad_token_id", "unk_token_id", "cls_token_id")


class QANetForQuestionAnswering(PreTrainedModel):
    """Start and end of the answer in "[CLS] question [SEP] context [SEP]", the one sequence that BERT reads too.

    Token types part it: type 0 but for [CLS] is the question, type 1 the context. [CLS] is put before the context as a
    word of it, so that it has logits like any other: the label of a window without the answer. The embedding encoder
    is shared by both, the model encoder by its three passes.
    """

    config_class = QANetConfig
    _supports_sdpa = True

    def __init__(self, config: QANetConfig):
        super().__init__(config)
        size = config.hidden_size
        self.words = WordEmbedding(config)
        self.characters = CharacterEmbedding(config) if config.char_dim else None
        if self.characters is not None:
            self.register_buffer("char_ids", torch.zeros(config.vocab_size, config.word_length, dtype=torch.int32))
        self.dropout = nn.Dropout(config.dropout)
        self.word_projection = nn.Linear(config.word_dim + config.char_dim, size)
        self.highway = nn.Sequential(Highway(size), Highway(size))
        self.embedding_encoder = EncoderStack(config, 1, config.embedding_convs, config.embedding_kernel)
        self.attention = ContextQueryAttention(size)
        self.attention_projection = nn.Linear(4 * size, size)
        self.model_encoder = EncoderStack(config, config.model_blocks, config.model_convs, config.model_kernel)
        # A bias would add the same to every place.
        self.start = nn.Linear(2 * size, 1, bias=False)
        self.end = nn.Linear(2 * size, 1, bias=False)
        self.post_init()

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, vectors: str | Path | None = None, **sizes
    ) -> QANetForQuestionAnswering:
        """A new model for the words of `tokenizer`.

        Args:
            vectors: word vectors in word2vec's text format, which then are not trained; None: random ones, trained.
            sizes: fields of QANetConfig.

        Raises:
            UserError: a tokenizer without [CLS], padding or an unknown word; a file that is no list of vectors.
        """
        missing = [name for name in SPECIAL_IDS if getattr(tokenizer, name) is None]
        if missing:
            raise UserError(f"QANet: the tokenizer has no {', '.join(missing)}. Make one with train_word_tokenizer.")
        words, special_ids = vocabulary(tokenizer), sorted(set(tokenizer.all_special_ids))
        length = sizes.get("word_length", QANetConfig().word_length)
        char_ids, characters = character_table(words, special_ids, length)
        sizes |= {"vocab_size": len(words), "char_vocab_size": characters}
        sizes |= {name: getattr(tokenizer, name) for name in SPECIAL_IDS}
        if vectors is not None:
            known_vectors, known = read_vectors(vectors, words)
            sizes |= {"word_dim": known_vectors.shape[1], "learned_words": len(special_ids)}
        model = cls(QANetConfig(**sizes))
        if model.characters is not None:
            model.char_ids.copy_(char_ids)
        if vectors is not None:
            model.words.set_vectors(known_vectors, known, special_ids, model.config.unk_token_id)
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def _init_weights(self, module: nn.Module) -> None:
        if module in (self.start, self.end):
            init.normal_(module.weight, std=0.02)  # near uniform at first
        elif isinstance(module, LastLinear):
            # Radford et al. 2019 (GPT-2), section 2.3: by the root of the number of residual sublayers.
            sublayers = 3 * self.config.model_blocks * (self.config.model_convs + 2)
            init.xavier_uniform_(module.weight, gain=sublayers**-0.5)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv1d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.1)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        elif isinstance(module, ContextQueryAttention):
            init.xavier_uniform_(module.weight)
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
    ) -> QuestionAnsweringModelOutput:
        """(B, T) x 3, (B,) x 2 -> start and end logits (B, T), and the mean of both cross-entropies with labels.

        What is not context has the lowest number of the dtype as its logit. Padding, on either side, moves nothing.

        Raises:
            UserError: without token types, or with a row that has no [CLS] or no question.
        """
        in_context, in_question = self._parts(input_ids, attention_mask, token_type_ids)
        places, context_mask = _gathered(in_context)
        context = self._encoded(input_ids.gather(1, places), context_mask)  # (B, C, d)
        question_places, question_mask = _gathered(in_question)
        question = self._encoded(input_ids.gather(1, question_places), question_mask)  # (B, Q, d)

        attended = self.attention(context, context_mask, question, question_mask)
        m0 = self.model_encoder(self.attention_projection(self.dropout(attended)), context_mask)
        m1 = self.model_encoder(m0, context_mask)
        m2 = self.model_encoder(m1, context_mask)

        lowest = torch.finfo(m0.dtype).min
        logits = torch.cat([self.start(torch.cat([m0, m1], -1)), self.end(torch.cat([m0, m2], -1))], dim=-1)
        logits = logits.masked_fill(~context_mask[..., None], lowest).movedim(-1, 0)  # (2, B, C)
        start, end = logits.new_full((2, *input_ids.shape), lowest).scatter(2, places.expand_as(logits), logits)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start.float(), end.float(), start_positions, end_positions)
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end)

    def _parts(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> tuple[Tensor, Tensor]:
        """Who belongs to the context, [CLS] with it, and who to the question. -> (B, T) bool x 2."""
        if types is None:
            raise UserError("QANet needs token_type_ids: 0 for the question, 1 for the context. Pass the tokenizer's.")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        cls = real & (ids == self.config.cls_token_id)
        first = cls & (cls.cumsum(1) == 1)
        in_context = first | (real & (types == 1))
        in_question = real & ~in_context
        if not (first.any(1) & in_question.any(1)).all():
            raise UserError(
                "QANet: a row has no [CLS] or no question (token type 0). Encode question and context as a pair."
            )
        return in_context, in_question

    def _encoded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Words as the embedding encoder leaves them. (B, N), (B, N) -> (B, N, d)."""
        x = self.dropout(self.words(ids))
        if self.characters is not None:
            words, place = ids.unique(return_inverse=True)  # each word is spelled once a batch
            x = torch.cat([x, self.characters(self.char_ids[words].long())[place]], dim=-1)
        return self.embedding_encoder(self.highway(self.word_projection(x)), mask)


def _gathered(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Places of a row's true entries, in order, and which are no padding. (B, T) -> (B, N) long, (B, N) bool."""
    lengths = keep.sum(1)
    count = int(lengths.max())
    places = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    return places, torch.arange(count, device=keep.device) < lengths[:, None]
