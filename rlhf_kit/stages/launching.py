"""`--accelerate NAME`: the command again, on as many processes as a configuration of accelerate's says.

accelerate's own launcher starts them. What it would silently make something else of is refused before: FSDP and
DeepSpeed on a CPU, more processes than GPUs, several processes of a type that starts one, a key it does not know.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import DistributedType, patch_environment
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.launched import ACCELERATE, is_started
from rlhf_kit.stages.arguments import RunArguments
from rlhf_kit.terminal import complain
from rlhf_kit.training.engines import DEEPSPEED, FSDP, no_accelerator, precision_fault, setting_faults

CONFIGS = Path(__file__).parent / "accelerate"
SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # seconds after which torch kills what SIGTERM did not end
MARGIN = 10  # seconds more than processes give themselves
ENGINES = {DistributedType.FSDP: FSDP, DistributedType.DEEPSPEED: DEEPSPEED}
# One process a device, wrapped in DistributedDataParallel.
REPLICAS = {kind for kind in DistributedType if kind.value.startswith("MULTI_") and kind != DistributedType.MULTI_CPU}


def names() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def launcher(
    words: str, argv: Sequence[str], name: str, again: Callable[[], int], stop_within: float | None = None
) -> Callable[[], int]:
    """What runs the command as the configuration `name` says, and gives its exit status.

    again: the command in this process. stop_within: its option. Raises UserError for a configuration that could not
    be what it says here.
    """
    if is_started():
        raise UserError(
            f"--accelerate {name}: a launcher (accelerate, torchrun, MPI) has started this process already. Leave out "
            "the launcher, or --accelerate."
        )
    path = _file(name)
    config = _read(name, path)
    devices = _visible(config)
    faults = [*_faults(config, devices), *_of_command(words, config)]
    if faults:
        raise UserError(f"--accelerate {name}: {' '.join(faults)}")
    environment = {ACCELERATE: name, **({"ACCELERATE_USE_CPU": "true"} if config.use_cpu else {})}
    if config.distributed_type == DistributedType.NO:
        if config.gpu_ids not in (None, "all"):
            environment["CUDA_VISIBLE_DEVICES"] = str(config.gpu_ids)
        return partial(_here, again, environment)
    if Path.cwd() == Path(__file__).parents[2]:  # a copy of the sources that is not installed
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    seconds = RunArguments.stop_within if stop_within is None else stop_within
    environment[SHUTDOWN] = os.environ.get(SHUTDOWN, str(math.ceil(seconds) + MARGIN))
    options = ["--config_file", path, "--num_processes", str(_processes(config, devices))]
    if config.num_machines == 1 and config.main_process_port is None:
        options += ["--main_process_port", "0"]  # any free one
    options += ["--no_python", sys.executable, "-P", "-m", "rlhf_kit", *words.split(), *argv]
    return partial(_start, options, environment)


def _here(again: Callable[[], int], environment: dict[str, str]) -> int:
    with patch_environment(**environment):
        return again()


def _start(options: list[str], environment: dict[str, str]) -> int:
    """The exit status of the first process that failed, of the signal that ended all, or 0."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # each process says what is wrong
    with patch_environment(**environment):
        try:
            launch_command(launch_command_parser().parse_args(options))
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode > 0:
                return failure.exitcode
            complain(f"Process {rank} was ended by {signal.Signals(-failure.exitcode).name}; SIGKILL: out of memory?")
            return 128 - failure.exitcode
        except SignalException as error:
            return 128 + error.sigval
    return 0


# -- the configuration ---------------------------------------------------------------------------------------------


def _file(name: str) -> str:
    if name in names():
        return str(CONFIGS / f"{name}.yaml")
    if not os.path.isfile(name):
        raise UserError(
            f"--accelerate {name!r}: no configuration of that name, and no such file.{did_you_mean(name, names())} "
            f"Names: {', '.join(names())}."
        )
    return name


def _read(name: str, path: str) -> ClusterConfig:
    try:
        config = load_config_from_file(path)
    except (ValueError, TypeError, AttributeError, OSError, yaml.YAMLError) as error:
        raise UserError(f"--accelerate {name}: accelerate does not read it: {error}") from error
    if not isinstance(config, ClusterConfig):
        raise UserError(f"--accelerate {name}: compute_environment must be LOCAL_MACHINE.")
    return config


def _visible(config: ClusterConfig) -> int:
    """Devices that the processes of this machine may use."""
    devices = torch.cuda.device_count()  # asks the driver: CUDA_VISIBLE_DEVICES may still be set for this process
    if not devices and torch.accelerator.is_available():
        devices = torch.accelerator.device_count()
    ids = [] if config.gpu_ids in (None, "all") else str(config.gpu_ids).split(",")
    there = [one for one in ids if not one.strip().isdecimal() or int(one) < devices]
    return min(len(there), devices) if ids else devices


def _processes(config: ClusterConfig, devices: int) -> int:
    """Of all machines; a configuration that does not say starts one a device."""
    return config.num_processes if config.num_processes > 0 else devices * config.num_machines


def _faults(config: ClusterConfig, devices: int) -> Iterator[str]:
    kind = config.distributed_type
    engine = ENGINES.get(kind)
    if config.mixed_precision not in (None, "no"):
        yield precision_fault(config.mixed_precision)
    if kind == DistributedType.MULTI_CPU:
        yield "distributed_type MULTI_CPU starts a single process without mpirun; cpu-2 shows what starts several."
    elif kind != DistributedType.NO and kind not in REPLICAS and engine is None:
        yield f"distributed_type {kind.value} is not supported."
    else:
        yield from _count_faults(config, devices)
    if engine is not None:
        yield from _unknown_keys(config)
        fsdp = {_whole(name): value for name, value in config.fsdp_config.items()}
        yield from setting_faults(engine, fsdp if engine == FSDP else config.deepspeed_config)
    if engine == DEEPSPEED and find_spec("deepspeed") is None:
        yield "DeepSpeed is not installed: pip install deepspeed."


def _count_faults(config: ClusterConfig, devices: int) -> Iterator[str]:
    kind, processes = config.distributed_type, _processes(config, devices)
    if config.num_machines > 1 and processes % config.num_machines:
        yield f"num_processes {processes} is no multiple of num_machines {config.num_machines}."
    here = processes // config.num_machines
    if kind == DistributedType.NO and processes > 1:
        yield f"distributed_type 'NO' starts one process, and num_processes is {processes}; write MULTI_GPU."
    if config.use_cpu and kind in ENGINES:
        yield f"use_cpu: {no_accelerator(ENGINES[kind])}"
    elif config.use_cpu and kind in REPLICAS and config.num_processes < 1:
        yield "num_processes is missing: on a CPU there is nothing to count."
    elif not config.use_cpu and not devices:
        instead = "with DistributedDataParallel" if kind != DistributedType.NO else "on a CPU"
        yield f"it needs a GPU, and none is visible: accelerate would train {instead} and say nothing. Use cpu, cpu-2."
    elif not config.use_cpu and here > devices:
        yield (
            f"it starts {here} processes on a machine, and GPUs that are visible: {devices}; processes that share one "
            "fail or wait for ever. Leave out num_processes, or make more visible (CUDA_VISIBLE_DEVICES)."
        )
    elif kind in REPLICAS and processes == 1:
        yield "there is one process, and nothing to share with; use single-gpu or cpu."


def _whole(name: str) -> str:
    """A key of fsdp_config as accelerate reads it."""
    return name if name.startswith("fsdp") else f"fsdp_{name}"


def _unknown_keys(config: ClusterConfig) -> Iterator[str]:
    """accelerate drops a key that it does not know, and its default stands."""
    known = {action.dest for action in launch_command_parser()._actions}
    for name in config.fsdp_config:
        if _whole(name) not in known:
            yield f"fsdp_config has no {name}.{did_you_mean(_whole(name), known)}"
    for name in config.deepspeed_config:
        if name not in known:
            yield f"deepspeed_config has no {name}.{did_you_mean(name, known)}"


IN_PIECES = (
    "PPO, RLOO and GRPO sample from whole weights, and ZeRO-3 leaves each process a piece of them; use zero2 or fsdp2."
)


def _of_command(words: str, config: ClusterConfig) -> Iterator[str]:
    if words in ("ppo", "rloo", "grpo") and str(config.deepspeed_config.get("zero_stage")) == "3":
        yield IN_PIECES
