import copy
import json
import random

import pytest
from foreign import FIXTURES, file, row, says, user

from rlhf_kit.data.formats import validate
from rlhf_kit.data.interchange import FORMATS, WRITABLE, read, write
from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.storage import RECORD

ANN, BOB = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
FILES = {
    "ranked.jsonl": "ranked",
    "trl.jsonl": "trl",
    "hh-rlhf.jsonl": "hh-rlhf",
    "summarize-from-feedback.jsonl": "summarize-from-feedback",
    "webgpt.jsonl": "webgpt",
    "ultrafeedback.jsonl": "ultrafeedback",
    "nectar.jsonl": "nectar",
    "arena.jsonl": "arena",
    "oasst.jsonl": "oasst",
    "argilla.json": "argilla",
    "argilla-flat.jsonl": "argilla",
    "label-studio.json": "label-studio",
}


def test_every_format_has_a_fixture_of_its_own_columns():
    assert set(FILES.values()) == set(FORMATS)
    assert {path.name for path in FIXTURES.iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_what_is_read_keeps_the_contract(name):
    rows, _ = read(FIXTURES / name, FILES[name])
    validate(rows, "ranked", name)


def test_trl_pairs():
    rows, left_out = read(FIXTURES / "trl.jsonl", "trl")
    assert rows == [
        row(
            "Name a river in Taiwan.",
            ["The Zhuoshui River.", "The Tamsui River.", "The Nile."],
            [1, 1, 2],
            margin=1.5,
        ),
        row([user("二加二是多少？")], ["四。", "大概是五。"], [1, 2]),
        row([user("Say hello.")], ["Hello!", "No."], [1, 2]),  # the prompt is what the dialogues share
        row("The sky is", [" blue.", " black."], [1, 2]),  # and of two texts, what they share in whole words
    ]
    assert left_out == {}


def test_trl_pairs_that_contradict_one_another_are_left_out_and_named(tmp_path):
    def pair(chosen, rejected, group):
        return {"prompt": "p", "chosen": chosen, "rejected": rejected, "group": group}

    path = file(tmp_path, [pair("a", "b", 1), pair("b", "a", 1), pair("a", "b", 2)])
    rows, left_out = read(path, "trl")
    assert rows == [row("p", ["a", "b"], [1, 2])]
    assert left_out == {"pairs of a group that contradict one another": 2}


def test_hh_transcripts_become_messages_with_the_shared_prompt():
    rows, left_out = read(FIXTURES / "hh-rlhf.jsonl", "hh-rlhf")
    egg = [user("How do I boil an egg?"), says("Put it in boiling water."), user("For how long?")]
    assert rows == [
        row(egg, ["Eight minutes for a firm yolk.", "Until it is done."], [1, 2]),
        row([user("臺灣最高的山是哪一座？")], ["玉山，海拔 3,952 公尺。", "阿里山。"], [1, 2]),
    ]
    assert left_out == {"no prompt, and not dialogues that differ only in their last turn": 1, "empty text": 1}


def test_summaries_have_the_prompt_of_the_paper_and_their_worker():
    rows, left_out = read(FIXTURES / "summarize-from-feedback.jsonl", "summarize-from-feedback")
    good, bad = "Neighbour drowned my cactus out of kindness, how do I tell him?", "Plants are hard."
    assert rows[0]["prompt"] == (
        "SUBREDDIT: r/relationships\n\nTITLE: How do I tell my neighbour not to water the cactus?\n\n"
        "POST: My neighbour waters my plants when I travel.\n\n"
        "This time he watered the cactus every day and it died. He feels awful.\n\nTL;DR:"
    )
    assert [(one["completions"], one["ranks"], one["labeler"]) for one in rows] == [
        ([good, bad], [1, 2], "workerA"),
        ([bad, good], [2, 1], "workerB"),
        (["不敢請人拿開座位上的背包。", "捷運。"], [1, 2], "workerA"),
    ]
    assert left_out == {"no `info.post`": 1}  # a news article


def test_webgpt_scores_become_ranks():
    rows, _ = read(FIXTURES / "webgpt.jsonl", "webgpt")
    assert [one["ranks"] for one in rows] == [[1, 2], [1, 1], [2, 1]]
    assert rows[1]["prompt"] == "What is the capital of Taiwan?"
    assert rows[1]["completions"] == ["Taipei.", "It is Taipei."]


def test_ultrafeedback_scores_become_ranks():
    rows, left_out = read(FIXTURES / "ultrafeedback.jsonl", "ultrafeedback")
    assert [one["ranks"] for one in rows] == [
        [2, 1, 1, 3],  # overall scores 4, 8.5, 8.5, 2
        [1, 2],  # no overall score: the fine-grained
        [1, 1, 2],  # neither: mean ratings (5 + 4 + 3) / 3 = 4, 4, 1
    ]
    assert rows[1]["prompt"] == "把「謝謝」翻成英文。" and rows[1]["completions"] == ["Thank you.", "Please."]
    assert left_out == {"an answer without a score": 1}


def test_oasst_trees_give_a_list_wherever_siblings_are_ranked():
    rows, left_out = read(FIXTURES / "oasst.jsonl", "oasst")
    comet = "A ball of ice and dust that circles the sun."
    assert rows == [
        row([user("What is a comet?")], ["A star.", comet, "Something in the sky."], [3, 1, 2]),
        row([user("What is a comet?"), says(comet), user("Name one.")], ["Halley's comet.", "The moon."], [1, 2]),
        row([user("推薦一道臺灣小吃。")], ["蚵仔煎，外酥內嫩。", "漢堡。"], [1, 2]),
    ]
    assert left_out == {"a message deleted or rejected in review": 3, "fewer than two ranked answers": 1}


def test_argilla_gives_a_row_a_user():
    rows, left_out = read(FIXTURES / "argilla.json", "argilla")
    full, terse, short = "Clouds are full and let the water go.", "Precipitation ensues on saturation.", "It rains."
    assert rows == [
        row("Explain rain to a child.", [full, short, terse], [1, 2, 3], labeler=ANN),
        row("Explain rain to a child.", [short, full, terse], [1, 2, 3], labeler=BOB),
        # The server's form, with ranks: a tie.
        row("用一句話介紹臺南。", ["臺南在南部。", "臺南是臺灣最早的首府，古蹟與小吃都多。"], [1, 1], labeler=ANN),
    ]
    assert left_out == {"a response that was not submitted": 1, "no response that ranks the fields": 1}
    flat, left_out = read(FIXTURES / "argilla-flat.jsonl", "argilla")
    assert flat == [row("Explain rain to a child.", ["Clouds let the water go.", "It rains."], [1, 2], labeler=ANN)]
    assert left_out == {"a response that was not submitted": 1}


def test_label_studio_gives_a_row_an_annotation():
    rows, left_out = read(FIXTURES / "label-studio.json", "label-studio")
    fires, war, aliens = "Several fires and centuries of neglect.", "A war.", "Aliens."
    alexandria = "What destroyed the library of Alexandria?"
    assert rows == [
        row(alexandria, [fires, war, aliens], [1, 2, 3], labeler="1"),
        row(alexandria, [war, fires, aliens], [1, 1, 2], labeler="bo@example.org"),  # buckets 1 and 2
        row("推薦一本書。", ["《小王子》，很短也很深。", "書。"], [1, 2], labeler="1"),  # one bucket, one item left
        row("Say hello.", ["Hello!", "No."], [1, 2], labeler="1"),  # Pairwise: the right one
    ]
    assert left_out == {
        "a cancelled annotation": 1,
        "several buckets whose names are not ranks": 1,
        "no annotation": 1,
    }


@pytest.mark.parametrize(
    "format, columns",
    [
        ("ranked", {"prompt": "Hi", "completions": ["a", "b"], "ranks": [1, 2]}),
        ("trl", {"prompt": "Hi", "chosen": "a", "rejected": "b"}),
        ("trl", {"chosen": [user("Hi"), says("a")], "rejected": [user("Hi"), says("b")]}),
        ("hh-rlhf", {side: f"\n\nHuman: Hi\n\nAssistant: {t}" for side, t in (("chosen", "a"), ("rejected", "b"))}),
        ("nectar", {"prompt": "Hi", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}),
        ("arena", {"prompt": "Hi", "response_a": "a", "response_b": "b", "winner": "model_a"}),
        ("argilla", {"fields": {"prompt": "Hi", "1": "a", "2": "b"}, "responses": {"r": [{"value": ["1", "2"]}]}}),
    ],
)
def test_a_system_column_is_kept_as_a_turn(tmp_path, format, columns):
    record = copy.deepcopy(columns)
    record.get("fields", record)["system"] = "Be kind."
    rows, _ = read(file(tmp_path, [record]), format)
    assert rows == [row([{"role": "system", "content": "Be kind."}, user("Hi")], ["a", "b"], [1, 2])]


def test_nectar_and_arena_battles_are_ranked():
    asked = [user("Which river runs through Taipei?")]
    (nectar,), _ = read(FIXTURES / "nectar.jsonl", "nectar")
    assert nectar == row(asked, ["The Nile.", "The Tamsui River.", "A river."], [3, 1, 2])
    battles, _ = read(FIXTURES / "arena.jsonl", "arena")
    assert battles == [
        row(asked, ["The Nile.", "The Tamsui River."], [2, 1]),
        row(asked, ["The Nile.", "The Rhine."], [1, 1]),
    ]


ROWS = [
    row("p", ["a", "b", "c"], [1, 2, 3], labeler=ANN),
    row([user("問題？"), says("答。"), user("再問？")], ["好", "不好"], [1, 2], labeler=BOB),
]
EXTRAS = [
    row("p", ["a", "b", "c", "d"], [1, 1, 2, 3], margin=0.5, weight=0.7, labeler="Ann"),
    row("p", ["a", "b", "c", "d", "e", "f"], [1, 2, 3, 4, 5, 6], labeler="Bob"),
    row("q", ["x", "y"], [1, 2], weight=3.0),
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("format", WRITABLE)
def test_what_is_written_is_read_again(tmp_path, format, suffix):
    path = tmp_path / f"new/x{suffix}"
    rows = copy.deepcopy(ROWS)
    assert write(rows, path, format) == {}
    assert rows == ROWS  # untouched
    back, left_out = read(path, format)
    assert left_out == {} and {entry.name for entry in path.parent.iterdir()} == {path.name, RECORD}
    if format == "arena":  # a battle for every two answers, in turns
        assert [(one["completions"], one["ranks"]) for one in back] == [
            (["a", "b"], [1, 2]), (["a", "c"], [1, 2]), (["b", "c"], [1, 2]), (["好", "不好"], [1, 2])
        ]  # fmt: skip
        assert back[0]["prompt"] == [user("p")] and back[3]["prompt"] == ROWS[1]["prompt"]
    elif format == "hh-rlhf":  # pairs of one list are not told to be, nor whose they are
        assert [one["completions"] for one in back] == [["a", "b"], ["a", "c"], ["b", "c"], ["好", "不好"]]
        assert back[3]["prompt"] == ROWS[1]["prompt"]
    elif format == "trl":  # messages in all rows: a column has one type
        assert back == [{**ROWS[0], "prompt": [user("p")]}, ROWS[1]]
    else:
        assert back == ROWS


@pytest.mark.parametrize("format", ["ranked", "trl"])
def test_ties_margins_weights_and_labelers_come_back(tmp_path, format):
    path = tmp_path / "x.jsonl"
    write(EXTRAS, path, format)
    assert read(path, format) == (EXTRAS, {})
    loaded = load(str(path), ("ranked", "pairs"))[0].to_list()  # and it is data to train on
    assert [{name: one[name] for name in one if one[name] is not None} for one in loaded] == EXTRAS


def test_trl_weights_make_every_list_weigh_the_same(tmp_path):
    path = tmp_path / "x.jsonl"
    write(EXTRAS, path, "trl")
    weights = {}
    for line in path.read_text().splitlines():
        pair = json.loads(line)
        weights.setdefault(pair["group"], []).append(pair["weight"])
    assert weights == {1: [pytest.approx(0.7 / 5)] * 5, 2: [pytest.approx(1 / 15)] * 15, 3: [3.0]}


def test_label_studio_keeps_ties_in_buckets_and_one_task_a_list(tmp_path):
    tie = row("p", ["a", "b", "c"], [2, 1, 1], labeler="2")
    named = {"labeler": "ann@example.org"}
    write(
        [tie, row("p", ["c", "b", "a"], [1, 2, 3], **named), row("q", ["x", "y"], [1, 2])],
        tmp_path / "x.json",
        "label-studio",
    )
    tasks = json.loads((tmp_path / "x.json").read_text())
    assert [len(task["annotations"]) for task in tasks] == [2, 1]
    first, second = tasks[0]["annotations"]
    assert first["result"][0]["value"] == {"ranker": {"1": ["answer_2", "answer_3"], "2": ["answer_1"]}}
    assert second["result"][0]["value"] == {"ranker": ["answer_3", "answer_2", "answer_1"]}
    assert (first["completed_by"], second["completed_by"]) == (2, {"email": "ann@example.org"})
    assert "completed_by" not in tasks[1]["annotations"][0]
    assert read(tmp_path / "x.json", "label-studio")[0] == [
        row("p", ["b", "c", "a"], [1, 1, 2], labeler="2"),
        row("p", ["c", "b", "a"], [1, 2, 3], **named),
        row("q", ["x", "y"], [1, 2]),
    ]


def test_argilla_keeps_ties_in_the_form_of_the_server(tmp_path):
    path = tmp_path / "x.json"
    rows = [row("p", ["a", "b"], [1, 2], labeler=ANN), row("p", ["b", "a"], [1, 2]), row("q", ["x", "y"], [1, 2])]
    write(rows, path, "argilla")
    records = json.loads(path.read_text())
    assert records[0]["responses"] == {
        "ranking": [
            {"user_id": ANN, "value": ["response-1", "response-2"]},
            {"user_id": "00000000-0000-0000-0000-000000000000", "value": ["response-2", "response-1"]},
        ]
    }
    assert read(path, "argilla") == (rows, {})
    rows[2]["ranks"] = [1, 1]
    write(rows, path, "argilla")
    records = json.loads(path.read_text())
    assert records[1]["responses"][0]["values"] == {
        "ranking": {"value": [{"value": "response-1", "rank": 1}, {"value": "response-2", "rank": 1}]}
    }
    assert read(path, "argilla") == (rows, {})


def test_what_a_format_cannot_hold_is_left_out_and_named(tmp_path):
    tied, plain = row("p", ["a", "b"], [1, 1]), row("q", ["a", "b"], [1, 2])
    path = tmp_path / "x.json"
    assert write([tied, plain], path, "trl") == {"all answers tie: there is no pair": 1}
    system = row([{"role": "system", "content": "Be brief."}, user("q")], ["a", "b"], [1, 2])
    marked = row("q", ["a\n\nHuman: b", "b"], [1, 2])
    assert write([system, marked, plain], path, "hh-rlhf") == {
        "a system turn, which hh-rlhf does not have": 1,
        "a text containing Human: or Assistant:, which would be read as a new turn": 1,
    }
    with pytest.raises(UserError, match="nothing to write to .* in the format trl \\(1 all answers tie"):
        write([tied], tmp_path / "none.jsonl", "trl")
    assert not (tmp_path / "none.jsonl").exists()


def test_a_file_of_another_format_is_recognised():
    with pytest.raises(UserError) as error:
        read(FIXTURES / "webgpt.jsonl", "ultrafeedback")
    assert str(error.value) == (
        f"{FIXTURES / 'webgpt.jsonl'} holds no ranking in the format ultrafeedback (3 no `completions`). The first "
        "record's columns are `question`, `quotes_0`, `answer_0`, `tokens_0`, `score_0`, `quotes_1`, `answer_1`, "
        "`tokens_1`, `score_1`. That looks like webgpt. Give its format with --from, or another file."
    )


def test_mistakes_are_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": \n')
    (tmp_path / "folder").mkdir()
    for call, message in [
        (lambda: read(tmp_path / "b.jsonl", "trl"), "b.jsonl does not exist. Did you mean 'a.jsonl'"),
        (lambda: read(tmp_path / "a.jsonl", "trl"), "line 1: is not valid JSON"),
        (lambda: read(FIXTURES / "trl.jsonl", "trll"), "there is no format 'trll'; .* Did you mean 'trl'"),
        (lambda: write(ROWS, tmp_path / "x.json", "webgpt"), "webgpt can be read only; write ranked, trl"),
        (lambda: write(ROWS, tmp_path / "x.csv", "trl"), "ends in '.csv'; give a .jsonl or a .json file"),
        (lambda: write(ROWS, tmp_path / "a.jsonl/x.json", "trl"), "x.json cannot be written"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_an_interrupted_write_leaves_the_old_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    write(ROWS, path, "ranked")
    before = path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        write(ROWS[:1], path, "ranked")
    assert path.read_text() == before and {*tmp_path.iterdir()} == {path, tmp_path / RECORD}
    monkeypatch.undo()
    path.write_text("mine")
    with pytest.raises(UserError, match="x.jsonl in .* would be overwritten"):
        write(ROWS, path, "ranked")
    assert path.read_text() == "mine"


def places(value, path=()):
    """Paths to all that stands inside."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


OTHERS = [None, 3, -1.5, True, "", "text", [], [1], ["a", "b"], {}, {"a": 1}, [{}]]


@pytest.mark.parametrize("name", FILES)
def test_records_broken_anywhere_never_end_in_a_traceback(tmp_path, name):
    text = (FIXTURES / name).read_text()
    records = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    rng = random.Random(0)
    broken = [None, [], 3]
    for record in records:
        for *above, last in places(record):
            for other in rng.sample(OTHERS, 4):
                broken.append(copy.deepcopy(record))
                holder = broken[-1]
                for step in above:
                    holder = holder[step]
                holder[last] = other
    rows, left_out = read(file(tmp_path, [*records, *broken]), FILES[name])
    assert rows and left_out
    validate(rows, "ranked", name)
