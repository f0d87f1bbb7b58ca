"""Stages run by several processes of this machine, as a launcher starts them; the imports are made once.

A line of standard input is [stage, SIGTERM, FSDP2, processes, log, arguments]; the answer, the exit status of each.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

from forked import forked

ROOT = Path(__file__).parents[1]


class Ranks:
    """ranks("sft", argv, 2) -> (exit status of each process, what they said).

    sigterm: (event, step, process): at this event of the trainer the process gets SIGTERM. pieces: under FSDP2.
    """

    def __init__(self, folder: Path):
        self.log = folder / "ranks.txt"
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, cwd=ROOT,
        )  # fmt: skip

    def __call__(
        self, stage: str, argv: list, count: int = 2, sigterm: tuple[str, int, int] | None = None, pieces: bool = False
    ) -> tuple[list[int], str]:
        self.log.write_bytes(b"")
        given = [stage, sigterm, pieces, count, str(self.log), list(map(str, argv))]
        print(json.dumps(given), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline()), self.log.read_text(errors="replace")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def launched(script: str, *given) -> str:
    """What two processes of `python script ...` said, as torch's launcher starts them."""
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--rdzv-backend=c10d"]
    launch += ["--rdzv-endpoint=localhost:0", script, *map(str, given)]
    paths = os.pathsep.join([str(ROOT / "tests"), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, *launch], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run(main, count: int, log: str, argv: list[str]) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        forked(main, argv, Path(log), here | {"RANK": rank, "LOCAL_RANK": rank}) for rank in map(str, range(count))
    ]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def ranked(stage: str, sigterm: list | None, pieces: bool, argv: list[str]) -> int:
    """A stage as one of several processes."""
    if pieces:
        pieces_cpu.real_fsdp()
    if sigterm is not None:
        interrupts.become("rlhf-kit")
        event, step, rank = sigterm
        hear = getattr(MetricsFile, event)

        def and_ask(self, args, state, control, **options):
            hear(self, args, state, control, **options)
            if (state.global_step, args.process_index) == (step, rank):
                os.kill(os.getpid(), signal.SIGTERM)

        setattr(MetricsFile, event, and_ask)
    return run_command(stage, argv)


if __name__ == "__main__":
    import pieces_cpu
    from tiny_stages import run_command

    from rlhf_kit.stages.output import MetricsFile
    from rlhf_kit.terminal import interrupts

    for line in sys.stdin:
        stage, sigterm, pieces, *asked = json.loads(line)
        sys.stdout.write(json.dumps(run(partial(ranked, stage, sigterm, pieces), *asked)) + "\n")
        sys.stdout.flush()
