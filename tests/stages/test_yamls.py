"""Every YAML of a recipe: it loads, and its dry run passes and says what it could not reach."""

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from rlhf_kit import world
from rlhf_kit.stages import pretrain
from tests.tiny_stages import METHODS, STAGES, run_command

STAGES_FOLDER = Path(pretrain.__file__).parent
HOMES = [Path(__file__).parents[2] / "recipes", STAGES_FOLDER / "recipes"]  # by path, by name
SIZES = ("gpt2-medium", "gpt2-large", "gpt2-xl")
FOLDERS = {"gpt2": 8, "gpt2-lora": 4, "world": 13, **{f"{size}{kind}": 3 for size in SIZES for kind in ("", "-lora")}}
FOLDERS |= {"qwen2.5-1.5b-lora": 3, "qwen3-8b-lora": 3}
STAGE = re.compile("|".join([*STAGES, *METHODS]))
# What `compare-methods` reads is tried where the others of its kind are.
RECIPES = sorted(path for home in HOMES for path in home.rglob("*.yaml") if path.stem != "compare-methods")


def name(path):
    return f"{path.parent.name}/{path.name}"


def test_how_many_there_are():
    assert Counter(path.parent.name for path in RECIPES) == FOLDERS


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_loads_and_dry_runs(path, tmp_path, monkeypatch, capsys):
    stage = STAGE.match(path.stem)[0]
    if path.parent.name == "world" and stage != "pretrain" and not (world.BASE / "config.json").is_file():
        pytest.skip("the base model is not made yet")
    monkeypatch.chdir(tmp_path)  # where no earlier stage has written anything
    monkeypatch.setenv("COLUMNS", "300")
    out = tmp_path / "out"
    few = ["--max_train_samples", "200", "--max_eval_samples", "20"]
    assert run_command(stage, ["--config", str(path), "--output_dir", str(out), "--dry-run", *few]) == 0
    said = capsys.readouterr().out
    assert f"Plan of {stage}" in said
    assert not list(tmp_path.iterdir())
    if path.parent.name != "world":
        assert "not checked" in said and yaml.safe_load(path.read_text())["model_name_or_path"] in said


@pytest.mark.parametrize("path", [path for path in RECIPES if path.parent.name != "world"], ids=name)
def test_a_header_says_what_how_and_where(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    command = f"rlhf-kit {path.stem} --config recipes/{name(path)}"
    assert command in text and "Meant for" in text and "Not run on this project's machines" in text
    values = yaml.safe_load(path.read_text())
    assert isinstance(values["learning_rate"], float), "write 2.0e-5: YAML reads 2e-5 as text"
    assert values["output_dir"] == f"runs/{path.parent.name}/{path.stem}"


@pytest.mark.parametrize(
    "file, kind, processes, cpu",
    [("cpu", "NO", 1, True), ("cpu-2", "MULTI_GPU", 2, True), ("single-gpu", "NO", 1, False),
     *((name, kind, -1, False) for name, kind in (  # as many as there are GPUs
         ("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("fsdp2-offload", "FSDP"), ("zero2", "DEEPSPEED"),
         ("zero3", "DEEPSPEED"),
     ))],
)  # fmt: skip
def test_launch_configs_do_what_their_names_say(file, kind, processes, cpu):
    config = load_config_from_file(str(STAGES_FOLDER / "accelerate" / f"{file}.yaml"))
    assert str(config.distributed_type.value) == kind
    assert config.num_processes == processes and config.use_cpu == cpu
    assert config.mixed_precision == "no"  # the recipe decides
