"""`--report_to` a service whose package is missing: one message with the pip line, before anything is loaded."""

import re
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset
from transformers import TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK, TensorBoardCallback
from trl import SFTConfig

from rlhf_kit.errors import UserError
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.trainer import PPOTrainer
from rlhf_kit.reward import RewardConfig, RewardTrainer
from rlhf_kit.sft import SFTTrainer
from rlhf_kit.training import Trainer
from rlhf_kit.training.reports import name_run, refuse_reports, report_table
from tests.tiny_stages import STAGES, run_command


class Missing:
    def __init__(self):
        raise RuntimeError("WandbCallback requires wandb to be installed. Run `pip install wandb`.\nmore")


class Unconfigured:
    def __init__(self):
        raise RuntimeError("DagsHubCallback requires the `MLFLOW_TRACKING_URI` environment variable to be set.")


@pytest.fixture
def services(monkeypatch):
    """Whatever is installed here: two services without their packages, one that is not configured, one that works."""
    for name, callback in {"wandb": Missing, "comet_ml": Missing, "dagshub": Unconfigured, "mlflow": object}.items():
        monkeypatch.setitem(INTEGRATION_TO_CALLBACK, name, callback)


def arguments(cls, tmp_path, *names, **options):
    return cls(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to=list(names), **options)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_a_missing_package_is_told_before_anything_is_read(stage, more, services, tmp_path, capsys):
    argv = ["--model_name_or_path", "./nowhere", "--dataset_name", "./nowhere.jsonl", "--report_to", "wandb", *more]
    argv += ["--reward_funcs", "tests.rewards:brief"] if stage == "ppo" else []
    assert run_command(stage, [*argv, "--output_dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "wandb cannot be used" in said and said.endswith("pip install wandb\n")
    assert not (tmp_path / "out").exists()


def test_all_services_are_told_at_once(services, tmp_path):
    with pytest.raises(UserError) as error:
        refuse_reports(arguments(TrainingArguments, tmp_path, "wandb", "mlflow", "dagshub", "comet_ml", "WandB"))
    said = str(error.value)
    assert "MLFLOW_TRACKING_URI" in said and "'WandB' is not one of" in said and "Did you mean 'wandb'?" in said
    assert said.endswith("pip install wandb comet-ml") and "mlflow cannot" not in said


def test_what_works_is_taken_and_all_stands_alone(services, tmp_path):
    for names in ([], ["mlflow"], ["none"], ["all"]):
        found = arguments(TrainingArguments, tmp_path, *names)
        found.report_to = [name for name in found.report_to if name == "mlflow"]  # of "all" what is installed here
        refuse_reports(found)
    for word in ("all", "none"):
        with pytest.raises(UserError, match=f"'{word}' cannot be combined with others"):
            refuse_reports(arguments(TrainingArguments, tmp_path, word, "mlflow"))


def test_trainers_in_python_refuse_it_too(services, tmp_path, policy, tokenizer):
    rows, told = Dataset.from_list([{"prompt": "a", "completion": "b"}]), "wandb cannot be used.*pip install wandb"
    with pytest.raises(UserError, match=told):
        SFTTrainer("./nowhere", arguments(SFTConfig, tmp_path, "wandb"), train_dataset=rows)
    with pytest.raises(UserError, match=told):
        RewardTrainer("./nowhere", arguments(RewardConfig, tmp_path, "wandb"), train_dataset=rows)
    with pytest.raises(UserError, match=told):
        PPOTrainer("./nowhere", len, arguments(PPOConfig, tmp_path, "wandb"), train_dataset=rows)
    with pytest.raises(UserError, match=told):
        Trainer(policy, arguments(TrainingArguments, tmp_path, "wandb"), train_dataset=rows)


# --- tables: `make test-reports` reads back what the real packages hold ----------------------------------------------

ROWS = [{"step": 4, "prompt": "2 | 3", "completion": "a\nb *c*", "score": 0.5}]


class Table:
    def __init__(self, dataframe):
        self.rows = dataframe.to_dict("records")


class Writer(TensorBoardCallback):
    def __init__(self):
        self.tb_writer, self.texts = self, []

    def add_text(self, *given):
        self.texts.append(given)


def reporting_trainer(*services, callbacks=()):
    return SimpleNamespace(
        args=SimpleNamespace(report_to=list(services)),
        state=SimpleNamespace(global_step=4),
        callback_handler=SimpleNamespace(callbacks=list(callbacks)),
    )


@pytest.mark.parametrize("service, run, sent", [("trackio", None, 1), ("wandb", "a run", 1), ("wandb", None, 0)])
def test_a_table_goes_to_the_services_that_show_tables(service, run, sent, monkeypatch):
    logs = []
    monkeypatch.setitem(sys.modules, service, SimpleNamespace(Table=Table, run=run, log=logs.append))
    report_table(reporting_trainer(service), "completions", ROWS)
    assert [log["completions"].rows for log in logs] == [ROWS] * sent


def test_on_tensorboard_it_is_markdown_in_which_text_is_no_markup():
    writer = Writer()
    report_table(reporting_trainer("tensorboard", callbacks=[writer]), "eval_completions", ROWS)
    lines = ["| step | prompt | completion | score |", "|---|---|---|---|", r"| 4 | 2 \| 3 | a b \*c\* | 0.5 |"]
    assert writer.texts == [("eval_completions", "\n".join(lines), 4)]


def test_a_run_on_trackio_has_a_name(tmp_path):
    for services, given, name in [
        ("trackio", None, r"out-\d{8}-\d{6}"),
        ("trackio", "my", "my"),
        ("none", None, "None"),
    ]:
        args = SimpleNamespace(report_to=[services], run_name=given, output_dir=str(tmp_path / "out"))
        name_run(args)
        assert re.fullmatch(name, str(args.run_name))
