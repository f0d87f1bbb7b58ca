"""The whole command on tiny models: every cell once, gone on with after an interruption, refused when changed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from toy_reader import reader, saved_reader, tokenizer_of, world_questions

from rlhf_kit.cli import main
from rlhf_kit.errors import UserError
from rlhf_kit.eval.items import read_results
from rlhf_kit.eval.scorers import drcd
from rlhf_kit.eval.transfer import cells, task
from rlhf_kit.eval.transfer.config import Row, Table, read_table
from rlhf_kit.eval.transfer.readers import checkpoint, missing, new_reader
from tests.test_links import links_of

DATA = [
    {"name": "zh", "source": "world:squad_zh", "language": "zh", "size": 6},
    {"name": "en", "source": "world:squad_en", "language": "en", "size": 4, "word_order": "random"},
]
TESTS = [
    {"name": "zh", "source": "world:squad_zh", "language": "zh", "scorers": ["drcd", "cmrc"], "size": 5},
    {"name": "en", "source": "world:squad_en", "language": "en", "scorers": ["squad"], "size": 4},
]
SIZES = {"hidden_size": 16, "word_dim": 8, "char_dim": 0, "model_blocks": 1, "num_attention_heads": 2}
ROWS = [
    {"name": "bert", "model": "toy", "fine_tuned_on": ["zh", "en"], "published": {"zh": [81.2, 88.7]}},
    {"name": "new", "model": "toy", "fine_tuned_on": ["en"], "from_scratch": True, "training": {"freeze": "encoder"}},
    {"name": "qanet", "model": "qanet", "fine_tuned_on": ["zh"], "sizes": SIZES, "published": {"zh": [66.1, 78.1]}},
    {"name": "none", "model": "world:nothing", "fine_tuned_on": ["zh"]},
]
TRAINING = {"max_length": 64, "step": 16, "max_query_length": 24, "max_steps": 2, "per_device_train_batch_size": 8}


def declare(**changes):
    table = {"seeds": [0, 1], "training": TRAINING, "data": DATA, "tests": TESTS, "rows": ROWS, **changes}
    Path("t.yaml").write_text(yaml.safe_dump(table, allow_unicode=True), encoding="utf-8")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a toy model and the finished table of three rows and two seeds."""
    folder = tmp_path_factory.mktemp("transfer")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        saved_reader("toy")
        declare()
        assert main(["eval", "transfer", "--table", "t.yaml", "--output", "out"]) == 0
    return folder


@pytest.fixture
def copy(done, tmp_path, monkeypatch):
    """A copy of it, to be gone on with."""
    shutil.copytree(done, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def transfer(*options):
    return main(["eval", "transfer", "--table", "t.yaml", "--output", "out", *options])


def changed():
    """Every file with its time, but for the table, which is written each time."""
    return {str(path): path.stat().st_mtime_ns for path in Path("out").glob("*/seed-*/**/*") if path.is_file()}


def test_every_cell_has_its_tests_and_no_model_stays(done):
    found = sorted(str(path.parent.relative_to(done / "out")) for path in (done / "out").rglob("settings.json"))
    assert found == sorted(
        f"{row}/seed-{seed}/{test}" for row in ("bert", "new", "qanet") for seed in (0, 1) for test in ("en", "zh")
    )
    assert not list((done / "out").rglob("model"))
    folder = done / "out/bert/seed-1/zh"
    told, items = read_results(folder)
    assert set(items[0].scores) == {"em", "f1", "cmrc em", "cmrc f1"} and told["details"]["scorer"] == "drcd"
    predicted = json.loads((folder / "predictions.json").read_text())
    (one, *_) = world_questions(5)
    assert drcd(predicted[one.id], one.references).f1 == items[0].scores["f1"] and items[0].id == one.id
    assert "Errors" in (folder / "report.html").read_text()


def test_the_table_is_of_the_cells(done):
    found = json.loads((done / "out/results.json").read_text())
    assert found["cells"] == [6, 6] and found["skipped"] == ["none"] and found["reportable"]
    means = {(one["row"], one["test"], one["scorer"]): one["f1"]["value"] for one in found["figures"]}
    assert len(means) == 9
    of_seeds = [read_results(done / f"out/new/seed-{seed}/en")[0]["scores"]["f1"] for seed in (0, 1)]
    assert means["new", "en", "squad"] == pytest.approx(sum(of_seeds) / 2)
    assert {name: score["em"] > 30 for name, score in found["guesses"].items()} == {"zh": True, "en": True}
    assert [(order["better"], order["worse"]) for order in found["orders"]] == [("bert", "qanet")]
    assert found["transfers"] == []  # bert has learned both, the others nothing before
    shown = (done / "out/table.md").read_text()
    assert "81.2 / 88.7" in shown and "Left out: none." in shown and "hat" not in shown.splitlines()[0]
    assert 'href="bert/seed-0/zh/report.html"' in (done / "out/report.html").read_text()


def test_every_page_of_a_table_leads_to_the_others(done):
    parts = [(row, seed, test) for row in ("bert", "new", "qanet") for seed in (0, 1) for test in ("en", "zh")]
    cells = {f"{row}/seed-{seed}/{test}/report.html" for row, seed, test in parts}
    assert links_of(done / "out") == {"report.html": cells, **dict.fromkeys(cells, {"report.html"})}


def test_a_finished_table_is_only_written_again(copy, capsys):
    before = changed()
    assert transfer() == 0
    assert changed() == before and "[1/" not in capsys.readouterr().err


def test_an_interrupted_cell_goes_on_with_its_model_and_gives_the_same(copy, monkeypatch):
    kept = Path("out/bert/seed-1/zh/items.jsonl").read_text(), Path("out/table.md").read_text()
    shutil.rmtree("out/bert/seed-1")
    measure = cells._measure

    def interrupted(test, *given):
        if test.name == "en":
            raise KeyboardInterrupt
        return measure(test, *given)

    monkeypatch.setattr(cells, "_measure", interrupted)
    assert transfer() == 130
    assert Path("out/bert/seed-1/model/trained").is_file() and not Path("out/bert/seed-1/en").exists()
    monkeypatch.setattr(cells, "_measure", measure)
    monkeypatch.setattr(cells, "finetune", lambda *given, **more: pytest.fail("trained again"))
    assert transfer() == 0
    assert (Path("out/bert/seed-1/zh/items.jsonl").read_text(), Path("out/table.md").read_text()) == kept
    assert not Path("out/bert/seed-1/model").exists()


def test_training_cut_off_is_begun_again(copy):
    kept = Path("out/new/seed-0/en/items.jsonl").read_text()
    shutil.rmtree("out/new/seed-0")
    Path("out/new/seed-0/model").mkdir(parents=True)
    assert transfer() == 0
    assert Path("out/new/seed-0/en/items.jsonl").read_text() == kept


@pytest.mark.parametrize(
    "changes, options, told",
    [
        ({"training": {**TRAINING, "max_steps": 3}}, [], "out/bert/seed-0' was made by other settings (training "),
        ({"data": [{**DATA[0], "size": 5}, DATA[1]]}, [], "(data ["),
        ({"data": [DATA[0], {**DATA[1], "word_order": "reversed"}]}, [], "(data ["),
        ({"tests": [{**TESTS[0], "size": 4}, TESTS[1]]}, [], "holds items measured with other settings (data_hash"),
        ({"tests": [{**TESTS[0], "scorers": ["cmrc"]}, TESTS[1]]}, [], "(protocol 'drcd cmrc', now 'cmrc')"),
        ({}, ["--limit", "2"], "holds items measured with other settings"),
        ({}, ["--dtype", "bfloat16"], "(dtype 'float32', now 'bfloat16')"),
    ],
)  # fmt: skip
def test_changed_settings_are_refused_and_nothing_is_touched(copy, capsys, changes, options, told):
    before = changed()
    declare(**changes)
    assert transfer(*options) == 2
    said = capsys.readouterr().err
    assert told in said and "give another folder" in said and "Traceback" not in said
    assert changed() == before


def test_other_versions_and_another_model_are_other_settings(copy, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cells, "versions", lambda: {"torch": "9.9"})
        assert transfer() == 2
    assert "now {'torch': '9.9'}" in capsys.readouterr().err
    tokenizer = tokenizer_of([one.context + one.question for one in world_questions(60)])
    saved_reader("toy", reader(len(tokenizer), seed=5))
    assert transfer() == 2
    assert "(model_hash" in capsys.readouterr().err


def test_what_is_only_told_may_change_and_a_row_or_seed_may_come_later(copy):
    before = changed()
    more = {**ROWS[0], "pretrained_on": "toys", "published": {}}
    declare(rows=[more, {**ROWS[1], "name": "newer", "training": {}}], seeds=[0])
    assert transfer() == 0
    after = changed()
    assert {path: after[path] for path in before} == before
    assert {path.split("/")[1] for path in after if path not in before} == {"newer"}
    assert "toys" in Path("out/table.md").read_text() and "qanet" not in Path("out/table.md").read_text()


def test_rows_and_seeds_by_name_all_rows_of_a_seed_first(done):
    table = read_table(done / "t.yaml")
    found, skipped = task.chosen(table, [], None)
    order = [(cell.row.name, cell.seed) for cell in task.ordered(found, skipped)]
    assert order == [(name, seed) for seed in (0, 1) for name in ("bert", "new", "qanet")]
    found, skipped = task.chosen(table, ["qanet", "bert"], [7, 3, 7])
    assert [(cell.row.name, cell.seed) for cell in task.ordered(found, skipped)] == [
        ("bert", 7), ("qanet", 7), ("bert", 3), ("qanet", 3)
    ]  # fmt: skip


def test_the_time_left_is_told(capsys):
    cell = cells.Cell(Row("a", "m", ("en",)), 2)
    task.tell(cell, 0, 4, 0.0)
    task.tell(cell, 1, 4, 60.0)
    assert capsys.readouterr().err.splitlines() == ["[1/4] a, seed 2", "[2/4] a, seed 2, about 3.0 min left 剩餘"]


def test_a_trial_says_so(done, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(done)
    command = [
        "transfer",
        "--table",
        "t.yaml",
        "--output",
        str(tmp_path),
        "--limit",
        "2",
        "--rows",
        "bert",
        "--seeds",
        "4",
    ]
    assert main(["eval", *command]) == 0
    assert "no result to report" in capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())
    assert not found["reportable"] and {one["n"]["questions"] for one in found["figures"]} == {2}


def test_training_that_transformers_refuses_is_told(copy, capsys):
    declare(training={**TRAINING, "lr_scheduler_type": "sideways"}, rows=[{**ROWS[0], "name": "other"}])
    assert transfer() == 2
    said = capsys.readouterr().err
    assert "row other: training: sideways is not a valid SchedulerType" in said and "[1/" not in said


# --- models ---------------------------------------------------------------------------------------------------------


def test_a_model_from_scratch_has_the_shape_and_other_weights(done, monkeypatch):
    monkeypatch.chdir(done)
    trained, _ = new_reader(Row("a", "toy", ("zh",)), [])
    fresh, tokenizer = new_reader(Row("a", "toy", ("zh",), from_scratch=True), [])
    first, second = dict(trained.named_parameters()), dict(fresh.named_parameters())
    assert {name: value.shape for name, value in first.items()} == {
        name: value.shape for name, value in second.items()
    }
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not first[name].equal(second[name]) and len(tokenizer) == trained.config.vocab_size
    config = Path("toy/config.json")
    stored = config.read_text()
    config.write_text(stored.replace('"dtype": "float32"', '"dtype": "float16"'))  # as the kit's own checkpoint says
    try:
        half, _ = new_reader(Row("a", "toy", ("zh",), from_scratch=True), [])
    finally:
        config.write_text(stored)
    assert "float16" not in stored and half.dtype == torch.float32


def test_names_of_checkpoints(tmp_path):
    assert checkpoint("world:bilingual").endswith("rlhf_kit/world/bilingual") and checkpoint("org/name") == "org/name"
    assert missing(Row("a", "world:nothing", ())) and not missing(Row("a", "nothing", ()))
    assert not missing(Row("a", "world:base", ()))
    with pytest.raises(UserError, match="no checkpoint world:nothing, world:less"):
        task.chosen(Table((), (), (Row("a", "world:nothing", ()), Row("b", "world:less", ()))), [], None)


def test_no_answer_is_longer_than_the_table_allows(done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved_reader("toy")
    declare(seeds=[0], rows=[ROWS[1]], tests=[TESTS[1]], max_answer_length=1)
    assert main(["eval", "transfer", "--table", "t.yaml", "--output", "out"]) == 0
    items = [json.loads(line) for line in Path("out/new/seed-0/en/items.jsonl").read_text().splitlines()]
    assert items and all(" " not in best["text"] for item in items for best in item["details"]["n_best"])
    assert json.loads(Path("out/new/seed-0/en/settings.json").read_text())["options"]["max_answer_length"] == 1
