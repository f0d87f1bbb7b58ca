"""The file that declares a table: what it may say, every fault told at once, and the two tables that come along."""

from pathlib import Path

import pytest
import yaml

from rlhf_kit.cli import main
from rlhf_kit.errors import UserError
from rlhf_kit.eval.transfer import config
from rlhf_kit.eval.transfer.config import read_table

TABLES = Path(config.__file__).parent
DATA = {"name": "en", "source": "world:squad_en", "language": "en", "size": 6}
TEST = {"name": "zh", "source": "world:squad_zh", "language": "zh", "scorers": ["drcd"], "size": 4}
ROW = {"name": "tiny", "model": "nowhere", "fine_tuned_on": ["en"]}


def table(data=(), tests=(), row=(), **more):
    return {
        "data": [{**DATA, **dict(data)}],
        "tests": [{**TEST, **dict(tests)}],
        "rows": [{**ROW, **dict(row)}],
        **more,
    }


def write(path, value):
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    return path


@pytest.mark.parametrize("name, first, human", [("world", "zh", None), ("hub", "drcd-test", (80.43, 93.30))])
def test_the_tables_that_come_along_have_the_lectures_rows_and_figures(name, first, human):
    found = read_table(TABLES / f"{name}.yaml")
    assert found.tests[0].name == first and found.tests[0].scorers[0] == "drcd"
    assert found.tests[0].published_human == human
    lecture = {
        ("qanet", "zh"): (66.1, 78.1), ("Chinese 中文", "zh"): (82.0, 89.1), ("bi", "zh"): (81.2, 88.7),
        ("bi", "en"): (63.3, 78.8), ("bi", "zh+en"): (82.6, 90.1),
    }  # fmt: skip
    told = {
        ("qanet" if row.model == "qanet" else row.pretrained_on, "+".join(row.fine_tuned_on)): row.published[first]
        for row in found.rows
        if first in row.published
    }
    bilingual = {"world": "English and Chinese 英文與中文", "hub": "104 languages 104 種語言"}[name]
    assert told == {(bilingual if model == "bi" else model, on): figures for (model, on), figures in lecture.items()}
    assert found.seeds == (0, 1, 2)


def test_languages_are_those_of_the_training_data():
    found = read_table(TABLES / "world.yaml")
    told = {row.name: found.languages(row) for row in found.rows}
    assert told["bilingual-en"] == {"en"} and told["bilingual-zh+en"] == {"en", "zh"}
    assert told["bilingual-zh-60"] == {"zh"}


def test_lists_become_tuples_and_settings_stay():
    more = {"published": {"zh": [1, 2.5]}, "training": {"freeze": "embeddings"}}
    found = read_table(write(Path("t.yaml"), table(row=more)))
    assert found.rows[0].fine_tuned_on == ("en",) and found.rows[0].training == {"freeze": "embeddings"}
    assert found.rows[0].published == {"zh": (1, 2.5)} and found.tests[0].scorers == ("drcd",)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "value, told",
    [
        (table(row={"modle": "x"}), "rows 1 (tiny): there is no 'modle'. Did you mean 'model'?"),
        (table(sead=[0]), "there is no 'sead'. Did you mean 'seeds'?"),
        (table(seeds=[]), "seeds is []; give a list of whole numbers"),
        (table(max_answer_length=0), "max_answer_length is 0; give a whole number from 1"),
        (table(seeds=[0, -1]), "seeds is [0, -1]; give a list of whole numbers"),
        (table(tests={"scorers": ["drdc"]}), "there is no scorer 'drdc'. Did you mean 'drcd'?"),
        (table(tests={"scorers": "drcd"}), "scorers is 'drcd'; give a list of scorers' names"),
        (table(tests={"language": "de"}), "tests 1 (zh): language is 'de'; give en or zh"),
        (table(data={"size": 0}), "data 1 (en): size is 0; give a whole number from 1"),
        (table(data={"word_order": "sov"}), "word_order is 'sov'; give random or reversed"),
        (table(data={"name": "../en"}), "name is '../en'; give a name that can be a folder's"),
        (table(row={"fine_tuned_on": ["eng"]}), "row tiny: fine_tuned_on names 'eng', which is not in data."),
        (table(row={"published": {"zhh": [1, 2]}}), "names 'zhh', which is not in tests. Did you mean 'zh'?"),
        (table(row={"published": {"zh": [1]}}), "published is {'zh': [1]}; give names of tests with [EM, F1]"),
        (table(row={"training": {"epochs": 3}}), "rows 1 (tiny): training: there is no 'epochs'."),
        (table(row={"training": {"seed": 3}}), "training: seed is set by the driver; leave it out"),
        (table(training={"learning_rate": "2e-5"}), "learning_rate is the text '2e-5'; write a number, 2.0e-5"),
        (table(row={"model": "qanet", "training": {"learning_rate": 0.1}}), "qanet brings its own learning_rate"),
        (table(row={"model": "qanet", "from_scratch": True}), "leave from_scratch out"),
        (table(row={"sizes": {"hidden_size": 8}}), "sizes are QANet's; 'nowhere' has its own"),
        ({**table(), "rows": []}, "rows is []; give a list with an entry at least"),
        ({**table(), "rows": [ROW, {**ROW, "name": "Tiny"}]}, "two of rows have the name 'tiny'"),
        ({"data": [DATA], "tests": [TEST]}, "has no rows"),
        (["rows"], "must hold `data`, `tests` and `rows`"),
    ],
)  # fmt: skip
def test_a_fault_is_told_before_anything_is_loaded(value, told, capsys):
    write(Path("t.yaml"), value)
    assert main(["eval", "transfer", "--table", "t.yaml"]) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said and not Path("runs").exists()


def test_all_faults_are_told_together():
    wrong = table(data={"size": 0}, tests={"language": "de"}, row={"modle": 1}, seeds=3)
    with pytest.raises(UserError) as found:
        read_table(write(Path("t.yaml"), wrong))
    assert len(str(found.value).splitlines()) == 5


def test_a_file_that_cannot_be_read():
    with pytest.raises(UserError, match="t.yaml cannot be read: No such file"):
        read_table(Path("t.yaml"))
    Path("t.yaml").write_text("- {")
    with pytest.raises(UserError, match="t.yaml is not readable YAML"):
        read_table(Path("t.yaml"))


# --- what only shows when the sources and models are looked at -----------------------------------------------------


@pytest.mark.parametrize(
    "value, options, told",
    [
        (table(data={"source": "world:squad_fr"}), [], "world:squad_fr: the world has no such questions"),
        (table(data={"split": "dev"}), [], "world:squad_en has no split 'dev'"),
        (table(data={"source": "{data}/en.json"}), [], "give the folder of {data} with --data_dir"),
        (table(data={"source": "{data}/en.json"}), ["--data-dir", "here"], "here/en.json does not exist"),
        (table(), ["--rows", "tinny"], "--rows: there is no 'tinny'. Did you mean 'tiny'?"),
        (table(row={"model": "world:nothing"}), [], "No row is left: this copy of the kit has no check"),
        (table(row={"model": "no/such/model"}), [], "no/such/model"),
        (table(row={"model": "qanet", "sizes": {"hiden_size": 8}}), [], "'hiden_size'. Did you mean 'hidden_size'?"),
        (table(row={"model": "qanet", "sizes": {"vectors": "w.vec"}}), [], "'w.vec' is no file of word vectors"),
    ],
)  # fmt: skip
def test_sources_and_models_are_checked_before_anything_is_trained(value, options, told, capsys):
    if "no/such" not in told and value["rows"][0]["model"] == "nowhere":
        value["rows"][0]["model"] = "qanet"
    write(Path("t.yaml"), value)
    assert main(["eval", "transfer", "--table", "t.yaml", *options]) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said
    assert not Path("runs").exists()


def test_a_table_given_as_options_is_told_where_it_goes(capsys):
    assert main(["eval", "transfer", "--config", str(TABLES / "world.yaml")]) == 2
    message = capsys.readouterr().err
    assert "tests: this option was renamed; write --table FILE: --config has options" in message
