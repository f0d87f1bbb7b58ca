"""Learning in context: the tasks' own truth, shots that depend on nothing but the item, and the model's answers."""

import csv
import importlib.util
import json
import re
from types import SimpleNamespace

import pytest
import torch
from toy_icl import measured

from rlhf_kit.errors import UserError
from rlhf_kit.eval import runner
from rlhf_kit.eval.icl import lm_eval_tasks as harness
from rlhf_kit.eval.icl import page as icl_page
from rlhf_kit.eval.icl import task as icl
from rlhf_kit.eval.icl import tasks as icl_tasks
from rlhf_kit.eval.icl.page import Point
from rlhf_kit.eval.icl.prompts import Prompts
from rlhf_kit.eval.icl.task import ICL
from rlhf_kit.eval.icl.tasks import Example, Task, draw_shots, render, tasks
from rlhf_kit.generation.likelihood import Likelihood
from rlhf_kit.models.checkpoints import load_tokenizer
from rlhf_kit.options.reading import read_record

WORDS = ["cat", "dog", "mat", "hello", "there", "and", "so", "did", "the", "sat"]
PUBLISHED_175B = {  # means of Table H.1's ten arithmetic rows, added by hand
    "zero": (76.9 + 58.0 + 34.2 + 48.3 + 4.0 + 7.5 + 0.65 + 0.8 + 19.8 + 9.75) / 10,
    "one": (99.6 + 86.4 + 65.5 + 78.7 + 14.0 + 14.0 + 3.45 + 3.75 + 27.4 + 14.3) / 10,
    "few": (100.0 + 98.9 + 80.4 + 94.2 + 25.5 + 26.8 + 9.3 + 9.9 + 29.2 + 21.3) / 10,
}


# --- tasks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(icl_tasks.ARITHMETIC))
def test_sums_are_right_and_of_the_stated_range(name):
    (task,) = tasks([name])
    assert (len(task.examples), len(task.pool)) == (2000, 1000)
    prompts = [example.prompt for example in (*task.examples, *task.pool)]
    assert len(set(prompts)) == len(prompts)
    signs = {"plus": "+", "minus": "-", "times": "*"}
    most = 10 ** (1 if name == "1DC" else int(name[0]))
    numbers = set()
    for example in (*task.examples, *task.pool):
        asked = re.fullmatch(r"Q: What is (.+)\?\n\nA:", example.prompt)[1]
        for word, sign in signs.items():
            asked = asked.replace(word, sign)
        assert re.fullmatch(r"\(\d [-+*] \d\) [-+*] \d" if name == "1DC" else r"\d+ [-+*] \d+", asked)
        numbers |= set(map(int, re.findall(r"\d+", asked)))
        assert example.answer == f" {eval(asked)}"
    assert 0 <= min(numbers) <= most // 50 and most - most // 50 - 1 <= max(numbers) < most


def test_the_format_is_that_of_gpt3():
    task = Task("t", (Example("Q: What is 98 plus 45?\n\nA:", " 143"),), (), "\n\n")
    shots = [Example("Q: What is 4 plus 5?\n\nA:", " 9")]
    assert render(task, shots, task.examples[0]) == ("Q: What is 4 plus 5?\n\nA: 9\n\nQ: What is 98 plus 45?\n\nA:")
    (task,) = tasks(["reversed-words"])
    assert render(task, [], Example("onisac =", " casino")) == (
        "Please unscramble the letters into a word, and write that word:\nonisac ="
    )
    assert task.pool[0].answer.strip()[::-1] == task.pool[0].prompt.removesuffix(" =")


@pytest.mark.parametrize(("name", "outer"), [("cycle-letters", 0), ("anagrams-1", 1), ("anagrams-2", 2)])
def test_scrambled_words_keep_their_letters(name, outer):
    (task,) = tasks([name])
    assert len(task.examples) > 200
    for example in task.examples:
        spoilt, word = example.prompt.removesuffix(" ="), example.answer[1:]
        assert spoilt != word and sorted(spoilt) == sorted(word)
        assert spoilt[:outer] == word[:outer] and spoilt[len(spoilt) - outer :] == word[len(word) - outer :]
        assert outer or spoilt in word + word
    assert len({example.answer for example in task.examples}) == len(task.examples)


def test_symbols_stand_between_the_letters():
    (task,) = tasks(["symbol-insertion"])
    for example in task.examples:
        spoilt = example.prompt.removesuffix(" =")
        assert spoilt[::2] == example.answer[1:] and not any(map(str.isalnum, spoilt[1::2]))


def test_facts_of_the_world_are_asked_once_and_their_choices_have_no_order():
    (task,) = tasks(["world-facts-en"])
    shown = {example.prompt for example in task.pool}
    places = [example.choices.index(example.answer) for example in task.examples]
    assert len(set(places)) == 4 and max(map(places.count, places)) < len(places) / 2
    assert all(len(set(example.choices)) == 4 and example.prompt not in shown for example in task.examples)


@pytest.mark.parametrize("name", list(icl_tasks.WORLD))
def test_no_answer_of_the_world_is_shown_before_it_is_asked(name):
    (task,) = tasks([name])
    assert not {example.prompt for example in task.pool} & {example.prompt for example in task.examples}


def test_groups_and_names():
    assert [task.name for task in tasks(["2D+", "arithmetic"])][:2] == ["2D+", "2D-"]
    assert len(tasks(["arithmetic", "unscramble", "world"])) == 20
    with pytest.raises(UserError, match="There is no task 'arithmetics'. Did you mean 'arithmetic'?"):
        tasks(["arithmetics"])


# --- shots ----------------------------------------------------------------------------------------------------------


def test_shots_depend_on_task_item_k_and_seed_alone():
    (task,) = tasks(["2D+"])
    assert draw_shots(task, 7, 5, 0) == draw_shots(task, 7, 5, 0)
    others = [draw_shots(task, 8, 5, 0), draw_shots(task, 7, 5, 1), draw_shots(task, 7, 6, 0)[:5]]
    assert draw_shots(task, 7, 5, 0) not in others
    # The same on every machine and in every version of Python: Random.sample of SHA-256("2D+", 7, 2, 0).
    assert [shot.prompt[11:-5] for shot in draw_shots(task, 7, 2, 0)] == ["74 plus 23", "39 plus 25"]


def test_a_question_is_not_among_its_shots():
    (task,) = tasks(["reversed-words"])
    most = len(task.pool) - 1
    shots = draw_shots(task, 3, most, 0)
    assert len(shots) == most and task.examples[3] not in shots
    with pytest.raises(UserError, match=f"reversed-words has {most} examples to show; --shots {most + 1} is too many"):
        draw_shots(task, 3, most + 1, 0)


# --- measuring ------------------------------------------------------------------------------------------------------


@pytest.fixture
def written_task(policy, tokenizer):
    """A task whose first two answers are what the model writes, and whose others are not."""
    prompts = [f"{word} and" for word in WORDS]
    examples = []
    for number, prompt in enumerate(prompts):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        out = policy.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        answer = text.lstrip().split("\n")[0].rstrip()
        examples.append(Example(prompt, f" {answer}" if number < 2 else " wrong"))
    pool = tuple(Example(f"{word} is", f" {word}") for word in WORDS)
    return Task("written", tuple(examples), pool, "\n")


@pytest.fixture
def chosen_task():
    examples = tuple(
        Example(f"Q: {word}\nA:", f" {word}", tuple(f" {WORDS[(at + k) % 10]} {'x' * k}".rstrip() for k in range(4)))
        for at, word in enumerate(WORDS)
    )
    pool = tuple(Example(f"Q: {word} {word}\nA:", f" {word}") for word in WORDS)
    return Task("chosen", examples, pool, "\n", cue="A:")


def items(folder):
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().split("\n")[:-1]]


def test_written_answers_are_what_greedy_decoding_writes(policy, tokenizer, written_task, tmp_path):
    found = measured(policy, tokenizer, [written_task], [0], tmp_path)
    assert found.scores == {"acc": pytest.approx(20.0)}
    assert [item["scores"]["acc"] for item in items(tmp_path)] == [1.0] * 2 + [0.0] * 8


def test_choices_are_taken_by_likelihood(policy, tokenizer, chosen_task, tmp_path):
    """By plain forwards: per token, in total, and in total less that after "A:" alone."""
    found = measured(policy, tokenizer, [chosen_task], [0], tmp_path)

    def logprobs(context, choice):
        context, choice = tokenizer(context)["input_ids"], tokenizer(choice)["input_ids"]
        with torch.no_grad():
            logits = torch.log_softmax(policy(torch.tensor([context + choice])).logits[0].double(), -1)
        return [logits[len(context) - 1 + at, token].item() for at, token in enumerate(choice)]

    taken = {"acc": [], "acc_total": [], "acc_unconditional": []}
    for example in chosen_task.examples:
        found_here = [logprobs(example.prompt, choice) for choice in example.choices]
        alone = [sum(logprobs("A:", choice)) for choice in example.choices]
        values = {
            "acc": [sum(each) / len(each) for each in found_here],
            "acc_total": [sum(each) for each in found_here],
            "acc_unconditional": [sum(each) - before for each, before in zip(found_here, alone, strict=True)],
        }
        for name, of_choices in values.items():
            taken[name].append(of_choices.index(max(of_choices)))
    assert len(set(map(tuple, taken.values()))) == 3  # the three measures differ, or this shows nothing
    for name, choices in taken.items():
        assert found.scores[name] == pytest.approx(10 * choices.count(0))
    answers = [example.choices[at].strip() for example, at in zip(chosen_task.examples, taken["acc"], strict=True)]
    assert [item["answer"] for item in items(tmp_path)] == answers


def test_measures_of_choices():
    likely = [Likelihood([-1.0], [True]), Likelihood([-0.6, -0.6], [True, True])]
    alone = [Likelihood([-0.1], [True]), Likelihood([-2.0, -2.0], [False, False])]
    found = icl.choice_measures(likely, alone)
    assert found["acc"] == [-1.0, -0.6] and found["acc_total"] == [-1.0, -1.2]
    assert found["acc_unconditional"] == pytest.approx([-0.9, 2.8])


@pytest.mark.parametrize("max_batch_tokens", [1, 300])
def test_results_are_the_same_for_any_batch(policy, tokenizer, written_task, chosen_task, tmp_path, max_batch_tokens):
    chosen = [written_task, chosen_task]
    whole = measured(policy, tokenizer, chosen, [0, 2], tmp_path / "whole")
    other = measured(policy, tokenizer, chosen, [0, 2], tmp_path / "other", max_batch_tokens=max_batch_tokens)
    assert whole.scores == other.scores and whole.measured == other.measured
    assert [(item["output"], item["scores"]) for item in items(tmp_path / "whole")] == [
        (item["output"], item["scores"]) for item in items(tmp_path / "other")
    ]


def test_results_are_the_same_for_two_processes(policy, tokenizer, written_task, chosen_task, tmp_path):
    chosen = [written_task, chosen_task]
    alone = measured(policy, tokenizer, chosen, [0, 2], tmp_path / "one")
    for rank in (1, 0):
        state = SimpleNamespace(process_index=rank, num_processes=2, wait_for_everyone=lambda: None, device="cpu")
        found = measured(policy, tokenizer, chosen, [0, 2], tmp_path / "two", state=state)
        assert (found is None) == (rank == 1)
    assert found.measured == alone.measured and found.groups == alone.groups
    assert found.prompt_hash == alone.prompt_hash


def test_the_mean_weighs_tasks_alike_for_each_k(policy, tokenizer, written_task, chosen_task):
    few = Task("few", written_task.examples[:2], written_task.pool, "\n")
    found = measured(policy, tokenizer, [written_task, few], [0, 1])
    assert found.groups["written/0-shot"].scores["acc"] == 20 and found.groups["few/0-shot"].scores["acc"] == 100
    assert found.scores["acc_0_shot"] == pytest.approx(60)
    parts = [found.groups[f"{name}/1-shot"].scores["acc"] for name in ("written", "few")]
    assert found.scores["acc_1_shot"] == pytest.approx(sum(parts) / 2)
    low, high = found.measured.intervals["acc_0_shot"]
    assert low <= 60 <= high


def test_the_first_shots_are_left_out_where_the_context_is_full(policy, tokenizer, tmp_path):
    pool = tuple(Example(f"{word} hello there the cat sat on the mat", f" {word}") for word in WORDS)
    task = Task("long", (Example("cat and", " dog"), Example("dog and", " cat")), pool, "\n")
    found = measured(policy, tokenizer, [task], [9], tmp_path)
    shown = {item["details"]["shots"] for item in items(tmp_path)}
    assert len(shown) <= 2 and 0 < min(shown) < 9
    assert found.details["shots_shown"] == {"long/9-shot": pytest.approx(sum(shown) / len(shown), abs=0.5)}
    asked = Prompts(tokenizer, 128).ask("id", task, 0, 9, 0)
    room = 128 - task.max_new_tokens
    assert asked.prompt == render(task, draw_shots(task, 0, 9, 0)[-asked.shown :], task.examples[0])
    assert len(asked.ids) <= room
    one_more = render(task, draw_shots(task, 0, 9, 0)[-asked.shown - 1 :], task.examples[0])
    assert len(tokenizer(one_more)["input_ids"]) > room


def test_a_question_that_does_not_fit_is_named(policy, tokenizer):
    task = Task("long", (Example("hello there " * 80, " dog"),), (Example("a", " b"), Example("c", " d")), "\n")
    with pytest.raises(
        UserError, match="long/1-shot/0: the question alone has .* of 128 less 24 for the answer leaves 104"
    ):
        measured(policy, tokenizer, [task], [1])


# --- the curve and the command --------------------------------------------------------------------------------------


def test_published_means():
    found = icl_page.published(list(icl_tasks.ARITHMETIC))
    for shots, expected in PUBLISHED_175B.items():
        parameters, percent = found[shots][-1]
        assert parameters == 175e9 and percent == pytest.approx(expected)
    assert [parameters for parameters, _ in found["few"]][:2] == [125e6, 350e6]
    for task in tasks(["arithmetic", "unscramble"]):
        assert len(icl_page.published([task.published])["zero"]) == 8


@pytest.fixture
def model_folders(policy, tokenizer_folder, tmp_path):
    folders = []
    for name in ("small", "large"):
        policy.save_pretrained(tmp_path / name)
        load_tokenizer(tokenizer_folder).save_pretrained(tmp_path / name)
        folders.append(str(tmp_path / name))
    return folders


def run(*arguments):
    runner.run(ICL, read_record("eval icl", ICL.Arguments, list(map(str, arguments))))


def test_the_command_writes_table_page_and_items(model_folders, tmp_path, capsys):
    out = tmp_path / "out"
    run("--models", *model_folders, "--tasks", "2D+", "reversed-words", "--shots", 1, 0, "--limit", 2, "--output", out)
    rows = list(csv.DictReader((out / "curve.csv").open()))
    keys = [(row["task"], row["shots"]) for row in rows if row["model"] == model_folders[0]]
    assert keys == [(task, k) for task in ("2D+", "reversed-words", "mean") for k in "01"]
    assert {row["items"] for row in rows if row["task"] != "mean"} == {"2"}
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3 and "GPT-3, few" in page and "no result to report" in page
    assert "http" not in page and "<script" not in page
    assert json.loads((out / "small" / "results.json").read_text())["reportable"] is False
    assert len(items(out / "large")) == 8
    assert "2D+" in capsys.readouterr().out


def test_faults_of_the_command(model_folders, tmp_path):
    with pytest.raises(UserError, match="Nothing to measure: give --tasks"):
        run("--models", *model_folders)
    with pytest.raises(UserError, match="two are named 'small'"):
        run("--models", model_folders[0], model_folders[0], "--tasks", "2D+", "--output", tmp_path / "out")
    with pytest.raises(UserError, match="world-en-zh has 68 examples to show; --shots 69 is too many"):
        run("--models", model_folders[0], "--tasks", "world-en-zh", "--shots", 69)


def test_without_the_harness_its_tasks_are_refused(model_folders):
    if importlib.util.find_spec("lm_eval"):
        pytest.skip("lm-evaluation-harness is installed")
    with pytest.raises(UserError, match=r"not installed. Install it by `pip install 'rlhf_kit\[lm-eval\]'`"):
        run("--models", *model_folders, "--lm_eval", "hellaswag")


def test_tasks_of_the_harness(policy, tokenizer, tmp_path):
    """A task of two questions: the harness's accuracy, from its own likelihoods, is ours by the total."""
    pytest.importorskip("lm_eval")
    rows = [
        {"q": "the cat", "choices": [" sat", " dog"], "gold": 0},
        {"q": "so", "choices": [" did", " x"], "gold": 1},
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "toy", "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "test.jsonl")}},
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{q}}", "doc_to_target": "gold",
        "doc_to_choice": "choices", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (point,) = harness.measure(policy, tokenizer, [task], [0], None, 0)
    examples = tuple(Example(row["q"], row["choices"][row["gold"]], tuple(row["choices"])) for row in rows)
    ours = measured(policy, tokenizer, [Task("toy", examples, (), "\n", cue="A:")], [0])
    assert point == Point("lm-eval toy", 0, ours.scores["acc_total"], None, None)
