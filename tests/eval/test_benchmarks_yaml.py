"""The YAMLs in eval/: each is read by its command, which dry-runs without the hub and says so."""

from pathlib import Path

import pytest

from rlhf_kit.cli import main
from rlhf_kit.errors import HubUnreachableError

FILES = sorted((Path(__file__).parents[2] / "eval").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_benchmark_is_read_and_an_unreachable_hub_is_named(path, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def unreachable(*arguments, **options):
        raise HubUnreachableError("the hub is out of reach")

    monkeypatch.setattr("rlhf_kit.data.sources._read_hub", unreachable)
    monkeypatch.setattr("rlhf_kit.eval.runner.pin", lambda *_: None)
    assert main(["eval", path.stem, "--config", str(path), "--dry_run"]) == 0
    assert "cannot be reached: the hub is out of reach" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
