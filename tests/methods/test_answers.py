"""Rankings, pairs and thumbs as the rows that DPO and KTO learn from."""

import pytest

from rlhf_kit.data.chat import encode_completion, encode_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.methods.answers import answer_rows, encode_lists, encode_thumbs

ASKED = [{"role": "user", "content": "say it"}]
RANKED = {"prompt": ASKED, "completions": ["cat", "a dog", "mat", "the cat"], "ranks": [2, 1, 2, 3]}


def lists(rows, tokenizer, limit=None, said=None):
    return encode_lists(rows, tokenizer, limit, "rows", (said if said is not None else []).append)


def thumbs(rows, tokenizer, limit=None, said=None):
    return encode_thumbs(rows, tokenizer, limit, "rows", (said if said is not None else []).append)


def test_a_ranking_is_all_its_strictly_ordered_pairs(tokenizer):
    rows, counts = lists([RANKED], tokenizer)
    row = rows[0]
    assert row["prompt_ids"] == encode_prompt(tokenizer, ASKED)
    assert row["answer_ids"] == [encode_completion(tokenizer, text, eos=True) for text in RANKED["completions"]]
    assert all(ids[-1] == tokenizer.eos_token_id for ids in row["answer_ids"])
    pairs = {*zip(row["better"], row["worse"], strict=True)}
    assert pairs == {(1, 0), (1, 2), (1, 3), (0, 3), (2, 3)}  # not 0 with 2, which tie
    assert row["weight"] == 1.0 and row["length"] == max(map(len, row["answer_ids"])) + len(row["prompt_ids"])
    assert counts == {"rows": 1}


def test_what_does_not_fit_is_left_out_whole_and_counted(tokenizer):
    short = len(encode_prompt(tokenizer, ASKED)) + len(encode_completion(tokenizer, "a dog", eos=True))
    row = RANKED | {"completions": ["cat", "a dog", "mat " * 20, "the cat"], "ranks": [1, 2, 3, 4]}
    said = []
    rows, counts = lists([row, row | {"completions": ["cat " * 30, "a"], "ranks": [1, 2]}], tokenizer, short, said)
    fitting = [ids for ids in rows[0]["answer_ids"]]
    assert len(rows) == 1 and all(len(ids) + len(rows[0]["prompt_ids"]) <= short for ids in fitting)
    assert all(ids[-1] == tokenizer.eos_token_id for ids in fitting)  # none is cut
    assert counts["answers that do not fit"] == 4 - len(fitting) + 1 and counts["lists without an ordered pair"] == 1
    assert "answers that do not fit" in said[0]
    with pytest.raises(UserError, match="nothing is left to learn from .*max_length 3"):
        lists([RANKED], tokenizer, 3)


def test_a_list_of_ties_teaches_nothing(tokenizer):
    rows, counts = lists([{"prompt": ASKED, "completions": ["cat", "dog"], "ranks": [1, 1]}, RANKED], tokenizer)
    assert len(rows) == 1 and counts["lists without an ordered pair"] == 1


def test_pairs_are_lists_of_two_whose_margin_nothing_reads(tokenizer):
    said = []
    pair = {"prompt": "say", "chosen": "cat", "rejected": "dog", "margin": 1.5}
    rows, _ = lists([pair], tokenizer, said=said)
    assert (rows[0]["better"], rows[0]["worse"]) == ([0], [1]) and said == [
        "rows: nothing reads the column `margin` here"
    ]
    assert rows[0]["answer_ids"][0] == encode_completion(tokenizer, "cat", eos=True)


def test_thumbs_are_not_for_dpo(tokenizer):
    with pytest.raises(UserError, match="rows has thumbs .*rlhf-kit kto"):
        lists([{"prompt": "say", "completion": "cat", "label": True}], tokenizer)


@pytest.mark.parametrize(
    "ranks, labels",
    [
        ([1, 2, 3, 4], [True, True, False, False]),
        ([1, 2, 3], [True, None, False]),
        ([1, 1, 2, 2], [True, True, False, False]),
        ([2, 1, 2, 3], [None, True, None, False]),
        ([1, 2, 2, 2], [True, None, None, None]),
    ],
)
def test_a_ranking_is_cut_at_its_middle(tokenizer, ranks, labels):
    row = RANKED | {"completions": RANKED["completions"][: len(ranks)], "ranks": ranks}
    rows, counts = thumbs([row], tokenizer)
    kept = [(text, label) for text, label in zip(row["completions"], labels, strict=True) if label is not None]
    assert rows["label"] == [label for _, label in kept]
    assert rows["completion_ids"] == [encode_completion(tokenizer, text, eos=True) for text, _ in kept]
    assert counts.get("answers at the middle of their ranking", 0) == labels.count(None)


def test_thumbs_stay_and_pairs_are_one_of_each(tokenizer):
    rows, _ = thumbs([{"prompt": "say", "chosen": "cat", "rejected": "dog"}], tokenizer)
    assert rows["label"] == [True, False]
    rows, _ = thumbs([{"prompt": "say", "completion": "cat", "label": False}], tokenizer)
    assert rows["label"] == [False] and rows["prompt_ids"][0] == encode_prompt(tokenizer, "say")


def test_masks_come_from_lengths_though_padding_is_the_end():
    rows = answer_rows([[5, 9], [7]], [[9, 9], [4, 6, 9]], pad_token_id=9)
    assert rows["input_ids"].tolist() == [[5, 9, 9, 9], [7, 4, 6, 9]]
    assert rows["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert rows["completion_mask"].tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]
    rows = answer_rows([[5], [7]], [[9], [4, 6, 9]], pad_token_id=9)
    assert rows["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert rows["completion_mask"].tolist() == [[0, 1, 0, 0], [0, 1, 1, 1]]
