"""SQuAD 2.0 generated: the prompt, what counts as no answer, the official figures, shots, and a tiny run."""

import json

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_kit.errors import UserError
from rlhf_kit.eval import runner
from rlhf_kit.eval.extractive.data import Question
from rlhf_kit.eval.squad import Squad, SquadArguments, item_of
from rlhf_kit.models.checkpoints import load_tokenizer

ROWS = [
    {
        "id": "a",
        "context": "the cat sat",
        "question": "Who sat?",
        "answers": {"text": ["the cat"], "answer_start": [0]},
    },
    {"id": "b", "context": "the dog sat", "question": "Who ran?", "answers": {"text": [], "answer_start": []}},
]


@pytest.fixture
def options(policy, tokenizer_folder, tmp_path):
    config = GPT2Config(**{**policy.config.to_dict(), "n_positions": 512})
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "tiny")
    load_tokenizer(tokenizer_folder).save_pretrained(tmp_path / "tiny")
    data = written(tmp_path / "rows.jsonl", ROWS)
    return SquadArguments(model_name_or_path=str(tmp_path / "tiny"), dataset_name=data)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("answer", "has_answer", "em", "f1"),
    [
        ("Unanswerable.", False, 1, 1),
        ("無法回答。", False, 1, 1),
        ("unanswerable", True, 0, 0),
        ("the cat", False, 0, 0),
        ("a cat sat", True, 0, 2 / 3),
        ("cat", True, 1, 1),
    ],
)
def test_an_answer_by_hand(answer, has_answer, em, f1):
    question = Question("a", "the cat sat", "Who sat?", (("the cat", 0),) if has_answer else (), "g")
    item = item_of(question, [1], 0, answer, answer)
    assert item.scores == pytest.approx({"em": em, "f1": f1})
    assert item.group == ("HasAns" if has_answer else "NoAns")


def test_the_prompt(options):
    task = Squad(options)
    task.prepare()
    text = 'Answer with words of the passage, or with "unanswerable" if it does not tell.\n\n'
    shown = "Background: the cat sat\n\nQuestion: Who sat?\n\nAnswer:"
    assert task.prompts["a"] == (task.tokenizer(text + shown)["input_ids"], 0)
    first, second = task.rows
    ids = task.encode([second, first])
    before = "Background: the dog sat\n\nQuestion: Who ran?\n\nAnswer: unanswerable\n\n"
    assert ids == task.tokenizer(text + before + shown)["input_ids"]


def test_shots_that_have_no_room_are_left_out(options, tmp_path):
    options.demonstrations = written(tmp_path / "train.jsonl", [{**row, "id": f"t{row['id']}"} for row in ROWS])
    options.shots = 2
    task = Squad(options)
    task.prepare()
    task.context = None
    assert task.prompt(task.rows[0])[1] == 2
    task.context = len(task.prompt(task.rows[0])[0]) + 31
    assert task.prompt(task.rows[0])[1] == 1


def test_shots_from_the_measured_file_are_refused(options):
    options.shots = 1
    with pytest.raises(UserError, match="is the file being evaluated"):
        Squad(options).prepare()


def test_questions_without_room_are_refused_together(options, tmp_path):
    long = "the cat sat on the mat and so did the dog " * 200
    rows = [{**row, "id": name, "context": row["context"] + long} for name in "xy" for row in ROWS[:1]]
    options.dataset_name = written(tmp_path / "long.jsonl", rows)
    with pytest.raises(UserError, match="question x: it has .* of 512 less 32 for the answer leaves 480. question y"):
        Squad(options).prepare()


@pytest.mark.parametrize("chat", [False, True])
def test_a_run(options, tmp_path, chat):
    options.output_dir, options.apply_chat_template = str(tmp_path / "out"), chat
    (results,) = runner.run(Squad, options).values()
    assert {*results.groups} == {"HasAns", "NoAns"} and results.details["official"]["total"] == 2
    assert results.details["official"]["exact"] == results.scores["em"]
    assert results.settings.options["layout"] == ("chat" if chat else "plain")
    assert next(iter(runner.run(Squad, options).values())).resumed == 2
