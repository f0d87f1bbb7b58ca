"""CoQA: the data's two forms, prompts, all turns as `generate` answers them, overflow, demonstrations, the command."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from by_generate import alone
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from rlhf_kit import cli
from rlhf_kit.data.coqa import read_stories, stories
from rlhf_kit.errors import UserError
from rlhf_kit.eval import runner, scorers
from rlhf_kit.eval.coqa.task import ANSWER, CoQAArguments, details, item
from rlhf_kit.eval.coqa.turns import PRESETS, Answered, Prompt, Prompts, answer_by_gold, answer_by_own, gold
from rlhf_kit.generation.contexts import can_share
from rlhf_kit.generation.decoding import Continuation, Decoding


def main(argv):
    return cli.main(["eval", "coqa", *argv])


SHORT = Decoding(max_new_tokens=8, stop=("\n", "a", "e", "o", "t", "h", " "))
TIGHT = 76  # tokens of context: every question has room with its story, not every history
BEAMS = replace(SHORT, num_beams=4, length_penalty=0.6)


def turns(*texts):
    return [{"input_text": text, "turn_id": number} for number, text in enumerate(texts, start=1)]


def rows():
    """Three stories as in the official file; the first has four references a turn, which people disagree on."""
    cat = {
        "id": "cat", "source": "mctest", "story": "The cat sat on the mat.\n", "filename": "mc500.train.1",
        "questions": turns("Who sat?", "Where?"), "answers": turns("the cat", "on the mat"),
        "additional_answers": {
            "0": turns("a cat", "mat"), "1": turns("cat", "on the mat"), "2": turns("the dog", "on the mat"),
        },
    }  # fmt: skip
    dog = {
        "id": "dog", "source": "cnn", "story": "And so did the dog, who was there.",
        "questions": turns("Who?", "Was it the cat?", "Did it sit?", "Really?"),
        "answers": turns("the dog", "no", "yes", "yes, on the mat"),
    }  # fmt: skip
    bird = {
        "id": "bird", "source": "world", "story": "The bird says hello to the user and to the cat on the mat there.",
        "questions": turns("What does it say?", "To whom?", "Where is the cat?"),
        "answers": turns("hello", "the user and the cat", "on the mat"),
    }  # fmt: skip
    return [cat, dog, bird]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "coqa.json"
    path.write_text(json.dumps({"version": "1.0", "data": rows()}))
    return path


def model_of(tokenizer, positions=400):
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, n_positions=positions, vocab_size=len(tokenizer),
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(5)
    return model.eval()


# --- data -----------------------------------------------------------------------------------------------------------


def test_the_official_file_and_the_hubs_columns_are_the_same_stories(data, tmp_path):
    official = read_stories(str(data), "validation")
    assert official[0].text == "The cat sat on the mat." and official[0].questions == ("Who sat?", "Where?")
    assert official[0].answers[0] == ("the cat", "a cat", "cat", "the dog")
    assert official[1].answers == (("the dog",), ("no",), ("yes",), ("yes, on the mat",))
    hub = [
        {
            "source": row["source"], "story": row["story"],
            "questions": [turn["input_text"] for turn in row["questions"]],
            "answers": {"input_text": [turn["input_text"] for turn in row["answers"]], "answer_start": [0]},
        }
        for row in rows()
    ]  # fmt: skip
    (tmp_path / "hub.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hub))
    found = read_stories(str(tmp_path / "hub.jsonl"), "validation")
    assert [story.id for story in found] == ["1", "2", "3"]
    for mine, theirs in zip(found, official, strict=True):
        assert replace(mine, id=theirs.id, answers=()) == replace(theirs, answers=())
        assert [references[0] for references in mine.answers] == gold(theirs)


def test_the_world_has_dialogues():
    found = read_stories("world", "test")
    assert len(found) == 40 and {story.source for story in found} == {"world"}


FAULTS = {
    "no story": (lambda row: row.pop("story"), "story 'dog': has no `story`"),
    "no answers": (lambda row: row.pop("answers"), "story 'dog': has no `answers`"),
    "null": (lambda row: row["questions"][1].pop("input_text"), "'dog': `questions`: turn 2 has no `input_text`"),
    "order": (lambda row: row["answers"].reverse(), "'dog': `answers`: turn 1 has the `turn_id` 4; they must be 1, 2"),
    "fewer": (lambda row: row["answers"].pop(), "story 'dog': `answers` has 3 turns, `questions` 4"),
    "more": (
        lambda row: row.update(additional_answers={"0": turns("x")}),
        "story 'dog': `additional_answers '0'` has 1 turns, `questions` 4",
    ),
    "twice": (lambda row: row.update(id="cat"), "2 stories have the id 'cat'"),
    "empty": (lambda row: row.update(story=" "), "story 'dog': `story` is the text ' '; give the passage"),
    "text": (lambda row: row.update(questions="Who?"), "story 'dog': `questions`: is the text 'Who?'; give a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_with_the_storys_id(name):
    spoil, told = FAULTS[name]
    found = rows()
    spoil(found[1])
    with pytest.raises(UserError) as error:
        stories("FILE", found)
    assert told in str(error.value) and ", 1 fault:" in str(error.value)


def test_the_command_tells_all_faults_before_it_loads_a_model(tmp_path, capsys):
    found = rows()
    del found[0]["story"], found[2]["answers"][1]["input_text"]
    (tmp_path / "coqa.json").write_text(json.dumps({"data": found}))
    assert main(["--model", "no/such/model", "--data", str(tmp_path / "coqa.json")]) == 2
    told = capsys.readouterr().err
    assert "story 'cat': has no `story`" in told and "story 'bird': `answers`: turn 2 has no `input_text`" in told
    assert told.startswith("rlhf-kit eval coqa: ") and "Traceback" not in told


# --- prompts --------------------------------------------------------------------------------------------------------


def test_the_layout_is_gpt3s(tokenizer):
    cat, dog, _ = stories("", rows())
    prompts = Prompts(tokenizer, None, 8)
    assert prompts.prompt(cat, 0, gold(cat)).text == "The cat sat on the mat.\n\nQ: Who sat?\n\nA:"
    second = "The cat sat on the mat.\n\nQ: Who sat?\n\nA: the cat\n\nQ: Where?\n\nA:"
    assert prompts.prompt(cat, 1, gold(cat)).text == second
    assert prompts.prompt(cat, 1, ["", "unread"]).text == second.replace("A: the cat", "A:")
    prompts.demonstrations["dog"] = [replace(cat, questions=cat.questions[:1], answers=cat.answers[:1])]
    assert prompts.prompt(dog, 0, gold(dog)).text == (
        "The cat sat on the mat.\n\nQ: Who sat?\n\nA: the cat\n\n"
        "And so did the dog, who was there.\n\nQ: Who?\n\nA:"
    )  # fmt: skip


@pytest.mark.parametrize("which", ["tiny", "gpt2"])
def test_prompts_of_a_story_begin_with_one_another(which, tokenizer, request):
    """What lets a dialogue be read once; not taken for granted by the code, which would only be slower."""
    if which == "gpt2":
        folder = request.getfixturevalue("shared") / "gpt2-tokenizer"
        tokenizer = GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    prompts = Prompts(tokenizer, None, 8)
    for story in [*stories("", rows()), *read_stories("world", "test")]:
        ids = [prompts.prompt(story, turn, gold(story)).ids for turn in range(len(story.questions))]
        assert all(ids[-1][: len(one)] == one for one in ids)


def test_the_oldest_history_is_dropped_and_counted(tokenizer):
    dog = stories("", rows())[1]
    full = Prompts(tokenizer, None, 8).prompt(dog, 3, gold(dog))
    assert full.dropped == 0
    shorter = full.text
    for turn in range(3):
        shorter = shorter.replace(f"Q: {dog.questions[turn]}\n\nA: {gold(dog)[turn]}\n\n", "")
        ids = tokenizer(shorter)["input_ids"]
        for room, dropped in ((len(ids), turn + 1), (len(ids) + 1, turn + 1)):
            prompt = Prompts(tokenizer, room + 8, 8).prompt(dog, 3, gold(dog))
            assert prompt == Prompt(shorter, ids, dropped)
    assert shorter == "And so did the dog, who was there.\n\nQ: Really?\n\nA:"


def test_stories_that_are_too_long_are_named(tokenizer):
    cat, dog, bird = stories("", rows())
    longest = max(len(tokenizer(f"{cat.text}\n\nQ: {question}\n\nA:")["input_ids"]) for question in cat.questions)
    Prompts(tokenizer, longest + 8, 8).check([cat])
    with pytest.raises(UserError) as error:
        Prompts(tokenizer, longest + 8, 8).check([cat, dog, bird])
    message = str(error.value)
    assert "2 of 3 stories with a question are too long" in message and "'cat'" not in message
    assert f"tokens; the context of {longest + 8} less 8 for the answer leaves {longest}" in message
    assert "'dog'" in message and "'bird'" in message


def test_demonstrations_fill_the_room_and_leave_the_story_its_own(tokenizer):
    pool = read_stories("world", "train")[:30]
    pool = [story for story in pool if story.text.isascii()]
    story = pool[3]
    last = len(story.questions) - 1
    context = len(Prompts(tokenizer, None, 8).prompt(story, last, gold(story)).ids) + 800
    prompts = Prompts(tokenizer, context, 8)
    prompts.demonstrate(story, pool, 5, seed=0)
    packed = prompts.demonstrations[story.id]
    wholes = {one.id: one for one in pool}
    assert 0 < len(packed) < 5 and story.id not in {one.id for one in packed}
    assert all(one == wholes[one.id] for one in packed[:-1])
    part, full = packed[-1], wholes[packed[-1].id]
    assert part.questions == full.questions[: len(part.questions)]
    longest = prompts.prompt(story, last, gold(story))
    assert longest.dropped == 0 and context - 8 - len(longest.ids) < 400
    # Drawn by story, number and seed, whatever the order of the rest.
    again = Prompts(tokenizer, context, 8)
    for other in pool[::-1]:
        again.demonstrate(other, pool, 5, seed=0)
    assert again.demonstrations[story.id] == packed
    again.demonstrate(story, pool, 5, seed=1)
    assert again.demonstrations[story.id] != packed
    roomy = Prompts(tokenizer, None, 8)
    roomy.demonstrate(story, pool, 5, seed=0)
    assert len(roomy.demonstrations[story.id]) == 5
    roomy.demonstrate(story, pool[:8], 8, seed=0)
    assert {one.id for one in roomy.demonstrations[story.id]} == {one.id for one in pool[:8]} - {story.id}


# --- answers --------------------------------------------------------------------------------------------------------


def by_turn(answered):
    return {(one.story.id, one.turn): one for one in answered}


@pytest.mark.parametrize("how", [SHORT, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("context", [400, TIGHT])
def test_gold_history_answers_are_those_of_generate_on_every_turn(how, context, tokenizer):
    model, prompts = model_of(tokenizer), Prompts(tokenizer, context, how.max_new_tokens)
    chosen = stories("", rows())
    prompts.check(chosen)
    found = by_turn(answer_by_gold(model, prompts, chosen, how, 4096))
    assert len(found) == 9 and any(one.prompt.dropped for one in found.values()) == (context == TIGHT)
    for story in chosen:
        for turn in range(len(story.questions)):
            one = found[story.id, turn]
            text = prompts.prompt(story, turn, gold(story)).text
            expected = alone(model, tokenizer, tokenizer(text)["input_ids"], how)
            assert one.continuation.ids == expected
    assert len({len(one.continuation.ids) for one in found.values()}) > 2


def test_gold_history_reads_a_story_once(tokenizer):
    model, (_, dog, _) = model_of(tokenizer), stories("", rows())
    prompts = Prompts(tokenizer, None, 8)
    read = []
    model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True)
    assert can_share(model)
    tried = len(read)
    list(answer_by_gold(model, prompts, [dog], SHORT, 4096))
    longest = len(prompts.prompt(dog, 3, gold(dog)).ids)
    assert read[tried] == longest - 1  # its last token is the first of the steps
    assert len(read) <= tried + 1 + SHORT.max_new_tokens and max(read[tried + 1 :]) == 4


@pytest.mark.parametrize("how", [SHORT, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("context", [400, TIGHT])
@pytest.mark.parametrize("max_batch_tokens", [1, 4096])
def test_own_history_is_that_of_generate_turn_after_turn(how, context, max_batch_tokens, tokenizer):
    model, prompts = model_of(tokenizer), Prompts(tokenizer, context, how.max_new_tokens)
    chosen = stories("", rows())
    found = by_turn(answer_by_own(model, prompts, chosen, how, max_batch_tokens))
    assert len(found) == 9
    for story in chosen:
        said = []
        for turn in range(len(story.questions)):
            one = found[story.id, turn]
            assert one.prompt == prompts.prompt(story, turn, said)
            assert one.continuation.ids == alone(model, tokenizer, tokenizer(one.prompt.text)["input_ids"], how)
            said.append(one.continuation.answer)


def test_an_item_is_scored_against_all_references():
    cat = stories("", rows())[0]
    said = Continuation([1], " mat\nQ:", "mat", True)
    made = item(Answered(cat, 1, Prompt("text", [1], 1), said), demonstrations=2)
    # Against "on the mat", "mat", "on the mat", "on the mat": the second is left out once of four times.
    assert made.scores == {"em": 3 / 4, "f1": pytest.approx((3 + 2 / 3) / 4), "f1_max": 1.0}
    assert (made.id, made.cluster, made.group) == ("cat/2", "cat", "children_stories")
    assert (made.output, made.answer) == (" mat\nQ:", "mat")
    assert made.details == {"turn_id": 2, "dropped_turns": 1, "demonstrations": 2, "ended": True}
    first = replace(made, details={**made.details, "dropped_turns": 0, "ended": False})
    told = details([first, made], [cat])
    assert told["official"]["children_stories"] == {"em": 75.0, "f1": 91.7, "turns": 2}
    assert (told["questions_with_history_dropped"], told["turns_dropped"], told["answers_cut_off"]) == (1, 1, 1)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tokenizer, tmp_path):
    folder = tmp_path / "model"
    model_of(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def read(folder):
    """(results, items, predictions) of a folder."""
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    return (*(json.loads((folder / name).read_text()) for name in ("results.json", "predictions.json")), items)


def test_the_command_writes_predictions_results_and_a_row_a_domain(saved, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--model", saved, "--data", str(data), "--output", str(out)]) == 0
    results, predictions, items = read(out)
    assert [(row["id"], row["turn_id"]) for row in predictions] == [
        (story["id"], turn["turn_id"]) for story in rows() for turn in story["questions"]
    ]
    assert [row["answer"] for row in predictions] == [item["answer"] for item in items]
    references = [turn for story in stories("", rows()) for turn in story.answers]
    scores = [scorers.coqa(row["answer"], of) for row, of in zip(predictions, references, strict=True)]
    assert [(item["scores"]["em"], item["scores"]["f1"]) for item in items] == scores
    assert results["scores"]["f1"] == pytest.approx(100 * sum(score.f1 for score in scores) / 9)
    assert results["n"] == {"items": 9, "clusters": 3} and results["reportable"]
    assert set(results["groups"]) == {"children_stories", "news", "world"}
    told = results["details"]
    assert told["official"]["overall"]["turns"] == 9 and told["official"]["out_domain"]["turns"] == 3
    # "the cat", "a cat" and "cat" are one answer, "the dog" is another; "mat" has half of "on mat".
    f1 = (3 * 1 + 0) / 4 / 2 + (2 / 3 + 3 * 1) / 4 / 2
    assert told["human"]["f1"] == pytest.approx(100 * f1)
    assert told["references_a_turn"] == pytest.approx((2 * 4 + 7) / 9)
    shown = capsys.readouterr().out
    assert "children_stories" in shown and "overall" in shown and "human" in shown


def test_presets_have_one_list_of_names():
    choices = get_type_hints(CoQAArguments)
    assert tuple(PRESETS) == get_args(choices["preset"]) and tuple(ANSWER) == get_args(choices["history"])
    assert (PRESETS["gpt3"].num_beams, PRESETS["gpt3"].length_penalty) == (4, 0.6)
    assert PRESETS["gpt2"].num_beams == 1


@pytest.mark.parametrize("history", ["gold", "model"])
def test_an_interrupted_run_goes_on_and_the_batch_decides_nothing(history, saved, data, tmp_path, monkeypatch):
    class Counted(runner.Run):
        def __exit__(self, *error):
            super().__exit__(*error)
            counts.append((self.progress.done, self.progress.total))

    counts = []
    monkeypatch.setattr(runner, "Run", Counted)
    argv = ["--model", saved, "--data", str(data), "--history", history]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*argv, "--output", str(whole)]) == 0
    assert main([*argv, "--output", str(cut)]) == 0
    lines = (cut / "items.jsonl").read_text().splitlines(keepends=True)
    (cut / "items.jsonl").unlink()
    (cut / "results.json").unlink()
    (cut / "items-0.jsonl").write_text(
        "".join(lines[:4]) + lines[4][:20]
    )  # a story, two turns of another, a line cut off
    assert main([*argv, "--output", str(cut), "--max-batch-tokens", "1"]) == 0
    (first, *rest), (second, *again) = read(whole), read(cut)
    assert rest == again and first["scores"] == second["scores"] and second["resumed"] == 4
    assert counts == [(9, 9), (9, 9), (7, 7)]  # the story that was begun is made anew


def test_two_processes_answer_as_one(saved, data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    argv = ["--model", saved, "--data", str(data), "--limit", "2"]
    assert main([*argv, "--output", str(one)]) == 0
    code = "import sys; from rlhf_kit.cli import main; sys.exit(main(['eval', 'coqa', *sys.argv[1:]]))"
    (tmp_path / "coqa_of_two.py").write_text(code)
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(tmp_path / "coqa_of_two.py"), *argv, "--output", str(two)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (first, *rest), (second, *again) = read(one), read(two)
    assert rest == again and first["scores"] == second["scores"] and not second["reportable"]
    assert done.stdout.count("Written") == 1


def test_demonstrations_of_the_command(saved, data, tmp_path, capsys):
    argv = ["--model", saved, "--data", str(data)]
    assert main([*argv, "--shots", "1"]) == 2
    assert "is the file being evaluated" in capsys.readouterr().err
    assert main([*argv, "--demonstrations", str(data)]) == 2
    out = tmp_path / "out"
    assert main([*argv, "--shots", "1", "--demonstrations", str(data), "--output", str(out)]) == 0
    results, _, items = read(out)
    assert results["details"]["demonstrations_a_question"] == 1
    assert main([*argv, "--output", str(out)]) == 2
    assert "shots" in capsys.readouterr().err


def test_a_story_beyond_the_models_context_ends_with_2(tokenizer, data, tmp_path, capsys):
    folder = tmp_path / "small"
    model_of(tokenizer, positions=80).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert main(["--model", str(folder), "--data", str(data), "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert (
        "the context of 80 less 32 for the answer leaves 48." in told
        and "'bird'" in told
        and not (tmp_path / "out").exists()
    )
