"""From the hub and to the hub, run and not believed: a server on loopback, and commands as a user starts them."""

import importlib
import io
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_kit.data.hub import _Bar, names_path, split_revision
from rlhf_kit.data.sources import pinned as pinned_source
from rlhf_kit.errors import UserError
from rlhf_kit.generation.generators import folders
from rlhf_kit.reward import RewardConfig, RewardTrainer
from rlhf_kit.stages import reward
from tests.eval.toy_reader import reader, tokenizer_of
from tests.hub import TOKEN, Commands, Hub
from tests.tiny_stages import run_command

BRIEF = "--max_steps 2 --per_device_train_batch_size 2 --learning_rate 1e-3".split()
ONCE = [*BRIEF, "--save_strategy", "no"]
A, B = "a" * 40, "b" * 40


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


TALK = {
    "sft/train.jsonl": lines({"prompt": f"question {at}", "completion": f"answer {at}"} for at in range(8)),
    "ranked/train.jsonl": lines(
        {"prompt": f"question {at}", "chosen": f"good {at}", "rejected": f"bad {at}"} for at in range(8)
    ),
    "text/test.jsonl": lines({"text": f"the cat number {at} sat on the mat"} for at in range(3)),
}
CARD = "".join(
    f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}/{split}.jsonl\n"
    for name, split in (path.removesuffix(".jsonl").split("/") for path in TALK)
)
TALK["README.md"] = f"---\nconfigs:\n{CARD}---\n# Talk\n".encode()


def model_files(tokenizer_folder, folder, seed):
    shutil.copytree(tokenizer_folder, folder)
    torch.manual_seed(seed)
    config = GPT2Config(
        n_layer=1, n_embd=16, n_head=2, n_positions=128, vocab_size=300, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tokenizer_folder, tmp_path_factory):
    """Two models of one shape."""
    home = tmp_path_factory.mktemp("models")
    return [model_files(tokenizer_folder, home / str(seed), seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def hub(models):
    with Hub() as server:
        server.add("tiny/gpt2", models[0], "main", "v1")
        server.add("tiny/talk", TALK, "main", "v1", kind="datasets")
        yield server


@pytest.fixture(scope="module")
def run(hub, tmp_path_factory):
    commands = Commands(hub.address, tmp_path_factory.mktemp("at the hub"), HF_TOKEN=TOKEN)
    yield commands
    commands.close()


@pytest.fixture
def fails(hub):
    """Let the server fail for the length of a test."""
    yield hub.faults
    hub.faults.clear()


def head(hub, name, kind="models"):
    repo = hub.repos[kind, name]
    return repo.refs["main"], repo.commits[repo.refs["main"]]


def saved(run, folder, file="run.json"):
    return json.loads((run.home / folder / file).read_text())


def refused(ended, *told):
    """One message, exit status 2, nothing of Python's."""
    assert ended.status == 2, ended.said
    assert "Traceback" not in ended.said
    for text in told:
        assert text in ended.said
    return ended.said


# --- a chain --------------------------------------------------------------------------------------------------------


def test_every_stage_from_the_hub_and_to_the_hub(hub, run, models):
    hub.add("tiny/new", models[0])  # which no other test has in the cache
    commit, _ = head(hub, "tiny/new")
    data = hub.add("tiny/new-talk", TALK, kind="datasets")
    begin = ["--model_name_or_path", "tiny/new", "--dataset_name", "tiny/new-talk:sft"]
    done = run("sft", *begin, "--output_dir", "runs/sft", "--push_to_hub", "--hub_model_id", "tester/mine", *ONCE)
    assert done.status == 0, done.said
    assert "Downloading model.safetensors of 'tiny/new' from the hub: 42.1 kB." in done.said
    assert "Downloading the data 'tiny/new-talk:sft' from the hub." in done.said  # and so it ended
    for what in ("model.safetensors of 'tiny/new'", "the data 'tiny/new-talk:sft'"):
        assert re.search(rf"Downloaded {what} in \d+ s\.", done.said), done.said
    assert "it/s" not in done.said and "%|" not in done.said  # no bar in a pipe
    assert saved(run, "runs/sft")["config"]["model_name_or_path"] == f"tiny/new@{commit}"
    assert saved(run, "runs/sft")["config"]["dataset_name"] == f"tiny/new-talk@{data}:sft"
    pushed, files = head(hub, "tester/mine")
    card = files["README.md"].decode()
    assert (
        'base_model: "tiny/new"\n' in card
        and 'datasets: ["tiny/new-talk"]\n' in card
        and "the stage sft on tiny/new-talk" in card
    )
    assert files["model.safetensors"] == (run.home / "runs/sft/model.safetensors").read_bytes()
    assert f"commit {pushed}" in done.said and TOKEN.encode() not in b"".join(files.values())
    assert not [name for name in files if name.startswith((".rlhf_kit", "checkpoint", "training_args"))]

    mine = ["--model_name_or_path", "tester/mine"]
    ranked = ["--dataset_name", "tiny/talk@v1:ranked", "--output_dir", "runs/reward", "--push_to_hub"]
    done = run("reward", *mine, *ranked, *ONCE)
    assert done.status == 0, done.said
    assert "# A reward model" in head(hub, "tester/reward")[1]["README.md"].decode()

    sizes = "--rollout_batch_size 4 --mini_batch_size 2 --per_device_train_batch_size 2 --max_completion_length 8"
    ppo = ["--reward_funcs", "tester/reward@main", "--dataset_name", "tiny/talk:sft", "--output_dir", "runs/ppo"]
    more = ["--total_episodes", "8", "--save_strategy", "no", "--ref_model_name_or_path", "tester/mine@main"]
    done = run("ppo", *mine, *ppo, *sizes.split(), *more, "--push_to_hub")
    assert done.status == 0, done.said
    config = saved(run, "runs/ppo")["config"]
    assert config["reward_funcs"] == [f"tester/reward@{head(hub, 'tester/reward')[0]}"]
    assert config["ref_model_name_or_path"] == config["model_name_or_path"] == f"tester/mine@{pushed}"
    assert "the stage ppo on" in head(hub, "tester/ppo")[1]["README.md"].decode()

    asked = ["--model", "tester/reward", "--data", "tiny/talk:ranked", "--split", "train", "--output", "measured"]
    done = run("eval", "reward", *asked)
    assert done.status == 0, done.said
    found = saved(run, "measured", "results.json")
    assert (
        found["settings"]["model_hash"] == head(hub, "tester/reward")[0][:16] and found["details"]["n"]["lists"] == 8
    )


def test_a_bar_is_for_a_terminal(monkeypatch):
    """A command in a pipe has none by `quiet`; what calls from Python has one where it is seen."""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr(importlib.import_module("huggingface_hub.utils.tqdm"), "progress_bar_states", {})
    assert _Bar(total=1, unit="B").disable and _Bar(total=1, unit="B", disable=False).disable


def test_an_adapter_names_its_base_by_the_commit(hub, run, models):
    commit, _ = head(hub, "tiny/gpt2")
    begin = ["--model_name_or_path", "tiny/gpt2@v1", "--dataset_name", "tiny/talk:sft", "--output_dir", "runs/lora"]
    done = run("sft", *begin, "--use_peft", "--push_to_hub", *ONCE)
    assert done.status == 0, done.said
    files = head(hub, "tester/lora")[1]
    adapter = json.loads(files["adapter_config.json"])
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("tiny/gpt2", commit)
    assert 'library_name: "peft"' in files["README.md"].decode()
    measure = ["eval", "perplexity", "--data", "tiny/talk:text"]
    assert run(*measure, "--model", "tester/lora", "--output", "of adapter").status == 0
    hub.add("tiny/gpt2", models[1])  # main moves: the adapter stays on its base
    try:
        assert run(*measure, "--model", "tester/lora", "--output", "of adapter").status == 0
    finally:
        hub.repos["models", "tiny/gpt2"].refs["main"] = commit


# --- revisions ------------------------------------------------------------------------------------------------------


def test_a_branch_that_moved_is_another_model(hub, run, models):
    repo, before = hub.repos["models", "tiny/gpt2"], head(hub, "tiny/gpt2")[0]
    begin = ["--dataset_name", "tiny/talk:sft", "--output_dir", "runs/moved", "--save_steps", "1", "--save_strategy"]
    begin = ["sft", "--model_name_or_path", "tiny/gpt2", *begin, "steps", *BRIEF]
    measure = ["eval", "perplexity", "--model", "tiny/gpt2", "--data", "tiny/talk:text", "--output", "moved"]
    assert run(*begin).status == 0 and run(*measure).status == 0
    assert saved(run, "moved", "settings.json")["model_hash"] == before[:16]
    after = hub.add("tiny/gpt2", models[1])
    try:
        further = [*begin, "--max_steps", "3", "--resume_from_checkpoint"]
        refused(run(*further), "--model_name_or_path", f"tiny/gpt2@{before}", f"tiny/gpt2@{after}")
        refused(run(*measure), "holds items measured with other settings", before[:16], after[:16])
        done = run(*further[:-1], "--model_revision", before, "--resume_from_checkpoint")
        assert done.status == 0, done.said
        assert saved(run, "runs/moved")["steps"] == 3
        here = ["--model", "tiny/gpt2@v1"]
        assert run(*measure[:2], *here, *measure[4:]).status == 0
    finally:
        repo.refs["main"] = before


ASKED = {
    "id": "1",
    "context": "Ann lives in Rome .",
    "question": "Where does Ann live ?",
    "answers": {"text": ["Rome"], "answer_start": [13]},
}
TRANSFER = {
    "seeds": [0],
    "training": {"max_length": 32, "step": 8, "max_query_length": 16, "max_steps": 1},
    "data": [{"name": "en", "source": "tiny/squad", "language": "en"}],
    "tests": [{"name": "en", "source": "tiny/squad", "language": "en", "scorers": ["squad"], "split": "train"}],
    "rows": [{"name": "tiny", "model": "tiny/reader", "fine_tuned_on": ["en"]}],
}


def test_a_cell_is_of_its_models_and_datas_commits(hub, run, tmp_path):
    """What a branch held when a cell was made is what it goes on with; what it holds later is another cell."""
    tokenizer = tokenizer_of([ASKED["context"] + ASKED["question"]])
    for seed in (0, 1):
        reader(len(tokenizer), seed).save_pretrained(tmp_path / str(seed))
        tokenizer.save_pretrained(tmp_path / str(seed))
    begin = {("models", "tiny/reader"): tmp_path / "0", ("datasets", "tiny/squad"): {"train.jsonl": lines([ASKED])}}
    heads = {key: hub.add(key[1], files, kind=key[0]) for key, files in begin.items()}
    (run.home / "table.yaml").write_text(json.dumps(TRANSFER))
    make = ["eval", "transfer", "--table", "table.yaml", "--output", "cells"]

    def trained():
        done = run(*make)
        assert done.status == 0, done.said
        return "[1/1] tiny, seed 0" in done.said

    assert trained()
    cell = saved(run, "cells/tiny/seed-0", "cell.json")
    assert cell["model_hash"] == heads["models", "tiny/reader"][:16]
    assert cell["model"] == f"tiny/reader@{heads['models', 'tiny/reader']}"
    assert cell["data"][0][0].endswith(f"@{heads['datasets', 'tiny/squad']}")
    assert not trained()  # the same commits: nothing is made again
    moved = {
        ("models", "tiny/reader"): tmp_path / "1",
        ("datasets", "tiny/squad"): {"train.jsonl": lines([ASKED]), "README.md": b"# Other words"},
    }
    for key, files in moved.items():
        after = hub.add(key[1], files, kind=key[0])
        told = [heads[key][:16], after[:16]]  # of a model; of data the whole commits
        refused(run(*make), "cells/tiny/seed-0", "was made by other settings", "give another folder", *told)
        hub.repos[key].refs["main"] = heads[key]
        assert not trained()


@pytest.mark.parametrize(
    "options, told",
    [
        (
            ["--model_name_or_path", "tiny/gpt2@v9", "--dataset_name", "tiny/talk@v8:sft"],
            ["it has no revision 'v9'", "it has no revision 'v8'", "2 problems", "/tiny/gpt2/tree/main"],
        ),
        (
            ["--model_name_or_path", "tiny/gpt2@v1", "--model_revision", "v2", "--dataset_name", "tiny/talk:sft"],
            ["--model_revision v2 and 'tiny/gpt2@v1' name two revisions"],
        ),
        (
            ["--model_name_or_path", "runs/sft", "--model_revision", "v2", "--dataset_name", "tiny/talk:sft"],
            ["--model_revision v2 applies to a model on the hub, and 'runs/sft' is a path"],
        ),
        (
            ["--model_name_or_path", "tiny/none", "--dataset_name", "tiny/nothing"],
            ["the hub has no such model, or it is private", "the hub has no such dataset", "hf auth login"],
        ),
        (
            ["--model_name_or_path", "tiny/gpt2", "--dataset_name", "tiny/talk:stf"],
            ["'tiny/talk@", "BuilderConfig 'stf' not found"],
        ),
    ],
)
def test_what_the_hub_does_not_have(run, options, told):
    refused(run("sft", *options, "--output_dir", "runs/none", *ONCE), *told)
    assert not (run.home / "runs/none").exists()


def test_names_with_revisions():
    assert split_revision("owner/name@refs/pr/1") == ("owner/name", "refs/pr/1")
    assert split_revision("gpt2") == ("gpt2", None)
    assert split_revision("runs/a@b") == ("runs/a@b", None)  # where recipes write
    assert not names_path("owner/name@refs/pr/1") and names_path("a/b/c@v1") and names_path("./a@v1")
    for broken in ("owner/name@", "@v1"):
        with pytest.raises(UserError, match="owner/name@revision"):
            split_revision(broken)
    for broken in ("a/b:c@v1@v2", "a/b@v1:c@v2", "a/b:", "a/b:c:d", "a/b:c@"):
        with pytest.raises(UserError, match="a source of the hub is written"):
            pinned_source(broken)
    for source in (f"a/b@{A}:c", f"a/b:c@{A}"):
        assert pinned_source(source) == f"a/b@{A}:c"
    assert pinned_source("world:ranked") == "world:ranked" and pinned_source("./x@y.jsonl") == "./x@y.jsonl"


def test_a_folder_with_an_at_sign_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft@2").mkdir()
    assert split_revision("sft@2") == ("sft@2", None)


def test_results_of_two_revisions_lie_apart(tmp_path):
    of = folders([f"tiny/gpt2@{A}", f"tiny/gpt2@{B}", "runs/sft"], tmp_path)
    assert [path.name for path in of] == ["gpt2-aaaaaaaa", "gpt2-bbbbbbbb", "sft"]
    assert folders([f"tiny/gpt2@{A}"], tmp_path)[0].name == "gpt2"


def test_answers_say_which_commit_gave_them(hub, run):
    commit = head(hub, "tiny/gpt2")[0]
    done = run(*answers("tiny/gpt2"), "--output_file", "answers.jsonl")
    assert done.status == 0, done.said
    rows = [json.loads(line) for line in (run.home / "answers.jsonl").read_text().splitlines()]
    assert {row["model"] for row in rows} == {f"tiny/gpt2@{commit}"} and len(rows) == 8


def test_a_server_says_which_commit_answers(hub, run):
    command = [sys.executable, "-m", "rlhf_kit", "serve", "tiny/gpt2", "late=tiny/gpt2@v1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=run.home, env=run.environment, text=True) as server:
        spoken = [server.stdout.readline().strip() for _ in range(3)]
        server.terminate()
    commit, repo = head(hub, "tiny/gpt2")[0], hub.repos["models", "tiny/gpt2"]
    assert spoken[1:] == [f"gpt2 (tiny/gpt2@{commit})", f"late (tiny/gpt2@{repo.refs['v1']})"]


# --- what goes wrong ------------------------------------------------------------------------------------------------


def perplexity(model, data="tiny/talk:text"):
    return ["eval", "perplexity", "--model", model, "--data", data]


def answers(model):
    return ["generate", model, "--dataset_name", "tiny/talk:sft", "--max_completion_length", "4"]


@pytest.mark.parametrize("kind, name, asked", [
    ("models", "tiny/gated", perplexity("tiny/gated")),
    ("datasets", "tiny/locked", perplexity("tiny/gpt2", "tiny/locked")),
])  # fmt: skip
def test_a_gate_says_how_to_get_in(hub, run, models, kind, name, asked):
    hub.add(name, models[0] if kind == "models" else TALK, kind=kind)
    hub.repos[kind, name].gated = True
    page = f"{hub.address}/{'datasets/' if kind == 'datasets' else ''}{name}"
    refused(run(*asked), "it is gated", f"Ask for access at {page}", "hf auth login", "HF_TOKEN")


def test_a_hub_that_is_down(run, fails):
    fails["/api/models/tiny/other"] = 503
    refused(run(*perplexity("tiny/other")), "is busy or down: it answered 503. Try again later")
    fails["/api/models/tiny/other"] = 401
    refused(run(*perplexity("tiny/other")), "tiny/other", "hf auth login")
    fails["/api/"] = "page"
    refused(
        run(*perplexity("tiny/gpt2")), "does not respond as a Hugging Face hub does", "tiny/"
    )  # of the data, read first


def test_a_hub_that_is_down_is_not_needed_for_what_is_in_the_cache(hub, run, fails):
    assert run(*perplexity("tiny/gpt2")).status == 0
    asked = len(hub.asked)
    fails["/api/"] = fails["/resolve/"] = 503
    done = run(*perplexity("tiny/gpt2"))
    assert done.status == 0 and "Could not reach the Hub" in done.said, done.said
    assert len(hub.asked) > asked


def test_a_download_that_is_cut(hub, run, models, fails):
    hub.add("tiny/cut", models[1])
    fails["/tiny/cut/resolve/" + head(hub, "tiny/cut")[0] + "/model.safetensors"] = "cut"
    refused(run(*perplexity("tiny/cut")), "the connection to the hub", "failed or was cut", "start again")
    fails.clear()
    assert run(*perplexity("tiny/cut")).status == 0


def test_code_of_its_own_is_not_run_unasked(hub, run, models):
    files = {path.name: path.read_bytes() for path in models[0].iterdir()}
    config = json.loads(files["config.json"]) | {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    config["auto_map"]["AutoModelForCausalLM"] = "own.OwnModel"
    hub.add("tiny/own", files | {"config.json": json.dumps(config).encode(), "own.py": b"raise SystemExit(99)"})
    collect = ["collect", "--models", *answers("tiny/own")[1:], "--output_file", "own.db"]
    for command in (perplexity("tiny/own"), answers("tiny/own"), collect):
        said = refused(run(*command), "it contains code of its own", f"{hub.address}/tiny/own")
        assert "--trust_remote_code" in said
        assert "SystemExit: 99" in run(*command, "--trust_remote_code").said


def test_offline(hub, run):
    assert run(*perplexity("tiny/gpt2")).status == 0
    offline = Commands(
        hub.address, run.home, preloads=("eval.text.perplexity", "models.revisions"), HF_HUB_OFFLINE="1"
    )
    try:
        asked = len(hub.asked)
        done = offline(*perplexity("tiny/gpt2"))
        assert done.status == 0, done.said
        refused(offline(*perplexity("tiny/never")), "HF_HUB_OFFLINE is set", "not in the cache", "tiny/never")
        refused(offline(*perplexity("tiny/gpt2", "tiny/never:text")), "HF_HUB_OFFLINE is set", "tiny/never:text")
        other = f"tiny/talk@{A}:text"  # `datasets` would take what it has of this name
        refused(offline(*perplexity("tiny/gpt2", other)), f"the cache holds a revision other than {A}")
        assert len(hub.asked) == asked
    finally:
        offline.close()


def test_rows_are_left_out_of_the_training_data_alone(tmp_path, capsys, models):
    good = [{"prompt": f"q{at}", "chosen": "good", "rejected": "bad"} for at in range(4)]
    for name, rows in {"good": good, "bad": [*good, {"prompt": "q", "chosen": "", "rejected": "bad"}]}.items():
        (tmp_path / f"{name}.jsonl").write_bytes(lines(rows))
    options = ["--model_name_or_path", str(models[0]), "--output_dir", str(tmp_path / "run"), "--on_bad_row", "drop"]

    def check(train, held_out):
        data = ["--dataset_name", f"{tmp_path}/{train}.jsonl", "--eval_dataset_name", f"{tmp_path}/{held_out}.jsonl"]
        return run_command(reward, [*options, *data, "--dry-run"]), capsys.readouterr()

    status, said = check("bad", "good")
    assert status == 0 and "1 of 5 rows dropped" in " ".join(said.out.split())
    status, said = check("good", "bad")
    assert status == 2 and "bad.jsonl" in said.err and "`chosen` is empty" in said.err
    with pytest.raises(UserError, match="`chosen` is empty"):
        rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
        RewardTrainer(str(models[0]), RewardConfig(str(tmp_path / "run"), on_bad_row="drop"), good, rows)


# --- to the hub -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, told",
    [
        (["--hub_model_id", "tester/x"], "--hub_model_id needs --push_to_hub"),
        (["--push_to_hub", "--hub_strategy", "every_save"], "only the finished model and its card are pushed"),
        (["--push_to_hub", "--use_peft", "--model_name_or_path", "runs/sft"], "cannot be loaded anywhere else"),
    ],
)
def test_a_push_that_makes_no_sense(run, options, told):
    begin = ["sft", "--model_name_or_path", "tiny/gpt2", "--dataset_name", "world", "--output_dir", "runs/push"]
    refused(run(*begin, *ONCE, *options), told)


def test_a_push_that_is_refused_is_known_before_training(hub, run, fails):
    begin = ["sft", "--model_name_or_path", "tiny/gpt2", "--dataset_name", "world", "--output_dir", "runs/push"]
    fails["/api/repos/create"] = 403
    refused(run(*begin, *ONCE, "--push_to_hub"), "--push_to_hub: the model cannot go to 'push'", "HF_TOKEN")
    assert not (run.home / "runs/push").exists()


def test_a_push_that_fails_keeps_the_model_and_the_secret(hub, run, fails):
    begin = [
        "sft",
        "--model_name_or_path",
        "tiny/gpt2",
        "--dataset_name",
        "tiny/talk:sft",
        "--output_dir",
        "runs/late",
    ]
    fails["/preupload/"] = 403
    done = run(*begin, *ONCE, "--push_to_hub", "--hub_token", "hf_secret_of_the_test")
    refused(done, "The complete model is in 'runs/late'", "hf upload tester/late runs/late")
    assert "hf_secret" not in (run.home / "runs/late/run.json").read_text()
