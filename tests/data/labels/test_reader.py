"""A store as data: what is read of it, put into it and written from it, and by which names."""

import json
import time
from pathlib import Path

import pytest
from sqlalchemy import insert
from stores import new_name, new_store

from rlhf_kit.cli.run import main
from rlhf_kit.data import interchange
from rlhf_kit.data.labels import schema
from rlhf_kit.data.labels.agreement import own_agreement, report_of
from rlhf_kit.data.labels.export import FORMS, Files
from rlhf_kit.data.labels.importing import add_known, add_rankings, add_thumbs
from rlhf_kit.data.labels.reader import read_labels
from rlhf_kit.data.labels.store import Answer, Event, Store, open_store
from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def decide(store: Store, name: str, task: int, kind: str = "ranked", turn: int = 0, **content) -> None:
    """A decision of a labeler; `ranks` by place of the answer."""
    labeler, answers = store.add_labeler(name), store.task(task).answers
    if "ranks" in content:
        content["ranks"] = {str(one.id): rank for one, rank in zip(answers, content["ranks"], strict=True)}
    if "ratings" in content:
        content["ratings"] = {str(one.id): value for one, value in zip(answers, content["ratings"], strict=True)}
    values = {"task": task, "labeler": labeler, "turn": turn, "presented": [one.id for one in answers][::-1],
              "opened": 0.0, "expires": 0.0}  # fmt: skip
    with store.writing() as connection:
        assignment = connection.execute(insert(schema.assignments).values(values)).inserted_primary_key[0]
    store.add_event(Event(f"{name}-{task}-{turn}-{time.time_ns()}", kind, labeler, content, assignment))


@pytest.fixture
def store(tmp_path) -> Store:
    """Two lists ranked by two, one skipped, a gold task, a hidden repeat, an example, two thumbs."""
    made = new_store(tmp_path)
    sources = [[{"model": "sft"}], [{"model": "ppo"}], [{"model": "sft"}, {"model": "ppo"}]]
    texts = [Answer(text, source) for text, source in zip("abc", sources, strict=True)]
    one = made.add_task("ranking", "One?", texts)
    two = made.add_task("ranking", [{"role": "user", "content": "Two?"}], [Answer("x"), Answer("y")])
    three = made.add_task("ranking", "Three?", [Answer("p"), Answer("q")])
    gold = made.add_task("ranking", "Gold?", [Answer("g"), Answer("h")], "gold", [1, 2])
    example = made.add_task("ranking", "Example?", [Answer("e"), Answer("f")], "example", [1, 2], "since")
    decide(made, "amy", one, ranks=[1, 2, 2], comment="private", ratings=[7, 3, 2])
    decide(made, "bob", one, ranks=[2, 1, 3])
    decide(made, "amy", one, turn=1, ranks=[3, 2, 1])
    decide(made, "amy", two, ranks=[2, 1])
    decide(made, "amy", three, "skipped", reason="private too")
    decide(made, "bob", three, "unrankable")
    decide(made, "amy", gold, ranks=[2, 1])
    decide(made, "amy", example, ranks=[1, 2])
    good, bad = (made.add_task("thumbs", "Good?", [Answer(text)]) for text in ("yes", "no"))
    decide(made, "amy", good, "thumb", label=True)
    decide(made, "amy", bad, "thumb", label=False)
    return made


RANKED = [
    {"prompt": "One?", "completions": ["a", "b", "c"], "ranks": [1, 2, 2], "labeler": "amy"},
    {"prompt": "One?", "completions": ["a", "b", "c"], "ranks": [2, 1, 3], "labeler": "bob"},
    {"prompt": [{"role": "user", "content": "Two?"}], "completions": ["x", "y"], "ranks": [2, 1], "labeler": "amy"},
]


def test_rankings_that_count_are_read(store):
    """Not the hidden repeat, what was skipped, gold tasks or examples."""
    assert read_labels(store.name, ("ranked", "pairs", "thumbs")) == RANKED


def test_one_kind_is_read_by_its_name(store):
    thumbs = [
        {"prompt": "Good?", "completion": "yes", "label": True},
        {"prompt": "Good?", "completion": "no", "label": False},
    ]
    assert read_labels(f"{store.name}:thumbs", ("ranked", "thumbs")) == thumbs
    assert read_labels(store.name, ("thumbs",)) == thumbs
    prompts = [row["prompt"] for row in read_labels(store.name, ("prompts",))]
    assert len(prompts) == 6 and prompts[0] == "One?"


def test_the_best_answer_is_that_of_all_rankings_together(store):
    """amy: a > b = c, bob: b > a > c. a and b tie by votes; a was rated, 7 to 3."""
    assert read_labels(store.name, ("demonstrations",)) == [
        {"prompt": "One?", "completion": "a"},
        {"prompt": [{"role": "user", "content": "Two?"}], "completion": "y"},
    ]


def test_a_store_is_a_source_of_every_stage(store):
    rows, kind = load(store.name, ("ranked", "pairs", "thumbs"))
    assert kind == "ranked" and rows["labeler"] == ["amy", "bob", "amy"] and rows["ranks"][0] == [1, 2, 2]
    assert [load(store.name, kinds)[1] for kinds in (("thumbs",), ("demonstrations",), ("prompts",))] == [
        "thumbs", "demonstrations", "prompts"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "kinds", "message"),
    [
        ("{}", ("text",), "has ranked, thumbs, demonstrations, prompts; this stage takes text"),
        ("{}:thumbs", ("demonstrations",), "this stage takes demonstrations"),
        ("none.db", ("ranked",), "There is no none.db"),
    ],
)
def test_what_a_store_has_not_is_refused(store, source, kinds, message):
    with pytest.raises(UserError, match=message):
        load(source.format(store.name), kinds)


def test_an_empty_store_says_how_to_fill_it(tmp_path):
    made = new_store(tmp_path)
    with pytest.raises(
        UserError, match="no ranked or thumbs yet: 0 tasks, 0 decisions. Label some with `rlhf-kit ui`"
    ):
        read_labels(made.name, ("ranked", "thumbs"))


def test_gold_tasks_and_hidden_repeats_are_measured_by_labeler(store):
    """amy: the gold task turned round, and both pairs of the repeat that she orders twice. bob: one of three."""
    gold = store.add_task("ranking", "Gold too?", list(map(Answer, "rst")), "gold", [1, 2, 2])
    decide(store, "bob", gold, ranks=[1, 2, 3])
    decide(store, "bob", 1, turn=1, ranks=[1, 2, 3])
    made = report_of(store)
    amy, bob = made.labelers["amy"], made.labelers["bob"]
    assert (made.rankings, amy.decisions, bob.decisions) == (3, 4, 1)  # amy's: two thumbs
    assert [(of.value, of.n) for of in (amy.gold, amy.repeats, bob.gold)] == [(0.0, 1), (0.0, 2), (1.0, 2)]
    assert bob.repeats.value == pytest.approx(2 / 3) and bob.repeats.n == 3


def test_thumbs_are_measured_as_rankings_are(store):
    """bob: one of two thumbs as amy's; of cid's two known ones one right; amy repeats one as it was."""
    good, bad = (each.id for each in store.tasks("thumbs").values())
    known = [store.add_task("thumbs", "Known?", [Answer(text)], "gold", [text == "yes"]) for text in ("yes", "no")]
    for name, task, label, turn in (("bob", good, True, 0), ("bob", bad, True, 0), ("cid", known[0], True, 0),
                                    ("cid", known[1], True, 0), ("amy", bad, False, 1)):  # fmt: skip
        decide(store, name, task, "thumb", turn, label=label)
    made = report_of(store)
    amy, bob, cid = (made.labelers[name] for name in ("amy", "bob", "cid"))
    assert (made.thumbs.value, made.thumbs.n, made.rankings) == (0.5, 2, 3)
    assert (cid.gold.value, cid.gold.n, cid.decisions) == (0.5, 2, 0)
    assert (amy.repeats.value, amy.repeats.n) == (pytest.approx(1 / 3), 3)  # with the two pairs of her ranking
    assert (bob.against_others.value, bob.against_others.n) == (pytest.approx(2 / 4), 4)
    assert (
        own_agreement(store, 2) == bob.against_others and read_labels(f"{store.name}:thumbs", ("thumbs",))[-1]["label"]
    )


# --- out ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_written_and_holds_no_comment(store, form):
    text = Files(store).lines(form)
    assert text and "private" not in text and all(json.loads(line) for line in text.splitlines())


def test_without_names_nobody_is_named(store):
    files = Files(store, anonymise=True)
    assert [row["labeler"] for row in files.records("ranked")] == ["labeler-1", "labeler-2", "labeler-1"]
    everything = "".join(files.lines(form) for form in FORMS) + files.data_card()
    assert "amy" not in everything and "bob" not in everything
    assert [row["labeler"] for row in Files(store).records("ranked")] == ["amy", "bob", "amy"]


def test_battles_name_the_models(store):
    battles = Files(store).records("arena")
    assert [(one["model_a"], one["model_b"], one["winner"], one["judge"]) for one in battles[:3]] == [
        ("sft", "ppo", "model_a", "amy"), ("sft", "sft+ppo", "model_a", "amy"), ("ppo", "sft+ppo", "tie", "amy")
    ]  # fmt: skip


def test_a_data_card_counts(store):
    card = Files(store).data_card()
    assert "- tasks: 7 (1 with known answers)" in card and "- labelers: 2" in card
    assert "- ranked: 6" in card and "- skipped: 1" in card and "- thumb: 2" in card
    # amy and bob both order a and b, and a and c: half alike
    assert "two labelers order alike: 0.500" in card


def test_convert_writes_what_a_store_has(store, tmp_path, capsys):
    card, target = tmp_path / "card.md", tmp_path / "out.jsonl"
    arguments = [store.name, str(target), "--to", "trl", "--anonymise", "--data_card", str(card)]
    assert main(["convert", *arguments]) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert {row["labeler"] for row in rows} == {"labeler-1", "labeler-2"} and card.read_text().startswith("# Labels")
    assert main(["convert", *arguments]) == 0  # its own files are replaced
    card.write_text("mine")
    assert main(["convert", *arguments]) == 2 and card.read_text() == "mine"
    assert "card.md" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{store}", "other.db"], "IN and OUT are both stores"),
        (["{store}", "out.jsonl", "--from", "ranked"], "a store has no --from"),
        (["{store}", "out.jsonl", "--to", "best", "--merge", "mean-rank"], "--to best has none"),
        (["in.jsonl", "out.jsonl"], "give the format of IN by --from"),
        (["in.jsonl", "out.jsonl", "--from", "ranked", "--to", "best"], "--to best is of a store"),
        (["in.jsonl", "out.jsonl", "--from", "thumbs"], "--from thumbs goes into a store"),
        (["in.jsonl", "out.jsonl", "--from", "ranked", "--anonymise"], "--anonymise is of a store"),
        (["in.jsonl", "out.jsonl", "--from", "ranked", "--task_mode", "gold"], "--task_mode gold goes into a store"),
        (["in.jsonl", "x.db", "--from", "best", "--task_mode", "example"], "an example is a ranking"),
        (["{store}", "out.csv"], "give a .jsonl or a .json file"),
    ],
)
def test_what_does_not_go_together_is_refused(store, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *(one.format(store=store.name) for one in arguments)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not {"out.jsonl", "other.db", "out.csv"} & {path.name for path in tmp_path.iterdir()}


# --- in -------------------------------------------------------------------------------------------------------------


def test_rankings_made_elsewhere_are_put_in_once(tmp_path):
    made = new_store(tmp_path)
    assert add_rankings(made, RANKED) == 3 and add_rankings(made, RANKED) == 0
    assert read_labels(made.name, ("ranked",)) == RANKED
    assert {each.interface for each in made.decisions()} == {"import"}


def test_another_ranking_of_the_same_answers_revises(tmp_path):
    made = new_store(tmp_path)
    add_rankings(made, RANKED[:1])
    turned = RANKED[0] | {"completions": ["c", "a", "b"], "ranks": [1, 2, 3]}
    assert add_rankings(made, [turned]) == 1
    assert read_labels(made.name, ("ranked",)) == [RANKED[0] | {"ranks": [2, 3, 1]}]


def test_rankings_of_nobody_and_of_odd_names_have_a_labeler(tmp_path):
    made = new_store(tmp_path)
    row = {"prompt": "P", "completions": ["a", "b", "a"], "ranks": [1, 5, 1]}
    assert add_rankings(made, [row, row | {"labeler": "  amy\n lee "}, row | {"labeler": "x" * 200}]) == 3
    rows = read_labels(made.name, ("ranked",))
    assert [one["labeler"] for one in rows] == ["import", "amy lee", "x" * 80]
    assert rows[0]["completions"] == ["a", "b"] and rows[0]["ranks"] == [1, 2]


KNOWN = [
    {"prompt": "P", "completions": ["good", "bad", "worse"], "ranks": [1, 3, 4], "explanation": "It answers."},
    {"prompt": "Q", "completions": ["x", "y", "x"], "ranks": [2, 1, 2]},
]


@pytest.mark.parametrize("mode", ["gold", "example"])
def test_known_answers_are_put_into_a_store(tmp_path, capsys, caplog, mode):
    """Ranks without gaps, an answer given twice once; read again they add nothing. Gold is not explained."""
    source = write_lines(tmp_path / "known.jsonl", KNOWN)
    command = ["convert", str(source), str(tmp_path / "labels.db"), "--from", "ranked", "--task_mode", mode]
    assert main(command) == main(command) == 0
    tasks = list(open_store(tmp_path / "labels.db").tasks().values())
    assert [(task.mode, [answer.text for answer in task.answers], task.gold) for task in tasks] == [
        (mode, ["good", "bad", "worse"], [1, 2, 3]), (mode, ["x", "y"], [2, 1])
    ]  # fmt: skip
    assert tasks[0].explanation == ("It answers." if mode == "example" else None)
    assert "0 added, 2 were there" in capsys.readouterr().out and ("`explanation`" in caplog.text) == (mode == "gold")


def test_known_thumbs_are_put_into_a_store(tmp_path):
    made = new_store(tmp_path)
    assert add_known(made, [{"prompt": "P", "completion": "a", "label": False}], "gold") == 1
    (task,) = made.tasks().values()
    assert (task.kind, task.mode, task.gold) == ("thumbs", "gold", [False])


@pytest.mark.parametrize(
    ("there", "mode", "message"),
    [
        (None, "gold", "'Q' is in the store, as a task of the mode normal; it stays what it is"),
        ("example", "gold", "as a task of the mode example;"),
        ("gold", "gold", "as a task of the mode gold with other values"),
    ],
)
def test_a_list_that_is_there_otherwise_is_refused_and_nothing_added(tmp_path, there, mode, message):
    made = new_store(tmp_path)
    answers = [Answer("x"), Answer("y")]
    made.add_task("ranking", "Q", answers, *([there, [1, 2]] if there else []))
    with pytest.raises(UserError, match=message):
        add_known(made, KNOWN, mode)
    assert len(made.tasks()) == 1


def test_demonstrations_are_thumbs_up(tmp_path):
    """Also of a dialogue: its last answer, after all that stands before it."""
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    source = write_lines(tmp_path / "best.jsonl", [{"messages": turns[:2]}, {"messages": turns}])
    assert main(["convert", str(source), str(tmp_path / "labels.db"), "--from", "best"]) == 0
    assert read_labels(str(tmp_path / "labels.db"), ("thumbs",)) == [
        {"prompt": turns[:1], "completion": "b", "label": True},
        {"prompt": turns[:3], "completion": "d", "label": True},
    ]


def test_demonstrations_with_tools_are_refused(tmp_path, capsys):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    source = write_lines(tmp_path / "best.jsonl", [{"messages": turns, "tools": tools}])
    assert main(["convert", str(source), str(tmp_path / "labels.db"), "--from", "best"]) == 2
    assert "has tools" in capsys.readouterr().err and not (tmp_path / "labels.db").exists()


def test_thumbs_made_elsewhere_are_put_in_once(tmp_path):
    made = new_store(tmp_path)
    rows = [{"prompt": "P", "completion": text, "label": label} for text, label in (("a", True), ("b", False))]
    assert add_thumbs(made, rows) == 2 and add_thumbs(made, rows) == 0
    assert read_labels(made.name, ("thumbs",)) == rows


@pytest.mark.parametrize("format", ["ranked", "trl", "argilla", "label-studio"])
def test_a_store_goes_out_and_comes_back(store, tmp_path, format):
    """By the formats that keep whole rankings; trl drops ties' order only."""
    target, back = tmp_path / "out.jsonl", new_name(tmp_path, "back.db")
    assert main(["convert", store.name, str(target), "--to", format]) == 0
    assert main(["convert", str(target), str(back), "--from", format]) == 0
    rows, expected = (load(name, ("ranked",))[0] for name in (str(back), store.name))
    pairs = [[(dict(zip(row["completions"], row["ranks"], strict=True))) for row in some] for some in (rows, expected)]
    assert sorted(map(str, map(sorted, map(dict.items, pairs[0])))) == sorted(
        map(str, map(sorted, map(dict.items, pairs[1])))
    )


def test_files_of_other_tools_come_in(tmp_path):
    made = new_name(tmp_path)
    source = tmp_path / "thumbs.jsonl"
    source.write_text(json.dumps({"prompt": "P", "completion": "a", "label": True}) + "\n")
    assert main(["convert", str(source), str(made), "--from", "thumbs"]) == 0
    assert read_labels(str(made), ("thumbs",)) == [{"prompt": "P", "completion": "a", "label": True}]
    assert set(interchange.FORMATS) >= {"ranked", "trl", "arena", "argilla", "label-studio"}
