"""What `rlhf-kit ui FOLDER` finds in a folder, what it refuses, and that it shows it to whom it should."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from serving.conftest import served
from stores import new_store

from rlhf_kit.data.labels.store import open_store
from rlhf_kit.errors import UserError
from rlhf_kit.serving.folder import Contents, contents_of, refuse_empty, store_in, with_models
from rlhf_kit.serving.ui import UIOptions, opened


def put(folder: Path, **files: object) -> Path:
    """Files by name, a dot for each `__`; what is no text is written as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def put_model(folder: Path, kind: str = "GPT2LMHeadModel", **files: object) -> Path:
    return put(folder, config__json={"architectures": [kind]}, model__safetensors="weights", **files)


RUN = {"metrics__jsonl": '{"step": 1}\n'}


@pytest.fixture
def demo(tmp_path) -> Path:
    """As the demo leaves it, with an adapter, a run that has just begun, and what is neither."""
    top = tmp_path / "demo"
    put_model(top / "base")
    put_model(top / "sft", **RUN)
    put_model(top / "reward", "GPT2ForSequenceClassification", **RUN)
    for step in (100, 80):
        put_model(top / "ppo" / f"checkpoint-{step}")
    put_model(top / "ppo", **RUN, run__json={"stage": "ppo"})
    put(top / "lora", adapter_config__json={"task_type": "CAUSAL_LM"}, adapter_model__safetensors="w")
    put(top / "lora-reward", adapter_config__json={"task_type": "SEQ_CLS"}, adapter_model__safetensors="w")
    put(top / "begun", **RUN)
    put(top / "suite" / "sft" / "sums", results__json={})
    put_model(top / "bert", "BertForMaskedLM")
    put(top / "no-weights", config__json={"architectures": ["GPT2LMHeadModel"]})
    put(top / "broken", config__json="{", model__safetensors="w")
    put(top / "odd", config__json={"architectures": [1, None]}, model__safetensors="w")
    put_model(top / ".hidden")
    return top


def test_models_that_generate_models_that_score_and_runs_are_told_apart(demo):
    contents = contents_of(demo)
    assert list(contents.models) == ["base", "lora", "ppo", "sft"] and contents.models["ppo"] == demo / "ppo"
    assert list(contents.scorers) == ["lora-reward", "reward"]
    assert list(contents.runs) == ["begun", "ppo", "reward", "sft"]


def test_names_are_places_below_the_folder(demo):
    assert {"demo/sft", "demo/ppo"} < set(contents_of(demo.parent).models)
    assert not [name for name in contents_of(demo.parent).models if "checkpoint" in name]
    own = contents_of(demo / "ppo")
    assert list(own.models) == ["ppo", "ppo/checkpoint-80", "ppo/checkpoint-100"] and list(own.runs) == ["ppo"]


def test_no_link_is_followed(demo, tmp_path):
    put_model(tmp_path / "elsewhere", **RUN)
    before = contents_of(demo)
    (demo / "linked").symlink_to(tmp_path / "elsewhere")
    (demo / "loop").symlink_to(demo)
    put(demo / "links")
    for name in ("config.json", "model.safetensors", "metrics.jsonl"):
        (demo / "links" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert contents_of(demo) == before
    (tmp_path / "by-link").symlink_to(demo)
    assert contents_of(tmp_path / "by-link") == before


def test_a_folder_of_nothing_is_told_what_was_looked_for(tmp_path):
    empty = put(tmp_path / "empty", notes__txt="")
    with pytest.raises(UserError, match=r"empty' holds nothing to show\. In it .*metrics.jsonl.*labels.db"):
        refuse_empty(empty, contents_of(empty))
    put_model(empty / "reward", "GPT2ForSequenceClassification")
    with pytest.raises(UserError, match="models that score, which do not generate: reward"):
        opened(UIOptions(str(empty)))
    assert not (empty / "labels.db").exists()
    put_model(empty / "sft")
    assert list(opened(UIOptions(str(empty)))[0].models) == ["sft"]


def test_a_name_that_is_shown_twice_is_refused(demo, tmp_path):
    contents, other = contents_of(demo), put_model(tmp_path / "other" / "sft")
    (other / "model.safetensors").rename(tmp_path / "blob")
    (other / "model.safetensors").symlink_to(tmp_path / "blob")  # as in the hub's cache
    models = with_models(contents, [f"old={other}", "gpt2", "mine=openai-community/gpt2@main"])
    assert [*models][-3:] == ["old", "gpt2", "mine"] and models["old"] == other
    assert str(models["mine"]) == "openai-community/gpt2@main"
    with pytest.raises(UserError, match="'sft' is shown already, .*demo/sft.*as in sft-2="):
        with_models(contents, [str(other)])
    with pytest.raises(UserError, match="'a' is shown already"):
        with_models(contents, [f"a={other}", "a=gpt2"])


@pytest.mark.parametrize("named", ["reward", "lora-reward", "bert", "begun", "sft/config.json"])
def test_a_model_that_does_not_generate_is_refused(demo, named):
    with pytest.raises(UserError, match="holds no causal language model with its weights"):
        with_models(Contents(), [str(demo / named)])


def test_a_model_that_is_nowhere_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no '.*nowhere'. Give a folder, or an id of the hub"):
        with_models(Contents(), [str(tmp_path / "nowhere")])


# --- the labels of a folder -----------------------------------------------------------------------------------------


def test_the_store_is_made_once_and_never_in_the_place_of_a_users_file(demo, tmp_path):
    _, store = opened(UIOptions(str(demo)))
    store.add_labeler("amy")
    assert list(opened(UIOptions(str(demo)))[1].labelers().values()) == [("amy", "labeler")]
    notes = put_model(tmp_path / "mine", labels__db="my notes")
    with pytest.raises(UserError, match="is not an SQLite file"):
        opened(UIOptions(str(notes)))
    assert (notes / "labels.db").read_text() == "my notes"


def test_labels_are_not_written_through_a_link(demo, tmp_path):
    (demo / "labels.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(UserError, match="labels.db' is a link"):
        store_in(demo)
    assert not (tmp_path / "elsewhere.db").exists()


def test_no_command_takes_the_labels_for_its_own(demo):
    """A demo that is run again removes what commands are recorded to have written: labels are people's work."""
    opened(UIOptions(str(demo)))
    assert (demo / "labels.db").is_file() and not (demo / ".rlhf_kit").exists()


def test_a_folder_that_is_misspelt_is_told_its_neighbour(demo):
    with pytest.raises(UserError, match="dmo does not exist. Did you mean 'demo'"):
        opened(UIOptions(str(demo.parent / "dmo")))


# --- who sees it ----------------------------------------------------------------------------------------------------


@pytest.fixture
def contents(tmp_path) -> Contents:
    put(tmp_path / "top" / "ppo <b>", **RUN)
    return replace(contents_of(tmp_path / "top"), models={"sft": Path("sft")})


def test_on_this_machine_alone_nobody_signs_in_to_look(tmp_path, contents):
    for site in served(new_store(tmp_path), contents=contents):
        nobody = site.client()
        assert nobody.get("/").headers["location"] == "/next"
        page = nobody.get("/runs").text
        assert "ppo &lt;b&gt;" in page and 'href="/sign-in"' in page and "/progress" not in page
        assert nobody.get("/rank").headers["location"] == "/sign-in" and "name" in nobody.get("/sign-in").text
        amy = site.labeler("amy")
        assert amy.get("/").headers["location"] == "/next"  # there is nothing to rank
        assert all(f'href="/{name}"' in amy.get("/runs").text for name in ("runs", "progress", "guidelines"))


@pytest.mark.parametrize("options", [{"by_name": False}, {"hosts": ["lab.example"]}])
def test_elsewhere_who_looks_signs_in(tmp_path, contents, options):
    """With --labelers, and by name behind a --public_url."""
    for site in served(new_store(tmp_path), contents=contents, **options):
        nobody = site.client()
        assert nobody.get("/runs").headers["location"] == "/sign-in" and "/runs" not in nobody.get("/").text
        assert site.admin().get("/runs").status == 200


def test_a_store_alone_shows_no_runs(site):
    assert site.client().get("/").status == 200 and "/runs" not in site.labeler("amy").get("/rank").text


def test_the_store_of_a_folder_is_any_others(demo):
    """One that `collect` has put there."""
    open_store(demo / "labels.db", create=True).add_labeler("bob")
    assert list(opened(UIOptions(str(demo)))[1].labelers().values()) == [("bob", "labeler")]
