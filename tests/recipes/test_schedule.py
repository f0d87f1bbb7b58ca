"""Optimizers and schedules that could not be made when training begins are refused before anything is loaded."""

import pytest

from rlhf_kit.recipes import pretrain, sft

ASKED = [
    (["--lr_scheduler_kwargs", "x"], " with lr_scheduler_kwargs x: "),
    (["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"min_lr": 1e-6}'], "unexpected keyword argument"),
    (["--lr_scheduler_type", "cosine_with_min_lr"], "One of min_lr or min_lr_rate should be set"),
    (["--optim", "stable_adamw"], "--optim stable_adamw: You need to install `torch-optimi`"),
    (["--optim", "grokadamw"], "--optim grokadamw: Please install grokadamw"),
    (["--bf16", "--fp16"], "--bf16 and --fp16 are two answers to the same question"),
    (["--save_steps", "0"], "--save_steps=0.0 must be above 0"),
]


@pytest.mark.parametrize("options,told", ASKED, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("stage", [pretrain, sft])
def test_what_cannot_be_made_is_told_first(stage, options, told, tmp_path, capsys):
    argv = [
        "--model_name_or_path",
        "./nowhere",
        "--dataset_name",
        "nowhere.jsonl",
        "--output_dir",
        str(tmp_path / "x"),
    ]
    assert stage.main([*argv, *options]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_what_can_is_left_alone(base, texts, tmp_path):
    argv = ["--model_name_or_path", str(base), "--dataset_name", str(texts), "--output_dir", str(tmp_path / "out")]
    argv += ["--max_steps", "2", "--lr_scheduler_type", "cosine_with_min_lr", "--optim", "adafactor", "--disable_tqdm"]
    assert pretrain.main([*argv, "--lr_scheduler_kwargs", '{"min_lr": 1e-6}', "--block_size", "32"]) == 0
