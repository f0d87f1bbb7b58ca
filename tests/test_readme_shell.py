"""The commands of README and the tour as a newcomer types them: bash with nothing of ours in it, `.venv` activated."""

import os
import shlex
import subprocess
import sys

import pytest

from rlhf_kit.cli.commands import STAGES
from tests.test_readme import PAGES, README, TOUR, commands, models_of, place, tiny_config  # noqa: F401 (fixtures)

pytestmark = pytest.mark.timeout(600)


def typed(*paths) -> list[str]:
    """Those of the kit and of accelerate. What makes the environment and the demo have tests of their own."""
    found = []
    for command in commands(*paths):
        words = shlex.split(command)
        wants_gpus = "--accelerate" in words and not words[words.index("--accelerate") + 1].startswith("cpu")
        if words[0] in ("rlhf-kit", "accelerate") and words[1] not in ("demo", "ui", "serve") and not wants_gpus:
            found.append(command)
    return found


def test_both_languages_type_the_same():
    assert typed(README, TOUR) == typed(PAGES[README], PAGES[TOUR]) and len(typed(README, TOUR)) > 20


@pytest.mark.parametrize("command", typed(README, TOUR))
def test_a_command_in_a_fresh_shell(command, place, tmp_path):  # noqa: F811
    words = shlex.split(command)
    place(models_of(words))
    if words[1] == "doctor":
        (tmp_path / words[2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / words[2] / "metrics.jsonl").write_text('{"step": 1, "kl": 0.1, "reward": 0.2, "loss": 0.3}\n')
    trains = words[0] == "accelerate" or words[1] in STAGES
    if trains and "--help" not in words and "--dry_run" not in words:
        command += " --dry_run"  # from the hub's GPT-2 it would take hours
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    typed_in = f"source .venv/bin/activate\n{command}\n"
    shell = ["bash", "--noprofile", "--norc", "-e"]
    ended = subprocess.run(shell, input=typed_in, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr and "\r" not in ended.stdout + ended.stderr
