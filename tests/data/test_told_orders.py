"""Orders that foreign records only seem to tell: Label Studio's sides, UltraFeedback's tens."""

import pytest
from foreign import FIXTURES, file, row, user

from rlhf_kit.data.interchange import read
from rlhf_kit.errors import UserError


def task(data, selected="left", to_name="comparison"):
    result = {"from_name": "comparison", "to_name": to_name, "type": "pairwise", "value": {"selected": selected}}
    return {"id": 1, "data": data, "annotations": [{"result": [result], "was_cancelled": False}]}


@pytest.mark.parametrize("to_name", ["b_text,a_text", "b_text, a_text"])
def test_left_and_right_are_those_of_to_name_whatever_the_order_of_keys(tmp_path, to_name):
    data = {"prompt": "p", "a_text": "A", "b_text": "B"}
    for keys in (data, data | {"b_text": data["b_text"]}, dict(reversed(data.items()))):
        rows, _ = read(file(tmp_path, [task(keys, "left", to_name)]), "label-studio")
        assert rows == [row("p", ["B", "A"], [1, 2])]


@pytest.mark.parametrize(
    "left, right",
    [
        ("answer1", "answer2"),
        ("answer_9", "answer_10"),
        ("response_a", "response_b"),
        ("responseA", "responseB"),
        ("left", "right"),
        ("text_of_the_left", "text_of_the_right"),
        ("左邊的回答", "右邊的回答"),
        ("回答1", "回答2"),
        ("Text 1", "Text 2"),
    ],
)
def test_names_tell_left_from_right(tmp_path, caplog, left, right):
    for data in ({left: "A", right: "B", "prompt": "p"}, {right: "B", "prompt": "p", left: "A"}):
        rows, _ = read(file(tmp_path, [task(data, "right")]), "label-studio")
        assert rows == [row("p", ["B", "A"], [1, 2])]
    assert f"`{left}` was shown on the left, `{right}` on the right (by their names" in caplog.text


@pytest.mark.parametrize(
    "names, to_name",
    [
        (("gpt2_answer", "sft_answer"), "comparison"),
        (("gpt3", "gpt4"), "comparison"),  # models, not places
        (("gpt2_answer", "gpt3_answer"), "comparison"),
        (("answer1", "answer3"), "comparison"),
        (("answer1", "answer2", "answer3"), "comparison"),
        (("answer1", "answer2"), "txt-2,txt-1"),  # the tags stand the other way round
        (("gpt2_answer", "sft_answer"), "txt-1,txt-2"),
    ],
)
def test_sides_that_nothing_tells_are_asked_for(tmp_path, names, to_name):
    data = {"prompt": "p"} | {name: name.upper() for name in names}
    path = file(tmp_path, [task(data, "left", to_name)])
    with pytest.raises(UserError, match="does not tell left from right.*give --sides LEFT RIGHT"):
        read(path, "label-studio")
    rows, _ = read(path, "label-studio", sides=(names[1], names[0]))
    assert rows == [row("p", [names[1].upper(), names[0].upper()], [1, 2])]


@pytest.mark.parametrize("format, sides", [("trl", ("a", "b")), ("label-studio", ("a", "a"))])
def test_sides_are_two_fields_of_label_studio(format, sides):
    with pytest.raises(UserError, match="`sides` is '.*it names the two fields that a Pairwise"):
        read(FIXTURES / "label-studio.json", format, sides=sides)


def test_a_ranker_of_one_of_two_lists_is_read_only_where_it_is_told(tmp_path):
    items = {
        name: [{"id": "1", "body": f"{name} 1"}, {"id": "2", "body": f"{name} 2"}] for name in ("first", "second")
    }

    def ranked(to_name, ids):
        result = {"to_name": to_name, "type": "ranker", "value": {"ranker": ids}}
        return {"data": {"prompt": "p", **items}, "annotations": [{"result": [result]}]}

    rows, left_out = read(file(tmp_path, [ranked("second", ["2", "1"]), ranked("rank", ["2", "1"])]), "label-studio")
    assert rows == [row("p", ["second 2", "second 1"], [1, 2])]
    assert left_out == {"a Ranker of one of several lists (`first`, `second`)": 1}


def test_what_stands_beside_a_prompt_is_kept_named_or_refused(tmp_path, caplog):
    sides = {"answer1": "A", "answer2": "B"}
    tasks = [
        task({"prompt": "p", "system": "Be kind.", **sides}),
        task({"prompt": "p", "source": "forum", **sides}),
        task({"prompt": "Of this: long ago.", "context": "long ago", **sides}),
        task({"prompt": "p", "context": "long ago", **sides}),
    ]
    rows, left_out = read(file(tmp_path, tasks), "label-studio")
    assert [one["prompt"] for one in rows] == [
        [{"role": "system", "content": "Be kind."}, user("p")],
        "p",
        "Of this: long ago.",
    ]
    assert "the field `source` is not read (1 of the rankings)" in caplog.text
    assert [(reason[:40], count) for reason, count in left_out.items()] == [
        ("`context` is not read, and rows have one", 1)
    ]


def test_several_judgements_of_one_annotation_are_not_mixed(tmp_path):
    two = task({"prompt": "p", "answer1": "A", "answer2": "B"})
    two["annotations"][0]["result"] *= 2
    with pytest.raises(UserError, match="1 an annotation with several of Ranker and Pairwise"):
        read(file(tmp_path, [two]), "label-studio")


def rated(text, overall, ratings, **further):
    annotations = {str(at): {"Rating": str(rating)} for at, rating in enumerate(ratings)}
    return {"response": text, "overall_score": overall, "annotations": annotations, **further}


@pytest.mark.parametrize(
    "answer, ranks, noted",
    [
        (rated("b", 10, [1, 1, 1, 2]), [2, 3, 1], 1),  # a 1 that became a 10: by means 3, 1.25, 4.75
        (rated("b", "10", [2, 2]), [2, 3, 1], 1),
        (rated("b", 10, [3, 4]), [2, 2, 1], 1),  # in doubt: the means 3.5, 3.5, 4.75
        (rated("b", 10, [5, 5]), [3, 1, 2], 0),
        (rated("b", 10, [4, 3], **{"fine-grained_score": 3.5}), [3, 1, 2], 0),  # scored again by its authors
        (rated("b", 10, [1, 1], **{"fine-grained_score": 1.0}), [2, 3, 1], 1),
        (rated("b", 9, [1, 1]), [3, 1, 2], 0),
    ],
)
def test_ultrafeedbacks_tens_are_believed_only_with_good_ratings(tmp_path, caplog, answer, ranks, noted):
    completions = [rated("a", 3, [3.5, 3.5]), answer, rated("c", 8.5, [5, 5, 5, 4])]
    rows, _ = read(file(tmp_path, [{"instruction": "q", "completions": completions}]), "ultrafeedback")
    assert rows == [row("q", ["a", "b", "c"], ranks)]
    assert ("10 that may be a 1: ranked by the mean ratings (1 of the rankings)" in caplog.text) == bool(noted)


def test_a_ten_without_ratings_is_left_out(tmp_path):
    completions = [{"response": "a", "overall_score": 10}, {"response": "b", "overall_score": 3}]
    with pytest.raises(UserError, match="1 an `overall_score` of 10 that may be a 1, and no ratings to tell"):
        read(file(tmp_path, [{"instruction": "q", "completions": completions}]), "ultrafeedback")
