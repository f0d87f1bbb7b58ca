"""What a token id means: a word vector, from training or from a file, and the word's characters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_kit.errors import UserError
from rlhf_kit.inputs import check_regular
from rlhf_kit.models.qanet.config import QANetConfig

FIXED = -1  # the trained row of a word that has none


class WordEmbedding(nn.Module):
    """Token ids (..) -> word vectors (.., word_dim).

    Either all are trained, or they are fixed but for unknown words and special tokens (the paper, section 2.2).
    Fixed ones are a buffer: no optimizer, weight decay or averaging moves them.
    """

    def __init__(self, config: QANetConfig):
        super().__init__()
        self.fixed = config.learned_words > 0
        self.learned = nn.Embedding(config.learned_words or config.vocab_size, config.word_dim)
        if self.fixed:
            self.register_buffer("vectors", torch.zeros(config.vocab_size, config.word_dim))
            self.register_buffer("learned_row", torch.zeros(config.vocab_size, dtype=torch.int64))

    @property
    def weight(self) -> Tensor:
        """A row a token (V, word_dim), as `nn.Embedding` has it; of fixed vectors zero where there is none."""
        return self.vectors if self.fixed else self.learned.weight

    def forward(self, ids: Tensor) -> Tensor:
        if not self.fixed:
            return self.learned(ids)
        row = self.learned_row[ids]
        return torch.where((row == FIXED)[..., None], self.vectors[ids], self.learned(row.clamp(min=0)))

    @torch.no_grad()
    def set_vectors(self, vectors: Tensor, known: Tensor, special_ids: Sequence[int], unk_token_id: int) -> None:
        """Fix the vectors (V, word_dim) of the `known` (V,) words; the others share the unknown word's trained row."""
        rows = {token: row for row, token in enumerate(special_ids)}
        self.vectors.copy_(vectors)
        self.learned_row.fill_(rows[unk_token_id])
        self.learned_row[known] = FIXED
        for token, row in rows.items():
            self.learned_row[token] = row


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The word of each id."""
    return tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))


def character_table(words: Sequence[str], special_ids: Sequence[int], length: int) -> tuple[Tensor, int]:
    """The first `length` characters of each word as ids; 0 is none, of which special tokens have nothing else.

    -> (V, length) int32, and how many characters there are with 0.

    >>> character_table(["[PAD]", "ab", "bca"], [0], 2)[0].tolist()
    [[0, 0], [1, 2], [2, 3]]
    """
    special = set(special_ids)
    spelled = ["" if number in special else word[:length] for number, word in enumerate(words)]
    ids = {char: number for number, char in enumerate(sorted(set().union(*spelled)), start=1)}
    table = torch.zeros(len(words), length, dtype=torch.int32)
    for number, word in enumerate(spelled):
        table[number, : len(word)] = torch.tensor([ids[char] for char in word], dtype=torch.int32)
    return table, len(ids) + 1


def read_vectors(path: str | Path, words: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The vectors of `words` in a text file of word2vec's format: a word and its numbers a line.

    A first line "count size" may be there (word2vec, fastText) or not (GloVe). A word that is not in the file is
    looked up in lower case. Only the words asked for are kept in memory.

    -> (V, size) float32, zero for words without one, and (V,) bool, who has one.

    Raises:
        UserError: no such file, not text, a line of another length or with something else than numbers, no word found.
    """
    path = Path(path)
    wanted = {*words, *(word.lower() for word in words)}
    by_word: dict[str, Tensor] = {}
    size = 0
    check_regular(path)
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                pieces = line.rstrip().split(" ")
                if number == 1:
                    header = len(pieces) == 2 and all(piece.isdecimal() for piece in pieces)
                    size = int(pieces[1]) if header else len(pieces) - 1
                    if header:
                        continue
                if pieces[0] in wanted and len(pieces) <= size + 1:  # more: GloVe has words with spaces in them
                    by_word.setdefault(pieces[0], _vector(pieces[1:], size, f"{path}, line {number}"))
    except OSError as error:
        raise UserError(
            f"word vectors: cannot read {path} ({error.strerror}). Give a text file of vectors."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"word vectors: {path} is not UTF-8 text. Give word2vec's text format, not the binary."
        ) from error
    vectors, known = torch.zeros(len(words), size), torch.zeros(len(words), dtype=torch.bool)
    for row, word in enumerate(words):
        vector = by_word.get(word, by_word.get(word.lower()))
        if vector is not None:
            vectors[row], known[row] = vector, True
    if not known.any():
        raise UserError(f"word vectors: {path} has none of the {len(words)} words. Is it of another language or case?")
    return vectors, known


def _vector(pieces: Sequence[str], size: int, where: str) -> Tensor:
    try:
        numbers = [float(piece) for piece in pieces]
    except ValueError as error:
        raise UserError(f"word vectors: {where}: {error}. A line is a word and {size} numbers.") from error
    if len(numbers) != size or size == 0:
        raise UserError(f"word vectors: {where}: {len(numbers)} numbers where {size or 'some'} are needed.")
    return torch.tensor(numbers)
