"""Windows by hand, as Hugging Face cuts them, and as BERT's run_squad.py does; offsets; labels; what has no room."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from toy_reader import tokenizer_of, world_questions
from transformers import PreTrainedTokenizerFast

from rlhf_kit.errors import UserError
from rlhf_kit.eval.extractive.data import Question, read_questions
from rlhf_kit.eval.extractive.windows import make_windows


def question(context, answer="", start=None, asked="who ?", name="q"):
    start = context.index(answer) if start is None else start
    return Question(name, context, asked, ((answer, start),), context)


TEN = question("a b c d e f g h i j", "d")
WORDS = tokenizer_of([TEN.context + " k", "who ?"])


def texts(windows, tokenizer=WORDS):
    return [
        " ".join(tokenizer.convert_ids_to_tokens(windows.input_ids[low:high].tolist()))
        for low, high in zip(windows.first, windows.first[1:], strict=False)
    ]


def run_squad(size, room, step):
    """As BERT's script: a window begins `step` tokens after the one before, until one reaches the end."""
    found, start = [], 0
    while True:
        length = min(size - start, room)
        found.append((start, start + length))
        if start + length == size:
            return found
        start += min(length, step)


def test_windows_by_step_and_by_overlap_by_hand():
    head = "[CLS] who ? [SEP] "  # 4 tokens, 1 behind: room for 4 of 9
    by_step = make_windows([TEN], WORDS, 9, step=3)
    assert texts(by_step) == [head + part for part in ("a b c d [SEP]", "d e f g [SEP]", "g h i j [SEP]")]
    by_overlap = make_windows([TEN], WORDS, 9, overlap=3)
    parts = ["a b c d", "b c d e", "c d e f", "d e f g", "e f g h", "f g h i", "g h i j"]
    assert texts(by_overlap) == [f"{head}{part} [SEP]" for part in parts]
    assert texts(make_windows([TEN], WORDS, 9, step=2)) == texts(make_windows([TEN], WORDS, 9, overlap=2))
    assert by_step.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1] * 3
    assert by_step.lengths.tolist() == [9, 9, 9] and by_step.question.tolist() == [0, 0, 0]
    assert by_step.offsets[:9].tolist() == [[-1, -1]] * 4 + [[0, 1], [2, 3], [4, 5], [6, 7]] + [[-1, -1]]


@pytest.mark.parametrize("size", [1, 3, 4, 5, 7, 8, 10, 11])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 9])
def test_steps_are_those_of_run_squad_and_leave_no_gap(size, step):
    one = question(" ".join("abcdefghijk"[:size]), "a")
    windows = make_windows([one], WORDS, 9, step=step)
    found = [text.split()[4:-1] for text in texts(windows)]
    assert found == [list("abcdefghijk"[low:high]) for low, high in run_squad(size, 4, step)]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("max_length", "overlap"), [(40, 8), (31, 0), (33, 13), (400, 128)])
def test_windows_by_overlap_are_those_of_hugging_face(max_length, overlap, side):
    asked = [*world_questions(4), *world_questions(4, "squad_en")]
    tokenizer = tokenizer_of([one.context + " " + one.question for one in asked], padding_side=side)
    windows = make_windows(asked, tokenizer, max_length, overlap=overlap)
    theirs = tokenizer(
        [one.question for one in asked], [one.context for one in asked], truncation="only_second",
        max_length=max_length, stride=overlap, return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    assert len(windows) == len(theirs["input_ids"])
    assert windows.input_ids.tolist() == sum(theirs["input_ids"], [])
    assert windows.token_type_ids.tolist() == sum(theirs["token_type_ids"], [])
    assert windows.question.tolist() == theirs["overflow_to_sample_mapping"]
    expected = [
        list(offset) if owner == 1 else [-1, -1]
        for at, offsets in enumerate(theirs["offset_mapping"])
        for offset, owner in zip(offsets, theirs.sequence_ids(at), strict=True)
    ]
    assert windows.offsets.tolist() == expected


def test_places_are_in_the_original_passage_whatever_the_characters():
    # full width, outside the basic plane, zero-width space, a combining accent, an ideographic space, an emoji
    context = "ＡＢＣ公司，\u200b𠮷野家\u3000“e\u0301te”😀在１９９７年；\n臺北。"
    tokenizer = tokenizer_of([context.replace("𠮷", "")])
    windows = make_windows([question(context, "臺")], tokenizer, 64)
    places = [tuple(place) for place in windows.offsets.tolist() if place[0] >= 0]
    assert "".join(context[low:high] for low, high in places) == "".join(context.split()).replace("\u200b", "")
    assert (context.index("𠮷"), context.index("𠮷") + 1) in places  # [UNK], and still cut as it stands
    assert all(low < high for low, high in places) and places == sorted(places)


def byte_level():
    """As RoBERTa's: a space belongs to the token behind it, a Chinese character is several tokens; no token types."""
    letters = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 2)}
    core = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, **letters, "Ġb": 300}, merges=[("Ġ", "b")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, cls_token="<s>", pad_token="</s>", sep_token="</s>")


def test_white_space_belongs_to_no_answer_and_all_bytes_of_a_character_do():
    one = question("a b  臺 c", "臺", asked="b")
    windows = make_windows([one], byte_level(), 32, train=True)
    assert windows.token_type_ids is None
    told = windows.offsets.tolist()
    # <s> b </s> </s> | a, " b", " ", three bytes, " ", c | </s>; of two spaces the second is a token of its own
    assert told == [[-1, -1]] * 4 + [[0, 1], [2, 3], [-1, -1], [-1, -1], [5, 6], [5, 6], [5, 6]] + [
        [-1, -1], [7, 8], [-1, -1]
    ]  # fmt: skip
    assert (windows.starts.tolist(), windows.ends.tolist()) == ([8], [10]) and windows.widened == ()


def test_labels_by_hand_and_cls_where_the_answer_is_not_whole():
    windows = make_windows([question(TEN.context, "d e")], WORDS, 9, step=3, train=True)
    # "a b c d", "d e f g", "g h i j"
    assert (windows.starts.tolist(), windows.ends.tolist()) == ([0, 4, 0], [0, 5, 0])
    assert windows.widened == () and windows.untold == ()
    repeated = make_windows([question("a b a", "a", start=4)], WORDS, 12, train=True)
    assert (repeated.starts.tolist(), repeated.ends.tolist()) == ([6], [6])
    assert make_windows([TEN], WORDS, 9, step=3).starts is None


def test_a_question_without_an_answer_points_at_cls_in_all_its_windows():
    nothing = Question("none", TEN.context, "who ?", (), TEN.context)
    windows = make_windows([nothing, TEN], WORDS, 9, step=3, train=True)
    assert windows.question.tolist() == [0, 0, 0, 1, 1, 1] and windows.untold == ()
    assert windows.starts.tolist() == windows.ends.tolist() == [0, 0, 0, 7, 4, 0]
    assert windows.null.tolist() == [0] * 6
    part, _ = windows.of(np.array([1]))
    assert part.null.tolist() == [0] * 3


def test_an_answer_inside_a_token_is_widened_and_one_without_token_left_out_both_counted():
    asked = [
        question("a bc d", "c", start=3, name="inside"),
        question("a b c", " b ", start=1, name="spaces"),
        question("a \u200b b", "\u200b", name="nothing"),
    ]
    words = tokenizer_of(["a bc d", "who ?"])
    words.add_tokens(["bc"])
    windows = make_windows(asked, words, 16, train=True)
    assert windows.widened == ("inside",) and windows.untold == ("nothing",)
    assert windows.question.tolist() == [0, 1]
    assert (windows.starts.tolist(), windows.ends.tolist()) == ([5, 5], [5, 5])
    assert make_windows(asked, words, 16).question.tolist() == [0, 1, 2]  # without labels it can be asked


def test_a_long_question_is_cut_at_its_end_and_counted():
    long = question("a b", "a", asked="a b c d e", name="long")
    windows = make_windows([long, question("a b", "a", asked="a b c", name="short")], WORDS, 16, max_query_length=3)
    assert texts(windows) == ["[CLS] a b c [SEP] a b [SEP]"] * 2
    assert windows.cut_questions == ("long",)


def test_cls_behind_the_passage_and_no_cls_at_all():
    core = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "<sep>": 3, "<cls>": 4}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        "$A <sep> <cls>", "$A <sep> $B:1 <sep>:1 <cls>:2", [("<sep>", 3), ("<cls>", 4)]
    )  # as XLNet
    names = ["input_ids", "token_type_ids", "attention_mask"]
    behind = PreTrainedTokenizerFast(tokenizer_object=core, cls_token="<cls>", model_input_names=names)
    one = question("a a a b", "b", asked="a")
    windows = make_windows([one], behind, 6, step=1, train=True)
    assert texts(windows, behind) == ["a <sep> a a <sep> <cls>"] * 2 + ["a <sep> a b <sep> <cls>"]
    assert (windows.starts.tolist(), windows.ends.tolist()) == ([5, 5, 3], [5, 5, 3])
    assert windows.null.tolist() == [5, 5, 5]
    assert windows.token_type_ids[:6].tolist() == [0, 0, 1, 1, 1, 2]
    core.post_processor = processors.TemplateProcessing("$A", "$A <sep> $B", [("<sep>", 3)])
    bare = PreTrainedTokenizerFast(tokenizer_object=core)
    windows = make_windows([one], bare, 4, step=1, train=True)
    assert windows.starts.tolist() == [0, 0, 3] and windows.token_type_ids is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_length": 5}, "a window of 5 tokens has no room for the question and some of its passage: question 'q'"),
        ({"max_length": 9, "overlap": 4}, "4 tokens of overlap"),
        ({"max_length": 9, "overlap": 4, "step": 4}, "give only one"),
        ({"step": 0}, "at least 1"),
        ({"overlap": -1}, "at least 0"),
    ],
)
def test_what_cannot_be_cut_is_refused(options, told):
    with pytest.raises(UserError, match=told):
        make_windows([TEN], WORDS, **options)


def test_an_overlap_that_leaves_no_step_is_no_matter_where_one_window_holds_all():
    assert len(make_windows([question("a b c d", "a")], WORDS, 9, overlap=4)) == 1


def test_a_tokenizer_without_offsets_and_a_passage_without_tokens_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="Slow does not give the positions of its tokens"):
        make_windows([TEN], Slow())
    silent = [question("\u200b", "\u200b"), question("\u200b ", "\u200b", name="r")]
    with pytest.raises(UserError, match="no tokens in the passage of questions 'q', 'r'"):  # all of them at once
        make_windows(silent, WORDS)


def test_a_part_has_the_windows_of_its_questions_and_knows_their_places():
    asked = [TEN, question("a b", "a", name="r"), question(TEN.context, "j", name="s")]
    windows = make_windows(asked, WORDS, 9, step=3)
    part, tokens = windows.of(np.array([2, 1]))
    assert part.question.tolist() == [1, 2, 2, 2]
    assert texts(part) == texts(windows)[3:] and tokens.tolist() == list(range(27, len(windows.input_ids)))
    assert part.offsets.tolist() == windows.offsets[27:].tolist()
    assert len(windows.of(np.array([], np.int64))[0]) == 0


def test_real_passages_are_cut_as_hugging_face_cuts_them_and_labels_are_their_answers(shared):
    asked = read_questions(str(shared / "drcd/DRCD_dev.json"), "validation")[0][:300]
    tokenizer = tokenizer_of([one.context + one.question for one in asked])
    windows = make_windows(asked, tokenizer, 384, overlap=128)
    theirs = tokenizer(
        [one.question for one in asked], [one.context for one in asked], truncation="only_second", max_length=384,
        stride=128, return_overflowing_tokens=True,
    )  # fmt: skip
    assert windows.input_ids.tolist() == sum(theirs["input_ids"], [])
    for one in make_windows(asked, tokenizer, train=True), make_windows(asked, tokenizer, overlap=200, train=True):
        starts = one.offsets[one.first[:-1] + one.starts, 0]
        ends = one.offsets[one.first[:-1] + one.ends, 1]
        for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            of = asked[one.question[row]]
            said = of.context[start:end]
            assert start < 0 or said == of.references[0] or (of.id in one.widened and of.references[0] in said)


def test_no_questions_no_windows():
    assert len(make_windows([], WORDS)) == 0
