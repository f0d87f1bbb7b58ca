"""`--accelerate`: what a configuration names is what trains, or it is refused; processes end as one would."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rlhf_kit.cli import main
from rlhf_kit.cli.commands import COMMANDS, STAGES
from rlhf_kit.errors import UserError
from rlhf_kit.options.declared import declared_in_source
from rlhf_kit.sft import SFTConfig
from rlhf_kit.stages import launching, sft
from rlhf_kit.training.engines import refuse_other_engine
from tests import pieces_cpu
from tests.ranks import launched
from tests.stages.test_yamls import STAGES_FOLDER
from tests.tiny_stages import QUIET

NAMES = ["cpu", "cpu-2", "ddp", "fsdp2", "fsdp2-offload", "single-gpu", "zero2", "zero3"]
FSDP = {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT"}}
ZERO = {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}}
DDP = {"distributed_type": "MULTI_GPU"}


@pytest.fixture
def argv(base, demonstrations, tmp_path):
    argv = ["sft", "--model", base, "--data", demonstrations, "--output", tmp_path / "out", "--max_steps", 2, *QUIET]
    return [str(word) for word in argv]


@pytest.fixture
def refused(argv, tmp_path, capsys, monkeypatch):
    """refused(config, gpus, more) -> what is said; a mapping is a YAML of the user's own."""

    def refused(config, gpus=2, more=()):
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
        if isinstance(config, dict):
            (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
            config = str(tmp_path / "my.yaml")
        assert main([*argv, "--accelerate", config, *more]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    return refused


def test_every_command_that_trains_has_the_option():
    having = [
        words for words, one in COMMANDS.items() if "accelerate" in declared_in_source(one.options.values()).options
    ]
    assert sorted(having) == sorted([*STAGES, "plan", "eval extractive", "eval transfer"])


def test_the_configurations_are_there_for_accelerate_too():
    assert launching.names() == NAMES
    recipes = STAGES_FOLDER.parents[1] / "recipes" / "accelerate"
    assert recipes.resolve() == launching.CONFIGS.resolve()
    for name in NAMES:
        header = "\n".join(re.findall("^# .*", (recipes / f"{name}.yaml").read_text(), re.MULTILINE))
        assert all(word in header for word in (f"# {name}: ", "--accelerate " + name, "Needs:", "Changes:"))
        assert f"--config_file recipes/accelerate/{name}.yaml" in header


@pytest.mark.parametrize("name", [name for name in NAMES if "cpu" not in name])
def test_without_a_gpu_no_configuration_of_gpus_starts(name, refused):
    said = refused(name, gpus=0)
    assert f"--accelerate {name}: it needs a GPU, and none is visible: accelerate would train" in said


@pytest.mark.parametrize(
    "config, gpus, message",
    [
        ("cpu-3", 0, "no configuration of that name, and no such file. Did you mean 'cpu-2'"),
        (FSDP | {"use_cpu": True, "num_processes": 2}, 2, "FSDP was asked for, and accelerate starts it on GPUs"),
        (ZERO | {"use_cpu": True, "num_processes": 2}, 2, "DeepSpeed was asked for, and accelerate starts it on GPUs"),
        (DDP | {"num_processes": 8}, 2, "starts 8 processes on a machine, and GPUs that are visible: 2"),
        (DDP | {"num_processes": 2, "gpu_ids": "0,7"}, 2, "GPUs that are visible: 1"),
        (DDP | {"num_processes": 6, "num_machines": 2}, 2, "starts 3 processes on a machine"),
        (DDP | {"num_processes": 3, "num_machines": 2}, 2, "no multiple of num_machines 2"),
        (DDP, 1, "there is one process, and nothing to share with; use single-gpu"),
        (DDP | {"use_cpu": True}, 2, "num_processes is missing"),
        ({"distributed_type": "NO", "num_processes": 2}, 2, "'NO' starts one process, and num_processes is 2"),
        ({"distributed_type": "MULTI_CPU", "num_processes": 2}, 0, "MULTI_CPU starts a single process without mpirun"),
        ({"distributed_type": "XLA", "num_processes": 2}, 2, "distributed_type XLA is not supported"),
        (FSDP | {"fsdp_config": {}}, 2, "fsdp_version 1: only FSDP2 is supported; write fsdp_version: 2"),
        (FSDP | {"fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}, 2, "written whole"),
        (FSDP | {"fsdp_config": {"fsdp_versoin": 2}}, 2, "no fsdp_versoin. Did you mean 'fsdp_version'?"),
        (ZERO | {"deepspeed_config": {"zero_stgae": 2}}, 2, "no zero_stgae. Did you mean 'zero_stage'?"),
        (ZERO | {"deepspeed_config": {"gradient_accumulation_steps": 4}}, 2, "give --gradient_accumulation_steps"),
        (ZERO | {"deepspeed_config": {"gradient_clipping": 1.0}}, 2, "leave it out, and give --max_grad_norm"),
        (ZERO | {"deepspeed_config": {"zero_stage": 3}}, 2, "write zero3_save_16bit_model: true"),
        (DDP | {"mixed_precision": "bf16"}, 2, "mixed_precision bf16 in accelerate's configuration: the precision is"),
        ({"distributed_type": "NO", "shards": 2}, 2, "accelerate does not read it: The config file at"),
        ({"distributed_type": "SIX"}, 2, "accelerate does not read it: 'SIX' is not a valid DistributedType"),
        ({"num_processes": 2}, 2, "accelerate does not read it: A `distributed_type` must be specified"),
    ],
)  # fmt: skip
def test_what_would_silently_be_something_else_is_refused(config, gpus, message, refused):
    assert message in refused(config, gpus)


def test_deepspeed_that_is_not_there_and_ppo_in_pieces_are_named(refused, argv, monkeypatch):
    monkeypatch.setattr(launching, "find_spec", lambda name: None)
    assert "DeepSpeed is not installed: pip install deepspeed" in refused("zero2")
    argv[0] = "ppo"
    assert "sample from whole weights" in refused("zero3", more=["--reward_funcs", "tests.rewards:brief"])


def test_a_mistake_of_the_options_comes_first(refused):
    assert refused("ddp", more=["--max_stpes", "3"]).startswith("rlhf-kit sft: --max_stpes: no such option.")


def test_a_process_of_a_launcher_starts_no_others(refused, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "a launcher (accelerate, torchrun, MPI) has started this process already" in refused("ddp")


def test_python_is_told_that_it_starts_none(argv, tmp_path):
    given = dict(zip(("model", "data", "output"), argv[2:7:2], strict=True))
    with pytest.raises(UserError, match="accelerate='ddp' is for a command line"):
        sft.start({**given, "accelerate": "ddp", "max_steps": 1})
    assert not (tmp_path / "out").exists()


# --- launched by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP was asked for, and accelerate starts it on GPUs"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version 1: only FSDP2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "written whole"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed_precision bf16 in accelerate's configuration"),
    ],
)
def test_an_engine_that_a_launcher_cannot_start_is_refused_in_its_processes(variables, message, monkeypatch, tmp_path):
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    refuse_other_engine(args)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        refuse_other_engine(args)


def test_the_precision_of_the_launch_may_be_the_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    refuse_other_engine(SFTConfig(str(tmp_path), use_cpu=True, bf16=True, report_to="none"))


# --- started for real -----------------------------------------------------------------------------------------------


def started(argv, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlhf_kit", *argv]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path)


def run_of(folder):
    return json.loads((folder / "run.json").read_text())


def test_one_process_needs_no_launcher(argv, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)  # which the configuration does not want
    assert main([*argv, "--accelerate", "cpu"]) == 0
    assert run_of(tmp_path / "out")["engine"]["name"] == "none"
    assert "Engine 引擎: none, 1 process, cpu, float32 weights\n" in capsys.readouterr().err
    assert not {"ACCELERATE_USE_CPU", "RLHF_KIT_ACCELERATE"} & {*os.environ}


def test_sigterm_reaches_every_process(argv, tmp_path):
    argv[argv.index("--max_steps") + 1] = "100000"
    run = started([*argv, "--save_steps", "100000", "--accelerate", "cpu-2"], tmp_path)
    metrics = tmp_path / "out" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") > 1) and run.poll() is None:
        signal.sigtimedwait([], 0.1)
    run.send_signal(signal.SIGTERM)
    said = run.communicate(timeout=120)[1]
    assert run.returncode == 143, said
    assert said.count("Stopped by SIGTERM 收到 SIGTERM，已停止. checkpoint-") == 1 and "Traceback" not in said
    assert re.search(r"To resume 接續訓練: rlhf-kit sft .* --accelerate cpu-2 --resume_from_checkpoint\n", said)


@pytest.mark.parametrize("ending, status", [("sys.exit(2)", 2), ("os.kill(os.getpid(), 9)", 137)])
def test_the_status_of_a_process_is_the_commands(ending, status, capsys):
    kept = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    }
    options = ["--config_file", str(launching.CONFIGS / "cpu-2.yaml"), "--main_process_port", "0", "--no_python"]
    try:
        assert launching._start([*options, sys.executable, "-c", f"import os, sys; {ending}"], {}) == status
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    said = capsys.readouterr().err
    assert ("SIGKILL: out of memory?" in said) == (status == 137) and "Traceback" not in said


def test_two_processes_train_and_one_speaks_fsdp2_takes_the_steps_of_ddp(argv, tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    place = argv.index("--output") + 1
    argv[place] = str(whole)
    said = started([*argv, "--accelerate", "cpu-2"], tmp_path).communicate(timeout=300)[1]
    engine = {"name": "DDP", "processes": 2, "device": "cpu", "weights": "float32", "mixed_precision": "no"}
    assert run_of(whole)["engine"] == engine, said
    assert said.count("Engine 引擎: DDP, 2 processes, cpu, float32 weights\n") == 1
    argv[place] = str(pieces)
    launched(pieces_cpu.__file__, *argv)
    assert run_of(pieces)["engine"] == engine | {"name": "FSDP2"}
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, pieces))
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, atol=1e-6, rtol=1e-5)
