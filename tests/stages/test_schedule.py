"""Optimizers and schedules that could not be made when training begins are refused before anything is loaded."""

from pathlib import Path

import pytest
from transformers import TrainingArguments

from rlhf_kit.errors import UserError
from rlhf_kit.models.checkpoints import load_policy
from rlhf_kit.stages import mlm, ppo, pretrain, reward, sft
from rlhf_kit.training import Trainer
from tests.tiny_stages import run_command

CHECKPOINTING = ["--activation_checkpointing", "--activation_checkpointing_kwargs"]
ASKED = [
    (["--lr_scheduler_kwargs", "x"], "--lr_scheduler_kwargs: got 'x', needs a mapping"),
    (
        [
            "--learning_rate",
            "0",
            "--lr_scheduler_type",
            "cosine_with_min_lr",
            "--lr_scheduler_kwargs",
            '{"min_lr": 1}',
        ],
        "division",
    ),
    (["--optim", "sgd", "--optim_args", "momentum"], "--optim_args 'momentum' should read key=value"),
    (["--optim", "sgd", "--optim_args", "momentum=.9,momentum=.8"], "each key once"),
    (["--optim", "sgd", "--optim_args", "momentum=fast"], "optim_args momentum=fast: could not convert"),
    (["--optim", "sgd", "--optim_args", "nesterov=true"], "Nesterov momentum requires a momentum"),
    (["--optim", "sgd", "--optim_args", "momentum=.9,momentun=.8"], "optim sgd does not support momentun."),
    (["--optim_args", "beta1=0.5"], "does not support beta1. Leave it out; betas, epsilon and decay are options"),
    (["--optim_target_modules", "all-linear"], "--optim_target_modules: optim adamw_torch_fused does not support it"),
    ([*CHECKPOINTING, '{"use_reentrant": "maybe", "debug": 1}'], "use_reentrant, debug must be true or false"),
    ([*CHECKPOINTING, '{"reentrant": true}'], "unexpected keyword argument 'reentrant'"),
    ([*CHECKPOINTING, '{"use_reentrant": true, "x": 1}'], "Unexpected keyword arguments: x"),
    ([*CHECKPOINTING, '{"determinism_check": "x"}'], "determinism_check should be one of"),
    ([*CHECKPOINTING, '{"every_n_layers": 0}'], "every_n_layers must be a whole number, at least 1"),
    ([*CHECKPOINTING[1:], '{"use_reentrant": true}'], " needs activation_checkpointing."),
    (["--gradient_checkpointing", *CHECKPOINTING[:1]], "are two names for one option"),
    (["--gradient_checkpointing_kwargs", "[1]", "--gradient_checkpointing"], "needs a mapping"),
    (["--use_liger_kernel"], "--use_liger_kernel needs a package that is not installed: pip install liger-kernel."),
    (
        ["--liger_kernel_config", '{"rope": true}'],
        "--liger_kernel_config needs --use_liger_kernel".replace("--use", "use"),
    ),
    *(
        ([f"--{name}", value, *(["--fsdp"] if name == "fsdp_config" else [])], f"--{name}: {told}")
        for name in ("accelerator_config", "fsdp_config", "deepspeed")
        for value, told in (
            ("missing.json", "got 'missing.json', needs a mapping"),
            ("list.json", "'list.json' holds a list"),
            ("cut.json", "got 'cut.json', needs a mapping"),
            ("{cut", "'{cut' is not JSON"),
            (".", "got '.', needs a mapping"),
        )
    ),
    (["--accelerator_config", '{"split_batchez": true}'], "nothing reads 'split_batchez'"),
    (["--accelerator_config", "odd.json"], 'split_batches: got "maybe", needs true or false'),
    (["--accelerator_config", '{"gradient_accumulation_kwargs": {"num_steps": 2}}'], "--gradient_accumulation_steps"),
    (["--accelerator_config", '{"gradient_accumulation_kwargs": {"steps": 2}}'], "nothing reads 'steps'"),
    (["--fsdp_config", '{"fsdp_version": 2}'], "--fsdp_config needs --fsdp."),
    (["--fsdp", "--fsdp_config", '{"fsdp_versoin": 2}'], "nothing reads 'versoin'"),
    (["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"min_lr": 1e-6}'], "unexpected keyword argument"),
    (["--lr_scheduler_type", "cosine_with_min_lr"], "One of min_lr or min_lr_rate should be set"),
    (["--optim", "stable_adamw"], "--optim stable_adamw: You need to install `torch-optimi`"),
    (["--optim", "grokadamw"], "--optim grokadamw: Please install grokadamw"),
    (["--bf16", "--fp16"], "--bf16 and --fp16 cannot be combined"),
    (["--save_steps", "0"], "save_steps=0.0 must be above 0"),
]


@pytest.mark.parametrize("options,told", ASKED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_made_is_told_first(options, told, tmp_path, monkeypatch, capsys):
    """Before the model and the data are looked for, in every stage; a dry run is as the run."""
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[1]")
    Path("cut.json").write_text("{")
    Path("odd.json").write_text('{"split_batches": "maybe"}')
    argv = [
        "--model_name_or_path",
        "./nowhere",
        "--dataset_name",
        "nowhere.jsonl",
        "--output_dir",
        str(tmp_path / "x"),
    ]
    for at, stage in enumerate((pretrain, mlm, sft, reward, ppo)):
        more = ["--reward_funcs", "tests.rewards:brief"] if stage is ppo else []
        assert run_command(stage, [*argv, *options, *more, *(["--dry-run"] if at % 2 else [])]) == 2, stage
        assert told in capsys.readouterr().err and not (tmp_path / "x").exists(), stage


def test_a_trainer_in_python_refuses_what_its_optimizer_does_not_read(base, tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", optim="sgd", optim_args="momentun=0.9")
    args.activation_checkpointing_kwargs = {"every_n_layers": 2}
    with pytest.raises(UserError, match=r"does not support momentun.*; activation_checkpointing_kwargs .* needs"):
        Trainer(load_policy(base), args)


def test_what_can_is_left_alone(base, texts, tmp_path):
    argv = ["--model_name_or_path", str(base), "--dataset_name", str(texts), "--output_dir", str(tmp_path / "out")]
    argv += ["--max_steps", "2", "--lr_scheduler_type", "cosine_with_min_lr", "--optim", "sgd", "--disable_tqdm"]
    argv += ["--optim_args", "momentum=0.9,nesterov=true", *CHECKPOINTING, '{"every_n_layers": 2, "offload": false}']
    (tmp_path / "accelerate.json").write_text('{"even_batches": false}')
    argv += ["--accelerator_config", str(tmp_path / "accelerate.json")]
    assert run_command(pretrain, [*argv, "--lr_scheduler_kwargs", '{"min_lr": 1e-6}', "--block_size", "32"]) == 0
