import json

import pytest

from tests.ranks import Ranks
from tests.tiny_stages import PPO, QUIET, STAGES, run_command


@pytest.fixture
def write_jsonl(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def texts(write_jsonl):
    return write_jsonl("texts.jsonl", [{"text": f"the cat {i} sat on the mat {i * i}"} for i in range(60)])


@pytest.fixture
def demonstrations(write_jsonl):
    rows = [
        {"messages": [{"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": "the cat"}]}
        for i in range(12)
    ]
    return write_jsonl("demonstrations.jsonl", rows)


@pytest.fixture
def ranked(write_jsonl):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"say {i}"}],
            "completions": ["cat", "a dog", "mat"],
            "ranks": [1, 2, 2],
        }
        for i in range(8)
    ]
    return write_jsonl("ranked.jsonl", rows)


@pytest.fixture
def base(tmp_path, policy, tokenizer_folder):
    """A language model's folder, its tokenizer beside it (no pad token, no chat template)."""
    folder = tmp_path / "base"
    policy.save_pretrained(folder)
    for item in tokenizer_folder.iterdir():
        (folder / item.name).write_bytes(item.read_bytes())
    return folder


@pytest.fixture
def scratch(tokenizer_folder):
    """Options of a small model from scratch."""
    overrides = "n_layer=2,n_embd=32,n_head=2"
    return [
        "--model_name_or_path",
        "gpt2",
        "--config_overrides",
        overrides,
        "--tokenizer_name_or_path",
        str(tokenizer_folder),
    ]


@pytest.fixture
def stage(texts, demonstrations, ranked, base, scratch):
    """`stage(name, folder, *more)`: its exit status, on a tiny model for two steps."""
    bert = ["--model_name_or_path", "bert", "--config_overrides"]
    bert += ["num_hidden_layers=1,hidden_size=32,num_attention_heads=2,intermediate_size=32"]
    given = {
        "pretrain": [*scratch, "--dataset_name", texts, "--block_size", "32"],
        "mlm": [*bert, "--train_tokenizer", "300", "--dataset_name", texts],
        "sft": ["--model_name_or_path", base, "--dataset_name", demonstrations],
        "reward": ["--model_name_or_path", base, "--dataset_name", ranked, "--gradient_accumulation_steps", "1"],
        "ppo": ["--model_name_or_path", base, "--dataset_name", ranked, *PPO],
    }

    def run(name, folder, *more):
        steps = [] if name == "ppo" else ["--max_steps", "2"]
        argv = [*given[name], *QUIET, *steps, "--output_dir", folder, *more]
        return run_command(STAGES[name], [str(word) for word in argv])

    return run


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """`ranks("sft", argv, 2)`: the exit status of each of two processes, and what they said."""
    started = Ranks(tmp_path_factory.mktemp("ranks"))
    yield started
    started.close()
