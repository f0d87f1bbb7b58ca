"""The script for SLURM on this machine: a launcher for each of two machines; a job that is asked to end goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from tests.stages.test_accelerate import run_of

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "accelerate" / "slurm" / "train.sh"
# As SLURM's: srun starts the command once a machine and hands SIGTERM on; what is put into the queue is noted.
STUBS = {
    "srun": """
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & tasks+=($!); done
trap 'kill -TERM "${tasks[@]}"' TERM
for task in "${tasks[@]}"; do wait "$task"; status=$?; [ $status -gt 128 ] && { wait "$task"; status=$?; }; done
exit $status
""",
    "scontrol": """
[ "$1" = show ] && echo 127.0.0.1 && echo other
[ "$1" = requeue ] && echo "$2" >> "$QUEUE"
exit 0
""",
}


def test_a_job_that_is_asked_to_end_goes_on_to_the_end_of_an_unbroken_run(base, demonstrations, ranks, tmp_path):
    argv = ["--model", base, "--data", demonstrations, "--max_steps", 60, "--save_steps", 1000, "--disable_tqdm"]
    argv += ["--logging_steps", 1]
    argv = [str(word) for word in [*argv, "--per_device_train_batch_size", 2, "--learning_rate", 1e-3]]
    assert ranks("sft", [*argv, "--output_dir", tmp_path / "whole"])[0] == [0, 0]

    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash{body}")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "n[0-1]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    environment = os.environ | job | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "QUEUE": str(tmp_path / "queue"), "CONFIG": "cpu-2",
        "RLHF_KIT_PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }  # fmt: skip
    command, out = ["bash", SCRIPT, "sft", *argv, "--output_dir", tmp_path / "out"], tmp_path / "out"

    def start():
        log = (tmp_path / "log").open("ab")
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)

    first = start()
    metrics = out / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") > 1) and first.poll() is None:
        signal.sigtimedwait([], 0.05)
    first.send_signal(signal.SIGTERM)
    first.wait(timeout=120)
    assert (tmp_path / "queue").read_text() == "4711\n", (tmp_path / "log").read_text()
    assert not (out / "run.json").exists()
    assert start().wait(timeout=300) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "queue").read_text() == "4711\n"  # an end that is one
    assert run_of(out)["resumed_from"] and run_of(out)["engine"]["processes"] == 2
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", out))
    assert all((resumed[name] == weight).all() for name, weight in whole.items())


def test_sbatch_is_told_to_ask_and_to_start_again():
    lines = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--signal=B:TERM@120", "--ntasks-per-node=1", "--open-mode=append"} < {*lines}
