"""Every recipe of a hub model against a hub with what it names: read by the real code, one chain trained and kept."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_kit.data.chat import set_chat_template
from rlhf_kit.models.checkpoints import load_tokenizer
from tests.hub import Commands, Hub
from tests.hub_recipes import CONFIGS, data, serve_recipes
from tests.vllm_server import FakeVLLM

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*/*.yaml"))
RECIPES = [path for path in RECIPES if path.stem in ("pretrain", "sft", "reward", "ppo")]
TRAINED = "qwen2.5-1.5b-lora"
FEW = "--max_steps 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --save_strategy no".split()


def values_of(path):
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def hub(models, tokenizer_folder):
    with Hub() as server:
        serve_recipes(server, load_tokenizer(tokenizer_folder), models)
        yield server


@pytest.fixture(scope="module")
def run(hub, models, tmp_path_factory):
    """Commands where every chain but one has its SFT and reward models."""
    stages = [f"stages.{stage}" for stage in ("pretrain", "sft", "reward", "ppo")]
    commands = Commands(hub.address, tmp_path_factory.mktemp("at the hub"), preloads=stages)
    for path in RECIPES:
        if path.stem == "sft" and path.parent.name != TRAINED:
            stand_in(models / values_of(path)["model_name_or_path"], commands.home / "runs" / path.parent.name)
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def trained(run):
    """What SFT and reward said that made those of that one, from the hub."""
    return {stage: run(stage, "--config", path_of(stage), *FEW) for stage in ("sft", "reward")}


def path_of(stage):
    return next(path for path in RECIPES if path.parent.name == TRAINED and path.stem == stage)


def stand_in(model, folder):
    """What SFT and reward would leave of a model."""
    tokenizer = set_chat_template(load_tokenizer(model))
    for name, kind in (("sft", AutoModelForCausalLM), ("reward", AutoModelForSequenceClassification)):
        options = {} if name == "sft" else {"num_labels": 1, "pad_token_id": tokenizer.eos_token_id}
        kind.from_pretrained(model, **options).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


@pytest.fixture(scope="module")
def sampler(models):
    with FakeVLLM(AutoModelForCausalLM.from_pretrained(models / "Qwen" / "Qwen2.5-1.5B"), context=1024) as server:
        yield server


def test_the_hub_has_what_the_recipes_name():
    named = [values_of(path) for path in RECIPES]
    wanted = {values["model_name_or_path"] for values in named if not values["model_name_or_path"].startswith("runs/")}
    assert wanted == {path.parent.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("config.json")}
    assert {values["dataset_name"] for values in named} == {*data()}


def test_a_chain_from_the_hub(hub, run, trained):
    """SFT and reward trained by their recipes; PPO's is looked at with the others below."""
    told = {}
    for stage, ended in trained.items():
        assert ended.status == 0, ended.said
        told[stage] = json.loads((run.home / "runs" / TRAINED / stage / "run.json").read_text())["config"]
    assert "1 of 12 rows dropped" in " ".join(trained["reward"].said.split())
    commits = {name: repo.refs["main"] for (_, name), repo in hub.repos.items()}
    for stage, name in (("sft", "HuggingFaceH4/no_robots"), ("reward", "trl-lib/ultrafeedback_binarized")):
        assert told[stage]["dataset_name"] == told[stage]["eval_dataset_name"] == f"{name}@{commits[name]}"
    assert told["sft"]["model_name_or_path"] == f"Qwen/Qwen2.5-1.5B@{commits['Qwen/Qwen2.5-1.5B']}"
    made = run.home / "runs" / TRAINED
    assert (made / "sft" / "model.safetensors").exists() and (made / "reward" / "adapter_config.json").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_recipe_dry_runs_with_all_that_it_names(path, run, trained, sampler):
    values, more = values_of(path), []
    if "vllm_url" in values:
        more = ["--vllm_url", sampler.url]
    ended = run(path.stem, "--config", path, *more, "--dry-run", "--output_dir", "runs/new", COLUMNS="300")
    assert ended.status == 0, ended.said
    rows = {"pretrain": "rows", "reward": ": 11 rows"}.get(path.stem, ": 12 rows")
    assert "not checked" not in ended.said and rows in ended.said, ended.said
