"""Commands of the documents that run as processes of their own: servers, and what starts several processes."""

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import torch

from rlhf_kit import cli

ROOT = Path(__file__).parents[1]


def check_started(words, capsys):
    """On a CPU two processes make one plan; what is for GPUs is refused where there are none."""
    if words[words.index("--accelerate") + 1].startswith("cpu"):
        command = [sys.executable, "-m", "rlhf_kit", *words[1:], "--dry_run"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert ended.returncode == 0 and ended.stdout.count(f"Plan of {words[1]}") == 1, ended.stderr
    elif not torch.accelerator.is_available():
        assert cli.main([*words[1:], "--dry_run"]) == 2
        assert "it needs a GPU, and none is visible" in capsys.readouterr().err


def check_labelling(words):
    """The terminal asks nobody here, and ends; the server of the pages says where it is, and answers."""
    command = [sys.executable, "-m", "rlhf_kit", *words[1:], *(("--port", "0") if words[1] in ("ui", "serve") else ())]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment
    ) as run:
        if words[1] == "serve":
            address = run.stdout.readline().split()[0]
            assert b"sft" in urllib.request.urlopen(f"{address}/models", timeout=60).read()
            run.terminate()
            return
        if words[1] == "ui":
            address = re.match(r"https?://[^/]+/", run.stdout.readline())[0]
            if "--public_url" in words:
                assert (
                    address == "https://lab.example/" and sum("/join/" in run.stdout.readline() for _ in range(5)) == 2
                )
            else:
                assert "<!doctype html>" in urllib.request.urlopen(address, timeout=60).read().decode()
            run.terminate()
            return
        said, _ = run.communicate(timeout=120)
    assert run.returncode == 0 and ("left" in said or words[1] == "chat")
