"""The YAMLs in eval/: each dry-runs against a hub on loopback that has what it names, and none fetches weights."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from tests.eval.toy import save_model
from tests.eval.toy_reader import reader, tokenizer_of
from tests.hub import Commands, Hub

HOME = Path(__file__).parents[2] / "eval"
FILES = sorted(HOME.glob("*.yaml"))
CONTEXT, QUESTION = "The cat sat on the mat. The dog saw it.", "Where did the cat sit?"


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def configurations(**files):
    """A data set's repository: `config/split` -> rows."""
    card = "".join(
        f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {config}/{split}.jsonl\n"
        for config, split in (name.split("/") for name in files)
    )
    rows = {f"{name}.jsonl": lines(*content) for name, content in files.items()}
    return {**rows, "README.md": f"---\nconfigs:\n{card}---\n".encode()}


def asked(name, answer="on the mat", **more):
    answers = (
        {"text": [answer], "answer_start": [CONTEXT.index(answer)]} if answer else {"text": [], "answer_start": []}
    )
    return {"id": name, "title": "cats", "context": CONTEXT, "question": QUESTION, "answers": answers, **more}


DATA = {
    "stanfordnlp/coqa": {
        "validation.jsonl": lines(
            {
                "source": "wikipedia",
                "story": CONTEXT,
                "questions": [QUESTION, "Who saw it?"],
                "answers": {
                    "input_text": ["on the mat", "the dog"],
                    "answer_start": [12, 24],
                    "answer_end": [22, 31],
                },
            }
        )
    },
    "EleutherAI/lambada_openai": configurations(**{"default/test": [{"text": "the cat sat on the mat"}] * 3}),
    "rajpurkar/squad_v2": {"validation.jsonl": lines(asked("q1"), asked("q2", answer=""))},
    "truthfulqa/truthful_qa": configurations(
        **{
            "multiple_choice/validation": [
                {
                    "question": QUESTION,
                    "mc1_targets": {"choices": ["the mat", "a hat"], "labels": [1, 0]},
                    "mc2_targets": {"choices": ["the mat", "on it", "a hat"], "labels": [1, 1, 0]},
                }
            ]
        }
    ),
    "abisee/cnn_dailymail": configurations(
        **{"3.0.0/test": [{"article": CONTEXT, "highlights": "The cat sat.", "id": "a1"}]}
    ),
    "trl-lib/hh-rlhf-helpful-base": {
        "test.jsonl": lines(
            {
                "prompt": [{"role": "user", "content": QUESTION}],
                "chosen": [{"role": "assistant", "content": "On the mat."}],
                "rejected": [{"role": "assistant", "content": "No."}],
            }
        )
    },
    "rajpurkar/squad": {"train.jsonl": lines(asked("t1"), asked("t2", "The dog"))},
    "google/xquad": configurations(
        **{f"xquad.{language}/validation": [asked(f"x{language}")] for language in ("zh", "en")}
    ),
    "hfl/cmrc2018": {"validation.jsonl": lines(asked("c1"))},
    "google/xtreme": configurations(**{f"MLQA.{one}.{one}/test": [asked(f"m{one}")] for one in ("zh", "en")}),
}
CAUSAL = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def drcd(name):
    question = {"id": name, "question": QUESTION, "answers": [{"id": "1", "text": "The dog", "answer_start": 24}]}
    return json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": [question]}]}]})


@pytest.fixture(scope="module")
def at_the_hub(tmp_path_factory):
    """The hub, and commands in a folder that has DRCD's files and a reward model."""
    home = tmp_path_factory.mktemp("benchmarks")
    tokenizer = tokenizer_of([CONTEXT, QUESTION])
    with Hub() as hub:
        for name in CAUSAL:
            folder = home / "models" / name
            save_model(folder)  # a byte tokenizer with a chat template
            config = GPT2Config(n_layer=1, n_embd=8, n_head=2, n_positions=1024, vocab_size=257)
            GPT2LMHeadModel(config).save_pretrained(folder)
            hub.add(f"openai-community/{name}", folder)
        folder = home / "models" / "bert"
        reader(len(tokenizer), 0).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        hub.add("bert-base-multilingual-cased", folder)
        for name, files in DATA.items():
            hub.add(name, files, kind="datasets")
        work = home / "work"
        save_model(work / "runs" / "reward")
        (work / "data" / "DRCD").mkdir(parents=True)
        for split in ("training", "dev", "test"):
            (work / "data" / "DRCD" / f"DRCD_{split}.json").write_text(drcd(split))
        commands = Commands(hub.address, work)
        yield hub, commands
        commands.close()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_benchmark_dry_runs_and_fetches_no_weights(path, at_the_hub):
    hub, run = at_the_hub
    options, first = yaml.safe_load(path.read_text(encoding="utf-8")), len(hub.asked)
    ended = run("eval", path.stem, "--config", path, "--dry_run")
    assert ended.status == 0, ended.said
    assert "no weights were loaded, nothing was written" in ended.said
    models = options.get("models", [options.get("model_name_or_path", "mbert-en")])
    assert all(name in ended.said for name in set(models) - {"lede-3", "random-3"})
    assert options.get("dataset_name", "").partition(":")[0] in ended.said
    requests = hub.asked[first:]
    assert any("/api/" in request for request in requests) and not [one for one in requests if "safetensors" in one]
    assert not (run.home / options["output_dir"]).exists()


@pytest.mark.parametrize("name", ["coqa", "mc"])
def test_a_benchmark_runs_on_what_the_hub_has(name, at_the_hub):
    _, run = at_the_hub
    ended = run("eval", name, "--config", HOME / f"{name}.yaml", "--limit", "1", "--output_dir", f"out-{name}")
    assert ended.status == 0, ended.said
    assert json.loads((run.home / f"out-{name}" / "results.json").read_text())["settings"]["model"].startswith(
        "openai"
    )


@pytest.fixture(scope="module")
def without_a_hub(at_the_hub, tmp_path_factory):
    """Commands in such a folder that nothing answers."""
    home = tmp_path_factory.mktemp("offline") / "work"
    shutil.copytree(at_the_hub[1].home, home, ignore=shutil.ignore_patterns("hf", "said*"))
    commands = Commands("http://127.0.0.1:9", home, HF_HUB_OFFLINE="1")
    yield commands
    commands.close()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_unreachable_hub_is_named_and_no_fault(path, without_a_hub):
    ended = without_a_hub("eval", path.stem, "--config", path, "--dry_run")
    assert ended.status == 0 and "cannot be reached" in ended.said, ended.said


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_benchmark_says_its_command_and_the_official_figure(path):
    command, *more = path.read_text(encoding="utf-8").splitlines()
    assert command == f"# accelerate launch eval/{path.stem}.py --config eval/{path.stem}.yaml"
    assert path.with_suffix(".py").is_file()
    comment = " ".join(line for line in more if line.startswith("#"))
    assert comment.startswith("# Official: ") and re.search(r"\d\d|\bcurve\b", comment)
    assert re.search(r"et al\. 20\d\d|github\.com", comment)
