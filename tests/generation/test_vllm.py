"""Rollouts by a vLLM server: its schema, the proof after every hand-over, and every fault by its name."""

import asyncio
import pickle
import time

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from rlhf_kit.errors import UserError
from rlhf_kit.generation.vllm.backend import VLLMBackend, check_server, seeds_of
from rlhf_kit.generation.vllm.client import Server, VLLMError
from rlhf_kit.generation.vllm.probe import texts_of
from rlhf_kit.models.adapters import wrap
from rlhf_kit.models.merging import merged
from rlhf_kit.models.preflight import alone
from tests.vllm_server import FakeVLLM

PROMPTS = [[5, 6, 7], [9], [4] * 20, [9]]
LONGEST, T = 12, 0.7
ENDS = [*range(60)]


@pytest.fixture
def backend_of(policy, tmp_path):
    def make(server, timeout=60.0, **options):
        asked = {"vocabulary": policy.config.vocab_size, "longest": 60, "temperature": T}
        server = check_server(server.url, timeout, *asked.values())
        return VLLMBackend(server, tmp_path / "sync", **{"bound": None} | asked | options)

    return make


def rollout_of(backend, policy, **options):
    options = {"generator": torch.Generator().manual_seed(0), "temperature": T} | options
    return backend(policy, PROMPTS, eos_ids=ENDS, pad_id=0, max_completion_length=LONGEST, **options)


@torch.no_grad()
def move(policy, names=""):
    """An optimizer step, of a kind."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in policy.named_parameters():
        if names in name and parameter.requires_grad:
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def test_completions_and_log_probs_are_those_of_the_policy_after_every_step(policy, backend_of):
    with FakeVLLM(policy) as server:
        backend = backend_of(server)
        for _ in range(3):
            rollout = rollout_of(backend, policy)
            assert backend.gap < 1e-5
            for prompt, tokens, told in zip(PROMPTS, rollout.completions(), rollout.logprobs, strict=True):
                logits = alone(policy, prompt + tokens)[len(prompt) - 1 : -1] / T
                expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
                torch.testing.assert_close(told[: len(tokens)], expected, atol=1e-5, rtol=0)
            move(policy)
    ended = [tokens[-1] in ENDS for tokens in rollout.completions()]
    assert rollout.terminated.tolist() == ended and len({*rollout.completion_lengths.tolist()}) > 1
    assert rollout.values is None and rollout.completion_ids[1].tolist() != rollout.completion_ids[3].tolist()


def test_a_request_asks_for_the_whole_softmax_and_the_ends_of_the_policy(policy, backend_of):
    with FakeVLLM(policy) as server:
        first = rollout_of(backend_of(server), policy)
        again = rollout_of(backend_of(server), policy)
    body = server.bodies[-1]
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    neutral |= {"frequency_penalty": 0.0, "ignore_eos": True, "stop_token_ids": ENDS, "temperature": T}
    assert neutral.items() <= body.items() and body["max_tokens"] == LONGEST
    assert torch.equal(first.completion_ids, again.completion_ids)  # seeds are those of the generator


def test_a_rows_seed_is_made_of_its_own_numbers():
    uniforms = torch.tensor([[0.5, 0.3, 0.0], [0.0, 0.3, 0.25], [1 - 2**-24, 0.0, 1 - 2**-24]])
    assert seeds_of(uniforms) == [2**47, 2**22, 2**48 - 1]


def test_texts_of_the_probe_are_as_long_as_the_rows_of_the_run():
    assert [len(text) for text in texts_of(300, 88)] == [10, 20, 30, 40, 50, 60, 70, 80]
    assert [len(text) for text in texts_of(300, 4)] == [2] * 8  # the least of which a log-prob can be read


# --- what real servers do wrong -------------------------------------------------------------------------------------


FAULTS = {
    "old head": "the new body under the old output embeddings",
    "old weights": "handed over before",
    "stale cache": "Where nothing is cached they are right",
    "raw log-probs": "Serve with --logprobs-mode processed_logprobs",
    "wrong temperature": "They are those of temperature 0.91, and the run's is 0.7",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_log_probs_that_are_not_the_policys_end_the_run_by_name(policy, backend_of, fault):
    with FakeVLLM(policy, fault) as server:
        backend = backend_of(server)
        with pytest.raises(VLLMError, match=f"vLLM at {server.url}: {fault}.*{FAULTS[fault]}") as error:
            for _ in range(2):
                rollout_of(backend, policy)
                move(policy)
    assert error.value.fault == fault and error.value.status == 1


def test_other_weights_and_an_unknown_distribution_are_told_apart(policy, backend_of):
    with FakeVLLM(policy, "old weights") as server:
        move(policy, "h.0")
        with pytest.raises(VLLMError, match="other weights.*Serve the model that the run starts from"):
            rollout_of(backend_of(server), policy)
    with FakeVLLM(policy, "top-k") as server, pytest.raises(VLLMError, match="another distribution.*not its softmax"):
        rollout_of(backend_of(server), policy)


@pytest.mark.parametrize(
    "fault, name",
    [
        ("dead", "dead server. POST /v1/completions failed: .* --resume_from_checkpoint"),
        ("dead at hand-over", "dead server. POST /"),
        ("slow", "slow server. .* raise vllm_timeout"),
        ("stuck", "slow server. POST /pause.* has no answer after 1 s"),
        ("broken", "a failing server. POST /v1/completions was answered 500: KeyError: 'broken'"),
        ("busy cache", "stale cache. It did not forget"),
        ("cut off", "a broken completion. It has 1 tokens of at most 12"),
        ("silent", "not vLLM. .* lacks `token_ids`"),
    ],
)
def test_a_server_that_fails_ends_the_run_by_name(policy, backend_of, fault, name):
    with FakeVLLM(policy) as server:
        backend = backend_of(server)
        rollout_of(backend, policy)
        server.faults.add(fault)
        backend.server.timeout = 1.0 if fault in ("slow", "stuck") else 60.0
        with pytest.raises(VLLMError, match=name):
            rollout_of(backend, policy)
    assert not server.is_paused or fault in ("dead at hand-over", "stuck")


def test_the_first_failure_ends_the_calls_beside_it(policy):
    """A slow row does not keep a run that is lost."""
    with FakeVLLM(policy, "slow prompt") as server:
        client = Server(server.url, 300.0)
        bodies = [{"model": "base", "prompt": prompt, "max_tokens": 1} for prompt in ([1, 1], [9999])]
        began = time.monotonic()
        with pytest.raises(VLLMError, match="a refused request. .* 400: Token id 9999 is out of vocabulary."):
            client.complete(bodies)
        assert time.monotonic() - began < 200


def test_an_error_reaches_other_processes_as_it_is():
    error = pickle.loads(pickle.dumps(VLLMError("http://a", "old head", "Why.")))
    assert str(error) == "vLLM at http://a: old head. Why." and error.fault == "old head"


def test_a_notebook_may_have_a_loop_of_its_own(policy):
    async def cell(url):
        return Server(url, 60.0).model()

    with FakeVLLM(policy) as server:
        assert asyncio.run(cell(server.url)) == ("base", 128)


# --- before anything is loaded --------------------------------------------------------------------------------------


def test_a_server_that_cannot_serve_the_run_is_refused_before_it_begins(policy):
    size = policy.config.vocab_size
    with FakeVLLM(policy, logprobs="raw_logprobs") as server:
        check_server(server.url, 60.0, size, 128, 1.0)  # at temperature 1 they are the same
        for asked, name in {
            (size, 129, 1.0): "a short context. It reads 128 tokens at once, the longest row of this run has 129",
            (
                size + 1,
                60,
                1.0,
            ): f"another vocabulary. Its model 'base' does not have .* last token, {size}: .* out of vocabulary",
            (size, 60, 0.5): "raw log-probs. It tells raw_logprobs",
        }.items():
            with pytest.raises(VLLMError, match=name) as error:
                check_server(server.url, 60.0, *asked)
            assert error.value.status == 2
        gone = server.url
    with pytest.raises(VLLMError, match="dead server. GET /health failed: .* `vllm serve`"):
        check_server(gone, 60.0, size, 60, 1.0)
    with pytest.raises(UserError, match="vllm_url='http://a:b': .* Give a URL as http://localhost:8000"):
        check_server("http://a:b", 60.0, size, 60, 1.0)


def test_a_server_without_the_paths_or_with_a_key_says_what_to_set(policy, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with FakeVLLM(policy, "no rpc") as server, pytest.raises(VLLMError, match="no such path.*VLLM_SERVER_DEV_MODE=1"):
        check_server(server.url, 60.0, 300, 60, 1.0)
    with FakeVLLM(policy, "key") as server:
        with pytest.raises(VLLMError, match="no access.*Set VLLM_API_KEY"):
            check_server(server.url, 60.0, policy.config.vocab_size, 60, 1.0)
        monkeypatch.setenv("VLLM_API_KEY", "secret")
        check_server(server.url, 60.0, policy.config.vocab_size, 60, 1.0)


def test_a_proxy_of_the_environment_is_not_asked(policy, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with FakeVLLM(policy) as server:
        assert Server(server.url, 60.0).model() == ("base", 128)


# --- the folder between them ----------------------------------------------------------------------------------------


def test_weights_are_handed_over_whole_and_the_last_two_are_kept(policy, backend_of, tmp_path):
    (tmp_path / "sync").mkdir()
    (tmp_path / "sync" / "mine.txt").write_text("mine")
    with FakeVLLM(policy) as server:
        backend = backend_of(server)
        for _ in range(3):
            rollout_of(backend, policy)
            move(policy)
        (home,) = (path for path in (tmp_path / "sync").iterdir() if path.is_dir())
        assert [path.name for path in sorted(home.iterdir())] == [f"{home.name}-2", f"{home.name}-3"]
        files = {
            name: value
            for file in (home / f"{home.name}-3").glob("*.safetensors")
            for name, value in load_file(file).items()
        }
        assert torch.equal(files["lm_head.weight"], files["transformer.wte.weight"])
        assert home.stat().st_mode & 0o777 == 0o755
    assert server.calls.count("POST /pause") == server.calls.count("POST /resume") == 3
    del backend
    assert [path.name for path in (tmp_path / "sync").iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_is_refused(policy, backend_of, tmp_path):
    (tmp_path / "sync").write_text("a file")
    with FakeVLLM(policy) as server, pytest.raises(UserError, match="vllm_sync_dir=.* cannot be written into"):
        rollout_of(backend_of(server), policy)


@pytest.mark.parametrize("adapters", [True, False])
def test_an_adapter_goes_over_alone_or_merged(policy, backend_of, adapters):
    with FakeVLLM(policy, adapters=adapters) as server:
        lora, backend = wrap(policy, LoraConfig(r=4)), backend_of(server)
        for _ in range(3):
            rollout = rollout_of(backend, lora)
            assert backend.gap < 1e-5
            move(lora)
    names = [body["model"] for body in server.bodies if "stop_token_ids" in body]
    assert len({*names}) == (3 if adapters else 1) and len(server.adapters) == adapters
    assert ("POST /collective_rpc" in server.calls) is not adapters
    assert rollout.completion_lengths.min() >= 1 and merged(lora) is not None
