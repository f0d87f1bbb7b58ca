"""`rlhf-kit ppo --rollout_backend vllm`: from the command line, in two processes, refused before a model is loaded."""

import json

import pytest

from rlhf_kit.stages import ppo
from tests.tiny_stages import PPO, QUIET, run_command
from tests.vllm_server import FakeVLLM


@pytest.fixture
def argv_for(base, ranked, tmp_path):
    def build(server, *options):
        argv = ["--model_name_or_path", base, "--dataset_name", ranked, "--output_dir", tmp_path / "out", *PPO, *QUIET]
        argv += ["--rollout_backend", "vllm", "--vllm_url", server.url, "--vllm_sync_dir", tmp_path / "sync"]
        return [*map(str, [*argv, "--temperature", 0.7, "--bf16", "false", *options])]

    return build


@pytest.fixture
def logs(tmp_path):
    return lambda: [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_of_two_processes_hands_over_once_a_rollout(policy, argv_for, ranks, logs):
    with FakeVLLM(policy) as server:
        status, told = ranks("ppo", argv_for(server, "--use_cpu"))
    assert status == [0, 0], told
    assert server.calls.count("POST /collective_rpc") == 2
    prompts = [tuple(body["prompt"]) for body in server.bodies if "stop_token_ids" in body]
    assert len(prompts) == 8 and len({*prompts}) == 8  # each row once
    gaps = [log["rollout/probe_gap"] for log in logs() if "rollout/probe_gap" in log]
    assert len(gaps) == 2 and all(0 < gap <= 1e-4 for gap in gaps)


def test_a_fault_ends_all_processes(policy, argv_for, ranks):
    with FakeVLLM(policy, "old head") as server:
        status, told = ranks("ppo", argv_for(server, "--use_cpu", "--learning_rate", "0.01"))
    assert status == [1, 1] and "old head" in told


def test_a_server_that_is_not_there_is_refused_before_anything_is_written(policy, argv_for, capsys, tmp_path):
    with FakeVLLM(policy) as server:
        assert run_command(ppo, argv_for(server, "--dry_run")) == 0
        assert not any("rpc" in call for call in server.calls)
    capsys.readouterr()
    for options in ((), ("--dry_run",)):
        assert run_command(ppo, argv_for(server, *options)) == 2
        assert "dead server. GET /health failed" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists() and not (tmp_path / "sync").exists()
