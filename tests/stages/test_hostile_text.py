"""Every command, fed text and names that a terminal, Markdown or HTML would take for markup: they are text."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from peft import LoraConfig
from transformers import GPT2LMHeadModel

from rlhf_kit import cli
from rlhf_kit.cli.commands import STAGES
from rlhf_kit.eval.suite import page as suite_page
from rlhf_kit.eval.suite.entries import Entry
from rlhf_kit.eval.suite.page import Change, Report, Value
from rlhf_kit.models.adapters import save, wrap
from rlhf_kit.models.checkpoints import load_policy
from rlhf_kit.ppo import metrics
from rlhf_kit.report.page import write_report
from rlhf_kit.world import BASE
from tests.eval.toy_reader import reader, tokenizer_of
from tests.test_escaping import HOSTILE, MOVES, Tags
from tests.test_links import links_of
from tests.tiny_stages import PPO, QUIET

NAME = "[INST] [bold]x[i] \x1b[2J\r\u202e`|](javascript:a) <script>b<h1>\n"  # a file's or a column's
SHOWN = "[INST] [bold]x[i] "
TEXT = "[/INST] [b]x[i]\x1b[2J\r\u202e<h1>`|](javascript:a)"  # what the tiny model has room for


@pytest.fixture
def kit(capfd, caplog, monkeypatch):
    """`kit(*words)`: status and all that is said; nothing of it moves the cursor or lost its brackets."""
    monkeypatch.setenv("COLUMNS", "4000")  # no line is folded

    def run(*words, status=None):
        capfd.readouterr()  # what the fixtures said
        try:
            found = cli.main([str(word) for word in words])
        except SystemExit as ended:
            found = ended.code
        said = "".join(capfd.readouterr())
        assert not MOVES.search(said), said
        assert "Traceback" not in said and (status is None or found == status), said
        return found, said

    return run


@pytest.fixture
def named(base, tmp_path):
    """A language model whose folder has a hostile name."""
    return base.rename(tmp_path / NAME.replace("/", ""))


def check_files(folder: Path) -> int:
    """Pages hold no tag and no address of a text's own, Markdown neither; returns how many there are."""
    count = 0
    for path in folder.rglob("*"):
        if path.suffix not in (".html", ".md") or not path.is_file():
            continue
        count += 1
        text = path.read_text(encoding="utf-8")
        assert not MOVES.search(text), path
        if path.suffix == ".md":
            assert not re.search("<(script|h1)", text), path
            body = re.sub(r"(?s)^---\n.*?\n---\n|^```.*?^```", "", text, flags=re.MULTILINE)  # header and code
            assert not re.search(r"<(script|h1)|(?<!\\)\]\(javascript|(?<!\\)`[|\]]", body), path
            continue
        page = Tags(text)
        assert "script" not in page.found and page.found.count("h1") == 1, path
        assert not [link for link in page.links if ":" in link.partition("/")[0]], path
    return count


def rows_of(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("words", [[NAME], ["ppo", f"--{NAME}", "1"], ["sft", "--output_dir"], ["doctor", NAME, NAME]])
def test_what_is_typed_wrong(words, kit):
    _, said = kit(*words, status=2)
    assert SHOWN in said or "output_dir" in said


@pytest.mark.parametrize("command", ["score", "convert", "merge", "doctor", "demo", "eval", *STAGES])
def test_an_unknown_option(command, kit):
    _, said = kit(command, f"--{NAME}", "x", status=2)
    assert "rlhf-kit" in said


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_of_bad_rows(stage, kit, tmp_path, base):
    """Names of files and of columns, and texts of rows, in the faults that are told."""
    bad = rows_of(tmp_path / f"{NAME}.jsonl", [{NAME: 1, "text": 5, "prompt": [HOSTILE], "ranks": NAME}] * 2)
    reward = ["--reward_funcs", "tests.rewards:brief"] if stage in ("ppo", "rloo", "grpo") else []
    _, said = kit(
        stage, "--model_name_or_path", base, "--dataset_name", bad, "--output_dir", tmp_path / "out", *reward
    )
    assert SHOWN in said


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_plan(stage, kit, tmp_path, named):
    messages = [{"role": "user", "content": TEXT[:9]}, {"role": "assistant", "content": TEXT}]
    row = {
        "sft": {"messages": messages},
        "reward": {"prompt": TEXT[:9], "completions": [TEXT, "b"]},
        "ppo": {"prompt": messages[:1], NAME: "x"},
    }[stage]
    data = rows_of(tmp_path / f"{NAME}.jsonl", [row | {"unread\x1b[2J[i]": 1}] * 4)
    reward = PPO if stage == "ppo" else []
    options = [
        "--model_name_or_path",
        named,
        "--dataset_name",
        data,
        "--output_dir",
        tmp_path / f"out {NAME}",
        *reward,
    ]
    _, said = kit(stage, *options, "--dry-run", status=0)
    assert said.count(SHOWN) >= 3


def test_a_run_its_completions_and_its_card(kit, tmp_path, named):
    prompts = rows_of(
        tmp_path / f"{NAME}.jsonl", [{"prompt": [{"role": "user", "content": "[/INST] \x1b[2J x[i]"}]}] * 8
    )
    options = ["--model_name_or_path", named, "--dataset_name", prompts, *QUIET, *PPO]
    _, said = kit("ppo", *options, "--output_dir", tmp_path / f"out {NAME}", status=0)
    assert "[/INST] \\u001b[2J x[i]" in said  # the prompts that --log_completions shows
    assert said.splitlines()[-1].startswith("The model is in") or "Next 接下來: rlhf-kit doctor" in said
    ranked = rows_of(tmp_path / "ranked.jsonl", [{"prompt": TEXT[:9], "completions": [TEXT, "b"]}] * 4)
    ranked = ranked.rename(tmp_path / f"ranked {NAME}.jsonl")
    options = ["--model_name_or_path", named, "--dataset_name", ranked, "--eval_dataset_name", ranked, *QUIET]
    options += ["--max_steps", "1", "--gradient_accumulation_steps", "1", "--max_length", "100"]
    kit("reward", *options, "--output_dir", tmp_path / f"reward {NAME}", status=0)
    assert check_files(tmp_path / f"reward {NAME}") == 1
    scored, asked = tmp_path / f"reward {NAME}", ["--data", ranked]
    _, said = kit("score", "--model", scored, *asked, status=0)
    assert [json.loads(line)["completions"][0] for line in said.splitlines()] == [TEXT] * 4
    _, said = kit(
        "eval", "reward", "--model", scored, *asked, "--split", "train", "--output", tmp_path / "eval", status=0
    )
    assert SHOWN in said and check_files(tmp_path / "eval") == 1


def test_a_merged_adapter_and_its_card(kit, tmp_path, named, tokenizer):
    folder = tmp_path / f"lora {NAME}"
    save(wrap(load_policy(named), LoraConfig(r=2)), folder)
    tokenizer.save_pretrained(folder)
    _, said = kit("merge", folder, "--output_dir", tmp_path / "merged", status=0)
    assert said.count(SHOWN) == 2 and check_files(tmp_path / "merged") == 1


def test_measurements(kit, tmp_path, named):
    text = rows_of(tmp_path / f"text {NAME}.jsonl", [{"text": TEXT}] * 2)
    out = tmp_path / "out"
    kit("eval", "perplexity", "--model", named, "--data", text, "--output", out / "text", status=0)
    assert kit("eval", "lambada", "--model", named, "--data", text, "--limit", 1)[0] in (0, 2)
    icl = ["--models", named, "--tasks", "world-sums", "--shots", "0", "--limit", "1"]
    _, said = kit("eval", "icl", *icl, "--output", out / "icl", status=0)
    assert SHOWN in said
    kit("eval", "coqa", "--model", named, "--data", f"{NAME}.json", status=2)
    _, said = kit("eval", "compare", out / "text", out / f"coqa {NAME}", status=2)
    assert SHOWN in said
    kit("eval", "suite", "--models", f"{NAME}={named}", status=2)
    kit("eval", "extractive", "--model", named, "--data", f"{NAME}.json", "--scorer", "drcd", status=2)
    kit("eval", "transfer", "--table", tmp_path / f"{NAME}.yaml", status=2)
    kit("eval", "tldr", "--models", named, "--data", text, "--limit", "1", status=2)
    kit("eval", "score", "--task", "squad", "--references", text, "--predictions", text, status=2)
    assert check_files(out) == 1


def test_conversion(kit, tmp_path):
    ranked = {"prompt": TEXT, "completions": [TEXT, "b"], "labeler": NAME}
    source = rows_of(tmp_path / f"{NAME}.jsonl", [ranked, ranked | {"labeler": "b"}])
    for form in ("trl", "ranked"):
        _, said = kit("convert", source, tmp_path / f"out {NAME}.jsonl", "--from", "ranked", "--to", form, status=0)
        assert said.count(SHOWN) == 2
    table = tmp_path / f"{NAME}.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[NAME, "prompt"], [TEXT, "x"]])
    _, said = kit("convert", table, tmp_path / "o.jsonl", "--from", "ranked", status=2)
    assert SHOWN in said


def test_a_run_that_is_judged_and_reported(kit, tmp_path):
    folder = tmp_path / NAME
    folder.mkdir()
    row = {"kl": 0.1, "reward": 1.0, f"rewards/{NAME}": 0.5, "loss": 1.0}
    rows_of(folder / "metrics.jsonl", [{"step": step, **row} for step in range(9)])
    _, said = kit("doctor", folder)
    assert said.count(SHOWN) >= 2
    kit("doctor", folder, "--json")
    kit("doctor", folder, "--truth", "\x1b[2J", status=2)
    rows_of(folder / "metrics.jsonl", [row]).write_text(f"{NAME}\n{NAME}\n")
    kit("doctor", folder, status=2)
    answer = {"text": HOSTILE, "truth": 1.0, "score": 0.0}
    summary = {"samples": [{"prompt": HOSTILE, "answers": {NAME: answer}}], "stages": {NAME: {"truth": 1.0}}}
    summary |= {"machine": HOSTILE, "versions": {NAME: HOSTILE}, "seconds": {NAME: 1.0}}
    page = tmp_path / "report" / f"javascript:{NAME}"
    page.parent.mkdir()
    page.touch()
    write_report(tmp_path / "report" / "report.html", summary, {NAME: folder}, {page.name: NAME})
    assert check_files(tmp_path / "report") == 1


def test_a_suites_three_forms(tmp_path, capsys):
    entry = Entry("e", "icl", {}, NAME, True, group=NAME, meaning=HOSTILE)
    values = [Value(name, "e", 1.0, (0.5, 1.5), 3, file=f"javascript:{NAME}") for name in (NAME, HOSTILE)]
    changes = [Change(NAME, HOSTILE, "e", 0.0, NAME, None, "", HOSTILE)]
    report = Report(NAME, {NAME: NAME, HOSTILE: NAME}, [entry], values, changes, True)
    (tmp_path / "suite.md").write_text(suite_page.markdown(report), encoding="utf-8")
    (tmp_path / "report.html").write_text(suite_page.page(report, [HOSTILE]), encoding="utf-8")
    assert check_files(tmp_path) == 2
    table = [line for line in suite_page.markdown(report).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table} == {5} and len(table) == 3
    for width in (40, 80, 200):
        console = suite_page.Console(file=io.StringIO(), width=width)
        suite_page.show(report, console)
        assert not MOVES.search(console.file.getvalue())


def test_completions_that_are_shown(capsys):
    metrics.show_completions([{"prompt": "[/INST]", "completion": HOSTILE, "score": 0.0}], "step 1", 1)
    said = capsys.readouterr().err
    assert "[/INST]" in said and not MOVES.search(said)


def test_the_base_that_comes_with_the_kit_has_a_card_of_markdown():
    assert check_files(Path(BASE)) == 1


# --- measurements that succeed --------------------------------------------------------------------------------------

ALL = (
    f"{HOSTILE.replace(chr(0xD83D), '')} [link=javascript:a]x[/link] ![i](http://a/b.png) "
    "\x1b]8;;http://a\x07l\x1b]8;;\x07 \x1b]0;t\x07 \u200b\u2067 <img src=x onerror=alert(1)> &lt;b&gt;"
)
COLUMN = {"id": ALL, "context": f"{ALL} Ann .", "question": f"{ALL} who?"}
ASKED = COLUMN | {"answers": {"text": ["Ann"], "answer_start": [len(ALL) + 1]}}


@pytest.fixture
def wide(tiny_config, tokenizer, tmp_path):
    """A language model of a hostile name that has room for all of it."""
    tiny_config.n_positions = 1024
    folder = tmp_path / f"model {NAME}"
    GPT2LMHeadModel(tiny_config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def held(folder: Path) -> str:
    """All texts and names that the JSON files below hold, read back."""
    found = []

    def collect(value):
        if isinstance(value, dict):
            value = [*value, *value.values()]
        if isinstance(value, list):
            found.extend(map(str, value))
            for one in value:
                collect(one)

    for path in folder.rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        for line in text.strip().split("\n") if path.suffix == ".jsonl" else [text]:
            collect(json.loads(line))
    return "\n".join(found)


def test_a_coqa_run(kit, tmp_path, wide):
    story = {"id": ALL, "source": ALL, "story": ALL, "questions": [{"input_text": ALL, "turn_id": 1}]}
    story["answers"] = [{"input_text": ALL, "turn_id": 1}]
    data = tmp_path / f"coqa {NAME}.json"
    data.write_text(json.dumps({"data": [story]}))
    outs = [tmp_path / f"{name} {NAME}" for name in "ab"]
    for out in outs:
        _, said = kit("eval", "coqa", "--model", wide, "--data", data, "--output", out, status=0)
        assert SHOWN in said and "[link=javascript:a]x[/link]" in said  # the model, the domain
        assert ALL in held(out) and str(data) in held(out)
    _, said = kit("eval", "compare", *outs, status=0)
    assert "[link=javascript:a]x[/link]" in said
    predictions = tmp_path / f"p {NAME}.json"
    predictions.write_text(json.dumps([{"id": ALL, "turn_id": 1, "answer": ALL}]))
    given = ["--references", data, "--predictions", predictions]
    _, said = kit("eval", "score", "coqa", *given, status=0)
    assert json.loads(said)["f1"] == 100.0 and ALL in json.loads(said)["by_domain"]


@pytest.mark.parametrize("scorer", ["squad", "drcd"])
def test_an_extractive_run_and_its_training(kit, tmp_path, scorer):
    tokenizer = tokenizer_of([ALL, "Ann who?"])
    model = reader(len(tokenizer), positions=512)
    model.save_pretrained(folder := tmp_path / f"reader {NAME}")
    tokenizer.save_pretrained(folder)
    data = rows_of(tmp_path / f"squad {NAME}.jsonl", [ASKED, ASKED | {"id": "2"}])
    sizes = "--max-length 512 --max-query-length 220 --step 16 --batch-size 2 --epochs 1".split()
    asked = ["--model", folder, "--data", data, "--scorer", scorer, "--output", out := tmp_path / f"out {NAME}"]
    training = ["--train-data", data] if scorer == "squad" else []
    _, said = kit("eval", "extractive", *asked, *sizes, *training, status=0)
    assert SHOWN in said and check_files(out) >= 1
    page = Tags((out / "report.html").read_text(encoding="utf-8"))
    assert "[link=javascript:a]x[/link]" in "".join(page.words) and "img" not in page.found
    assert ALL in held(out)
    _, said = kit("eval", "compare", out, out, status=0)
    nested = [{"title": ALL, "paragraphs": [{"context": ASKED["context"], "qas": [
        {"id": ALL, "question": ALL, "answers": [{"text": "Ann", "answer_start": len(ALL) + 1}]}
    ]}]}]  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps({"version": "1.1", "data": nested}))
    (tmp_path / "p.json").write_text(json.dumps({ALL: ALL}))
    given = ["--references", tmp_path / "r.json", "--predictions", tmp_path / "p.json"]
    _, said = kit("eval", "score", scorer, *given, status=0)
    assert json.loads(said)["questions"] == 1


def test_a_transfer_table(kit, tmp_path):
    tokenizer = tokenizer_of([ALL, "Ann who?"])
    reader(len(tokenizer), positions=512).save_pretrained(folder := tmp_path / f"reader {NAME}")
    tokenizer.save_pretrained(folder)
    source = str(rows_of(tmp_path / f"squad {NAME}.jsonl", [ASKED]))
    table = {
        "seeds": [0],
        "training": {"max_length": 512, "max_query_length": 220, "step": 16, "max_steps": 1},
        "data": [{"name": "en", "source": source, "language": "en"}],
        "tests": [{"name": "zh", "source": source, "language": "zh", "scorers": ["drcd"]}],
        "rows": [{"name": "row", "model": str(folder), "fine_tuned_on": ["en"], "pretrained_on": ALL}],
    }
    config = tmp_path / f"table {NAME}.yaml"
    config.write_text(json.dumps(table))
    _, said = kit("eval", "transfer", "--table", config, "--output", out := tmp_path / f"out {NAME}", status=0)
    assert "[link=javascript:a]x[/link]" in said and SHOWN in said and check_files(out) == 3
    assert "[link=javascript:a]x[/link]" in (out / "report.html").read_text()
    assert ALL in held(out) and source in held(out)


def test_summaries(kit, tmp_path, wide):
    row = {"article": f"{ALL} Ann. {ALL} Ben. Eve.", "highlights": ALL}
    data = rows_of(tmp_path / f"news {NAME}.jsonl", [row])
    out = tmp_path / f"out {NAME}"
    _, said = kit("eval", "tldr", "--models", wide, "lede-3", "--data", data, "--output", out, status=0)
    assert SHOWN in said and check_files(out) == 0
    assert ALL.split("\n")[0][:40] in held(out) and str(data) in held(out)


def test_a_suite(kit, tmp_path, wide):
    text = rows_of(tmp_path / f"text {NAME}.jsonl", [{"text": ALL}] * 2)
    common = {"higher_is_better": False, "meaning": ALL}
    entries = [
        {"name": "text", "command": "perplexity", "options": {"data": str(text)}, "figure": "bits_per_byte", **common},
        {
            "name": "sums",
            "command": "icl",
            "options": {"tasks": ["world-sums"], "shots": 0},
            "figure": "acc",
            **common,
        },
    ]
    entries[0]["paired"], entries[1]["items"] = "nll", 1
    path = tmp_path / f"suite {NAME}.yaml"
    path.write_text(json.dumps(entries))
    models = [f"first={wide}", f"second={wide}"]
    out = tmp_path / f"out {NAME}"
    _, said = kit("eval", "suite", "--models", *models, "--suite", path, "--output", out, status=0)
    assert "[link=javascript:a]x[/link]" in said and SHOWN in said and check_files(out) == 4
    assert len(links_of(out)["report.html"]) == 4
    found = json.loads((out / "suite.json").read_text(encoding="utf-8"))
    assert found["models"]["first"] == str(wide) and found["entries"][0]["meaning"] == ALL
