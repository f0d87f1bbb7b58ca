"""QANet's tokens: words and single characters with their places, what is behind an id, and word vectors from files."""

import pytest
import torch
from transformers import AutoTokenizer

from rlhf_kit.errors import UserError
from rlhf_kit.models.qanet import QANetConfig, QANetForQuestionAnswering, train_word_tokenizer
from rlhf_kit.models.qanet.words import FIXED, WordEmbedding, character_table, read_vectors, vocabulary

SENTENCE = " The cat sat,\u200bon 1990年  臺北の車站。𰻝麵 costs $5.20 (２杯)"
PIECES = ["The", "cat", "sat", ",", "on", "1990", "年", "臺", "北", "の", "車", "站", "。", "𰻝", "麵", "costs"]
PIECES += ["$", "5", ".", "20", "(", "２", "杯", ")"]
TINY = dict(hidden_size=16, num_attention_heads=2, model_blocks=1, char_dim=4, word_dim=6)


@pytest.fixture(scope="module")
def tokenizer():
    return train_word_tokenizer(["the cat saw the dog", "the dog saw a cat", "the end"])


def test_words_marks_and_chinese_characters_are_tokens_at_their_places():
    tokenizer = train_word_tokenizer([SENTENCE], min_count=1)
    encoded = tokenizer("Who sat?", SENTENCE, return_offsets_mapping=True)
    inside = [place for place, kind in enumerate(encoded["token_type_ids"]) if kind][:-1]  # without the last [SEP]
    assert [SENTENCE[slice(*encoded["offset_mapping"][place])] for place in inside] == PIECES
    assert tokenizer.convert_ids_to_tokens([encoded["input_ids"][place] for place in inside]) == PIECES


@pytest.mark.parametrize(
    "char", "㐀𠀀豈々〇ア"
)  # extensions A and B, compatibility, marks of repetition and zero, kana
def test_rare_characters_stand_alone(char):
    text = f"在{char}{char}城"
    assert train_word_tokenizer([text], min_count=1).tokenize(text) == ["在", char, char, "城"]


def test_pairs_are_laid_out_as_berts(tokenizer):
    encoded = tokenizer("the end", "a cat")
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == "[CLS] the [UNK] [SEP] [UNK] cat [SEP]".split()
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    padded = tokenizer(["the", "the cat"], ["cat", "dog"], padding=True)
    assert padded["input_ids"][0][-1] == tokenizer.pad_token_id == 0 and padded["attention_mask"][0][-1] == 0


def test_the_vocabulary_is_the_frequent_words_and_no_more(tokenizer):
    assert vocabulary(tokenizer) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "saw"]  # twice and more
    assert vocabulary(train_word_tokenizer(["b b a a c c c"], size=6)) == [*vocabulary(tokenizer)[:4], "c", "a"]


def test_lower_casing_is_a_choice_and_moves_no_offset():
    text = "İstanbul Ab"  # the first letter is two in lower case
    lower = train_word_tokenizer([text], min_count=1, lowercase=True)
    assert lower.convert_ids_to_tokens(lower("AB")["input_ids"])[1:-1] == ["ab"]
    assert lower(text, return_offsets_mapping=True)["offset_mapping"][1:-1] == [(0, 8), (9, 11)]
    kept = train_word_tokenizer([text], min_count=1)
    assert kept.tokenize("AB Ab") == ["[UNK]", "Ab"]


def test_a_saved_tokenizer_comes_back_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast and dict(loaded("the end", "a cat")) == dict(tokenizer("the end", "a cat"))


def test_the_character_table_spells_the_words():
    table, characters = character_table(["[PAD]", "[UNK]", "cab", "b", "中"], [0, 1], 2)
    assert characters == 5  # none, a, b, c, 中; the "b" of "cab" beyond the second is b's anyway
    assert table.tolist() == [[0, 0], [0, 0], [3, 1], [2, 0], [4, 0]]


VECTORS = "the 1 2 3\ncat -1 0.5 2e-1\n. . . 9 9 9\nunused x y z\n"


@pytest.mark.parametrize("header", ["", "4 3\n"], ids=["glove", "word2vec"])
def test_vectors_are_read_by_word_then_in_lower_case(tmp_path, header):
    (tmp_path / "v.vec").write_text(header + VECTORS)
    vectors, known = read_vectors(tmp_path / "v.vec", ["[PAD]", "the", "Cat", "dog", "."])
    assert known.tolist() == [False, True, True, False, False]
    expected = torch.zeros(5, 3)
    expected[1], expected[2] = torch.tensor([1.0, 2, 3]), torch.tensor([-1, 0.5, 0.2])
    torch.testing.assert_close(vectors, expected)


@pytest.mark.parametrize(
    "content, told",
    [
        (b"the 1 2 3\ncat 1 2\n", "line 2: 2 numbers where 3"),
        (b"2 3\nthe 1 two 3\n", "line 2.*two"),
        (b"other 1 2\n", "none of the 2 words"),
        (b"the\n", "numbers"),
        (b"", "none of the 2 words"),
        (b"the \xff\xfe 1\n", "not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_list_of_vectors_is_refused(tmp_path, content, told):
    if content is not None:
        (tmp_path / "v.vec").write_bytes(content)
    with pytest.raises(UserError, match=told):
        read_vectors(tmp_path / "v.vec", ["the", "cat"])


def test_words_with_vectors_are_fixed_and_the_others_share_the_unknown_words_row():
    words = WordEmbedding(QANetConfig(vocab_size=6, word_dim=2, learned_words=3))
    vectors = torch.arange(12.0).view(6, 2)
    words.set_vectors(vectors, torch.tensor([True, False, False, True, True, False]), [0, 1, 2], unk_token_id=1)
    assert words.learned_row.tolist() == [0, 1, 2, FIXED, FIXED, 1]  # a special token's vector is trained in any case
    out = words(torch.tensor([[3, 4, 5, 1, 2]]))[0]
    assert out[:2].equal(vectors[3:5]) and out[2].equal(out[3]) and out[2].equal(words.learned.weight[1])
    out.sum().backward()
    assert words.learned.weight.grad.tolist() == [[0, 0], [2, 2], [1, 1]]
    assert [name for name, _ in words.named_parameters()] == ["learned.weight"]


def test_a_model_takes_its_width_and_vectors_from_the_file(tokenizer, tmp_path):
    (tmp_path / "v.vec").write_text(VECTORS)
    model = QANetForQuestionAnswering.from_tokenizer(tokenizer, vectors=tmp_path / "v.vec", **TINY | {"word_dim": 3})
    assert model.config.word_dim == 3 and model.config.learned_words == 4
    the = tokenizer.convert_tokens_to_ids("the")
    assert model.words(torch.tensor(the)).tolist() == [1, 2, 3]
    model.save_pretrained(tmp_path / "m")
    loaded = QANetForQuestionAnswering.from_pretrained(tmp_path / "m")
    for name, tensor in model.state_dict().items():
        assert tensor.equal(loaded.state_dict()[name]), name


def test_a_tokenizer_without_the_tokens_it_needs_is_refused(tokenizer_folder):
    with pytest.raises(UserError, match="no pad_token_id, unk_token_id, cls_token_id"):
        QANetForQuestionAnswering.from_tokenizer(AutoTokenizer.from_pretrained(tokenizer_folder))
