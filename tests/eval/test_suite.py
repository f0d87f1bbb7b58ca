"""The stage report: what a suite file may say, entries measured by their own commands, stages compared in pairs."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import GPT2LMHeadModel

from rlhf_kit.cli import main
from rlhf_kit.data.coqa import read_stories
from rlhf_kit.errors import UserError
from rlhf_kit.eval.compare import compare_folders
from rlhf_kit.eval.coqa.task import guessing
from rlhf_kit.eval.items import Item, Run, Settings
from rlhf_kit.eval.suite import page as suite_page
from rlhf_kit.eval.suite import task as suite_task
from rlhf_kit.eval.suite.entries import Entry, read_suite
from rlhf_kit.eval.suite.page import Change, Report, Value
from rlhf_kit.eval.suite.task import change, first_alike, read_value, verdict
from rlhf_kit.hashes import text_hash
from rlhf_kit.options.named import named_model
from rlhf_kit.terminal.console import Console

WORLD = suite_task.WORLD_SUITE
SUMS = {
    "name": "sums", "command": "icl", "options": {"tasks": ["world-sums"], "shots": 0}, "figure": "acc",
    "higher_is_better": True,
}  # fmt: skip
TEXT = {
    "name": "text", "command": "perplexity", "options": {"data": "text.jsonl"}, "items": 6, "figure": "bits_per_byte",
    "paired": "nll", "higher_is_better": False,
}  # fmt: skip


def write_suite(path, *rows):
    path.write_text(yaml.safe_dump(list(rows)))
    return path


def entry(**values):
    return Entry(**{**SUMS, **values})


# --- the file -------------------------------------------------------------------------------------------------------


def test_the_worlds_suite_measures_what_it_promises():
    entries = read_suite(WORLD)
    assert {one.command for one in entries} == {"coqa", "icl", "perplexity"}
    asked = {one.name: one.arguments("M", None) for one in entries}
    assert asked["reading"].dataset_name == "world" and not asked["reading"].apply_chat_template
    assert [name for name, of in asked.items() if getattr(of, "apply_chat_template", False)] == [
        "answers-right", "answers-truth", "reading-chat",
    ]  # fmt: skip
    homes = {name: home.name for name, home in first_alike(entries).items() if home.name != name}
    assert homes == {"answers-truth": "answers-right", "sums-4-shot": "sums-0-shot"}
    assert [one.name for one in entries if not one.higher_is_better] == ["text"]


def test_options_are_those_of_the_command_as_if_typed():
    tldr = entry(command="tldr", options={"data": "d.jsonl", "no_hint": True, "seed": 3}, items=30)
    found = tldr.arguments("runs/sft", Path("out"), 50)
    assert found.models == ["runs/sft"] and found.output_dir == "out" and found.no_hint and found.seed == 3
    assert found.limit == 30 and tldr.arguments("M", None, 5).limit == 5  # the smaller of the two
    tldr = replace(tldr, options={"data": "d.jsonl", "no_hint": False}, items=None)
    assert not tldr.arguments("M", None).no_hint and tldr.arguments("M", None).limit is None
    several = entry(options={"tasks": ["2D+", "world"], "max-batch-tokens": 64}).arguments("M", None)
    assert several.tasks == ["2D+", "world"] and several.max_batch_tokens == 64 and several.limit is None


@pytest.mark.parametrize(
    "row, told",
    [
        ({"options": {"tasks": "world", "shot": 4}}, "entry 1 (sums): shot: no such option. Did you mean 'shots'?"),
        ({"options": {"shots": "few"}}, 'shots: got "few", needs a list of whole numbers.'),
        ({"command": "coqa", "options": {}}, "--dataset_name is missing: CoQA"),
        ({"options": {"limit": 5}}, "the suite sets limit; leave it out"),
        ({"options": {"tasks": None}}, "tasks: got null, needs a list."),
        ({"options": ["world"]}, "options is ['world']; give names with their values"),
        ({"command": "coca"}, "a suite cannot hold 'coca'. Did you mean 'coqa'?"),
        ({"command": "suite"}, "a suite cannot hold 'suite'. Give one of lambada, "),
        ({"command": "transfer"}, "a suite cannot hold 'transfer'. Give one of lambada, "),
        ({"command": "rlhf_kit.eval.suite.task:Suite"}, "Suite', which is a table of measurements itself."),
        ({"figur": "acc"}, "there is no 'figur'. Did you mean 'figure'?"),
        ({"higher_is_better": "yes, it is"}, "higher_is_better is 'yes, it is'; give true or false"),
        ({"items": 0}, "items is 0; give a whole number from 1"),
        ({"items": True}, "items is True; give a whole number from 1"),
        ({"name": "../sums"}, "name is '../sums'; give a name that can be a folder's"),
    ],
)  # fmt: skip
def test_a_fault_of_the_file_is_told_before_anything_is_loaded(tmp_path, row, told, capsys):
    path = write_suite(tmp_path / "s.yaml", {**SUMS, **row})
    assert main(["eval", "suite", "--models", "nowhere", "--suite", str(path)]) == 2
    said = capsys.readouterr().err
    assert told in said and "nowhere" not in said and "Traceback" not in said


def test_all_faults_are_told_together(tmp_path):
    path = write_suite(tmp_path / "s.yaml", SUMS, {**SUMS, "name": "Sums"}, "reading", {"name": "x", "figure": 3})
    with pytest.raises(UserError) as found:
        read_suite(path)
    assert [line.strip() for line in str(found.value).splitlines()[1:]] == [
        "entry 3: is 'reading'; give `name`, `command` and the rest",
        "entry 4 (x): has no command, options, higher_is_better",
        "entry 4 (x): figure is 3; give a name",
        "2 entries have the name 'sums'",
    ]


@pytest.mark.parametrize("text", [None, "- {", "", "name: sums", "[]"])
def test_a_file_that_is_no_list_is_refused(tmp_path, text):
    path = tmp_path / "s.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="s.yaml'? (cannot be read|is not readable YAML|must hold a list of entries)"):
        read_suite(path)


def test_names_of_models():
    assert named_model("base=runs/demo/0") == ("base", "runs/demo/0")
    assert named_model("openai-community/gpt2") == ("gpt2", "openai-community/gpt2")
    assert named_model("runs/lr=1e-3/sft") == ("sft", "runs/lr=1e-3/sft")
    for wrong in ("=runs/sft", "sft=", "..=runs/sft", "/"):
        with pytest.raises(UserError, match="must be NAME=M"):
            named_model(wrong)


@pytest.mark.parametrize(
    "models, told",
    [
        (["a/sft", "SFT=b"], "two are called 'sft'; give them names, as in sft=M sft-2=M"),
        (["base=nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_models_that_cannot_be_measured_are_told_first(models, told, capsys, monkeypatch):
    monkeypatch.setattr(suite_task, "measure", lambda *given: pytest.fail("measured"))
    assert main(["eval", "suite", "--models", *models]) == 2
    assert told in capsys.readouterr().err


# --- stage against stage --------------------------------------------------------------------------------------------


def results(folder, right, ids="abcdefgh"):
    """A finished measurement with items of acc 1 (those in `right`) or 0."""
    settings = Settings("icl", "p", 1, str(folder), "m", "d", "h", seed=0)
    with Run(folder, settings, list(ids)) as run:
        for name in ids:
            run.add(Item(name, name, text_hash(name), "", "", {"acc": float(name in right)}, group="task/0-shot"))
    return run.finish()


def compared(tmp_path, before, after, higher_is_better=True):
    values = []
    for name, right in (("one", before), ("two", after)):
        folder = tmp_path / name / "sums" / "M"
        results(folder, right)
        values.append(read_value(entry(), name, folder))
    folders = [tmp_path / name / "sums" / "M" for name in ("one", "two")]
    return change(entry(higher_is_better=higher_is_better), *values, *folders)


def test_a_difference_counts_where_the_paired_interval_leaves_out_0(tmp_path):
    found = compared(tmp_path, "abc", "abcdefgh")  # five of eight more: 37.5 -> 100
    assert found.difference == 62.5 and found.verdict == "gained" and found.score == "acc"
    row = compare_folders(tmp_path / "one/sums/M", tmp_path / "two/sums/M")["comparisons"][0]
    assert found.interval == row["interval"] and found.interval[0] > 0


def test_a_difference_by_chance_is_not_marked(tmp_path):
    found = compared(tmp_path, "abc", "abde")  # 12.5 more, two gained and one lost
    assert found.difference == 12.5 and found.interval[0] < 0 < found.interval[1] and found.verdict == ""


def test_where_lower_is_better_more_is_lost(tmp_path):
    assert compared(tmp_path, "abc", "abcdefgh", higher_is_better=False).verdict == "lost"


def test_verdicts():
    assert [verdict(-1.0, (-2.0, -0.5), better) for better in (True, False)] == ["lost", "gained"]
    assert verdict(1.0, (0.0, 2.0), True) == "" and verdict(1.0, None, True) == "" and verdict(None, None, True) == ""
    assert verdict(1.0, (-2.0, -0.5), True) == ""  # a paired score that does not move with the figure says nothing


def test_what_cannot_be_paired_is_said_and_not_marked(tmp_path):
    results(tmp_path / "one", "ab"), results(tmp_path / "two", "abcdefghi", ids="abcdefghi")
    values = [Value(name, "sums", value, None, 8) for name, value in (("one", 25.0), ("two", 100.0))]
    found = change(entry(), *values, tmp_path / "one", tmp_path / "two")
    assert found.difference == 75.0 and found.interval is None and found.verdict == ""
    assert "different items" in found.note
    report = replace(report_of(found), values=values)
    assert any("two, sums: not paired." in note for note in suite_page.notes(report))


@pytest.mark.parametrize(
    "values, told",
    [
        ({"figure": "acc_"}, "figure 'acc_' is not in its results. Did you mean 'acc'? Give one of: acc"),
        ({"group": "task/1-shot"}, "group 'task/1-shot' is not in its results. Did you mean 'task/0-shot'?"),
        ({"paired": "nll"}, "paired 'nll' is not in its results. Give one of (a score of the items): acc"),
    ],
)  # fmt: skip
def test_a_figure_that_was_not_measured_is_named(tmp_path, values, told):
    results(tmp_path / "one/sums/M", "ab")
    with pytest.raises(UserError) as found:
        read_value(entry(**values), "one", tmp_path / "one/sums/M")
    assert told in str(found.value)


# --- the report -----------------------------------------------------------------------------------------------------


def report_of(*changes):
    values = [Value("one", "sums", 25.0, (10.0, 40.0), 8), Value("two", "sums", 75.0, (60.0, 90.0), 8)]
    return Report("s.yaml", {"one": "a", "two": "b"}, [entry()], values, changes, True)


def test_the_table_in_its_three_forms():
    report = report_of(Change("one", "two", "sums", 50.0, "acc", (30.0, 70.0), "gained"))
    assert suite_page.markdown(report).splitlines()[:3] == [
        "| measure 項目 | one | two | two − one |",
        "| --- | ---: | ---: | ---: |",
        "| sums: acc ↑, n 8 | 25.0 (10.0 to 40.0) | 75.0 (60.0 to 90.0) | +50.0 (+30.0 to +70.0) ▲ |",
    ]
    english, chinese = suite_page.sentences(report)[0]
    assert english == "two against one: gained sums; lost nothing that shows."
    assert chinese == "two 比 one：進步：sums；退步：看不出來。"
    html = suite_page.page(report, ["commit <1>"])
    assert "<td>+50.0 (+30.0 to +70.0) ▲</td>" in html and english in html and "commit &lt;1&gt;" in html
    console = Console(file=io.StringIO(), width=100)
    suite_page.show(report, console)
    said = console.file.getvalue()
    assert "+50.0" in said and "(+30.0 to +70.0) ▲" in said and english in said


def whole(report, width):
    console = Console(file=io.StringIO(), width=width)
    suite_page.show(report, console)
    return console.file.getvalue()


def test_the_table_is_whole_on_80_columns():
    """Where there is no room the figures' intervals go; or the differences, whose marks stand beside the figures."""
    names = ["base", "fine-tuned", "ppo"]
    values = [Value(name, "translation-4-shot", 75.0, (60.0, 90.0), 200) for name in names]
    changes = [
        Change(*pair, "translation-4-shot", 5.0, "acc", (-1.0, 7.0), side)
        for pair, side in ((names[:2], "gained"), (names[1:], "lost"))
    ]
    listed = [entry(name="translation-4-shot", meaning="words · 詞", group="a-long-name-of-a-group/4-shot")]
    report = Report("s.yaml", dict.fromkeys(names, "m"), listed, values, changes, True)
    widest, wide, narrow, narrowest = (whole(report, width) for width in (130, 80, 75, 60))
    for said in (widest, wide):
        assert "fine-tuned − base" in said and "+5.0" in said and "(−1.0 to +7.0) ▲" in said and "75.0 ▲" not in said
    assert widest.count("(60.0 to 90.0)") == narrow.count("(60.0 to 90.0)") == 3 and "(60.0" not in wide + narrowest
    assert "75.0 ▲" in narrow and "75.0 ▼" in narrow and "75.0 ▼" in narrowest and "−" not in narrow + narrowest
    for said in (widest, wide, narrow, narrowest):
        assert "translation-4-shot: words · 詞" in said and "a-long-name" not in said and said.count("75.0") == 3
    assert "translation-4-shot: words · 詞" in suite_page.markdown(report)
    assert "<dt>translation-4-shot</dt><dd>words · 詞</dd>" in suite_page.page(report, [])


def test_figures_lead_to_what_they_are_made_of():
    report = report_of(Change("one", "two", "sums", 50.0, "acc", (30.0, 70.0), "gained"))
    values = [replace(value, file=f"{value.model}/sums/report.html") for value in report.values]
    page = suite_page.page(replace(report, values=values), [])
    assert '<a href="one/sums/report.html">25.0 (10.0 to 40.0)</a>' in page
    assert '<a href="two/sums/report.html">75.0 (60.0 to 90.0)</a>' in page


def test_a_loss_is_the_alignment_tax_and_a_trial_is_called_one():
    report = replace(report_of(Change("one", "two", "sums", -5.0, "acc", (-7.0, -3.0), "lost")), reportable=False)
    english, chinese = suite_page.sentences(report)[0]
    assert english.endswith("lost sums (the alignment tax).") and chinese.endswith("退步（對齊稅）：sums。")
    assert "▼" in suite_page.markdown(report) and "no result to report" in suite_page.markdown(report)


def test_a_score_that_stands_for_the_figure_is_named_beside_its_interval():
    text = Entry(**TEXT)
    values = [Value("one", "text", 0.4, None, 6), Value("two", "text", 0.8, None, 6)]
    changes = [Change("one", "two", "text", 0.4, "nll", (49.0, 58.0), "lost")]
    ((name, cells),) = suite_page.rows(Report("s", {"one": "a", "two": "b"}, [text], values, changes, True))
    assert name == "text: bits_per_byte ↓, n 6"
    assert cells == ["0.400", "0.800", "+0.400 (nll +49.00 to +58.00) ▼"]


def test_figures_below_0_are_as_short_as_those_above():
    values = [Value("one", "sums", -118.375, None, 8), Value("two", "sums", -31.053, None, 8)]
    report = replace(report_of(Change("one", "two", "sums", 87.322, "acc", None, "")), values=values)
    ((_, cells),) = suite_page.rows(report)
    assert cells == ["−118.4", "−31.1", "+87.3"]


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def stages(tiny_config, tokenizer, tmp_path, monkeypatch):
    """Three folders of models: base, one that was moved a little, and that one again; a text of two documents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    tiny_config.n_positions = 400
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config)
    for name in ("base", "sft"):
        model.save_pretrained(name), tokenizer.save_pretrained(name)
        with torch.no_grad():
            model.transformer.wte.weight.mul_(5)  # sure of what nobody taught it: a worse model of the text
    shutil.copytree("sft", "ppo")
    rows = [{"text": f"the cat sat on the mat, and so did dog {number}."} for number in range(8)]
    Path("text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--models", "base", "fine=sft", "ppo"]


def test_three_stages_by_the_command(stages, tmp_path, capsys):
    path = write_suite(tmp_path / "s.yaml", {**SUMS, "items": 3}, TEXT)
    command = ["suite", *stages, "--suite", str(path), "--output", "out"]
    assert main(["eval", *command]) == 0
    said = capsys.readouterr()
    assert "fine against base: gained nothing that shows; lost text (the alignment tax)." in said.out
    assert "ppo against fine: gained nothing that shows; lost nothing that shows." in said.out
    assert "acc " not in said.out.replace("acc ↑", "")  # the commands' own tables are not shown
    found = json.loads(Path("out/suite.json").read_text())
    assert found["reportable"] and found["models"] == {"base": "base", "fine": "sft", "ppo": "ppo"}
    for value in found["values"]:
        where = Path("out", value["model"], value["entry"])
        where = where / found["models"][value["model"]] if value["entry"] == "sums" else where
        own = json.loads((where / "results.json").read_text())
        figure = {"sums": "acc", "text": "bits_per_byte"}[value["entry"]]
        assert value["value"] == own["scores"][figure] and value["interval"] == own["intervals"][figure]
        assert value["items"] == own["n"]["items"] == {"sums": 3, "text": 6}[value["entry"]]
    of = {(value["model"], value["entry"]): value["value"] for value in found["values"]}
    for before, after in (("base", "fine"), ("fine", "ppo")):
        told = next(one for one in found["changes"] if (one["model"], one["entry"]) == (after, "text"))
        assert told["before"] == before and told["difference"] == of[after, "text"] - of[before, "text"]
    page = Path("out/report.html").read_text()
    assert "fine − base" in Path("out/suite.md").read_text() and "<svg" in page
    links = re.findall('href="(.*?)"', page)
    assert {"base/sums/report.html", "fine/text/results.json"} <= {*links} and len(links) == 6
    assert all(Path("out", link).is_file() for link in links)

    kept = Path("out/suite.md").read_text(), Path("out/report.html").read_text()
    shutil.rmtree("out/ppo")
    assert main(["eval", *command]) == 0  # goes on: only what is missing is made
    assert (Path("out/suite.md").read_text(), Path("out/report.html").read_text()) == kept
    for name, made_before in (("base", 6), ("fine", 6), ("ppo", 0)):
        assert json.loads(Path("out", name, "text/results.json").read_text())["resumed"] == made_before


def test_two_figures_of_one_measurement_are_made_once(stages, tmp_path, monkeypatch):
    made, measure = [], suite_task.measure
    monkeypatch.setattr(
        suite_task,
        "measure",
        lambda entry, name, *rest: made.append((name, entry.name)) or measure(entry, name, *rest),
    )
    words = {**TEXT, "name": "words", "figure": "perplexity_word"}
    fewer = {**words, "name": "fewer", "items": 5}
    path = write_suite(tmp_path / "s.yaml", TEXT, words, fewer)
    assert main(["eval", "suite", *stages[:3], "--suite", str(path), "--output", "out"]) == 0
    assert made == [(model, name) for model in ("base", "fine") for name in ("text", "fewer")]
    found = json.loads(Path("out/suite.json").read_text())["values"]
    scores = json.loads(Path("out/base/text/results.json").read_text())["scores"]
    assert [value["value"] for value in found[:2]] == [scores["bits_per_byte"], scores["perplexity_word"]]
    assert not Path("out/base/words").exists()


def test_an_entrys_mistake_is_told_with_its_model_and_leaves_no_report(stages, tmp_path, capsys):
    path = write_suite(tmp_path / "s.yaml", TEXT)
    assert main(["eval", "suite", *stages, "--suite", str(path), "--output", "out"]) == 0
    write_suite(path, {**TEXT, "items": 5})
    capsys.readouterr()
    assert main(["eval", "suite", *stages, "--suite", str(path), "--output", "out"]) == 2
    said = capsys.readouterr().err
    assert "rlhf-kit eval suite: base, text: " in said and "limit 6, now 5" in said
    assert not Path("out/suite.json").exists()  # what stood there is of another suite


def test_a_groups_figure_is_paired_within_the_group(stages, tmp_path):
    options = {"tasks": ["world-sums", "world-en-zh"], "shots": [0, 1]}
    path = write_suite(tmp_path / "s.yaml", {**SUMS, "options": options, "items": 3, "group": "world-sums/1-shot"})
    assert main(["eval", "suite", *stages[:3], "--suite", str(path), "--output", "out"]) == 0
    found = json.loads(Path("out/suite.json").read_text())
    groups = [
        json.loads(Path(f"out/{name}/results.json").read_text())["groups"]
        for name in ("base/sums/base", "fine/sums/sft")
    ]
    assert [value["value"] for value in found["values"]] == [
        each["world-sums/1-shot"]["scores"]["acc"] for each in groups
    ]
    assert [value["items"] for value in found["values"]] == [3, 3]
    assert found["changes"][0]["note"] == "" and found["changes"][0]["interval"] is not None


def test_the_worlds_suite_tasks_and_limit_marks_a_trial(stages, capsys):
    assert main(["eval", "suite", *stages[:2], "--limit", "2"]) == 0
    said = capsys.readouterr().out
    assert all(one.name in said for one in read_suite(WORLD)) and "no result to report" in said
    guess = guessing(read_stories("world", "test")[:2])["f1"]  # a score that is no higher shows no reading
    assert all(f"{name}: guessing an answer of the right type scores" in said for name in ("reading", "reading-chat"))
    assert said.count(f"猜同類的答案得 {guess:.1f}") == 2
    assert not Path("out").exists() and "Written" not in said
