"""Each kind of bad data to every command that reads data: one message of what was given and what to do, status 2."""

import os
import re
import shutil
from pathlib import Path

import datasets
import pytest
from bad_data import KINDS, OTHERS, ROW
from bad_places import LINKS, ended, made
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_kit.cli import main
from rlhf_kit.data import unpacking
from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.escaping import terminal

MODEL = "--model_name_or_path m --output_dir out"
PPO = f"ppo {MODEL} --reward_funcs rlhf_kit.world:truth_reward"
COMMANDS = {  # {} is the file
    "pretrain": f"pretrain {MODEL} --dataset_name {{}} --dry-run",
    "pretrain, started": f"pretrain {MODEL} --dataset_name {{}}",
    "pretrain, evaluation": f"pretrain {MODEL} --dataset_name good.txt --eval_dataset_name {{}} --dry-run",
    "mlm": f"mlm {MODEL} --dataset_name {{}} --dry-run",
    "sft": f"sft {MODEL} --dataset_name {{}} --dry-run",
    "sft, started": f"sft {MODEL} --dataset_name {{}}",
    "sft, evaluation": f"sft {MODEL} --dataset_name good.jsonl --eval_dataset_name {{}} --dry-run",
    "reward": f"reward {MODEL} --dataset_name {{}} --dry-run",
    "reward, started": f"reward {MODEL} --dataset_name {{}}",
    "ppo": f"{PPO} --dataset_name {{}} --dry-run",
    "ppo, started": f"{PPO} --dataset_name {{}}",
    "ppo, evaluation": f"{PPO} --dataset_name good.jsonl --eval_dataset_name {{}} --dry-run",
    "ppo, texts": f"{PPO} --dataset_name good.jsonl --ptx_dataset_name {{}} --ptx_coef 1 --dry-run",
    "score": "score --model m --data {}",
    "convert": "convert {} out.jsonl --from ranked",
    "convert, pairs": "convert {} out.jsonl --from hh-rlhf",
    "convert, of a tool": "convert {} out.jsonl --from label-studio",
    "lambada": "eval lambada --model m --data {}",
    "tldr": "eval tldr --models lede-3 --data {}",
    "perplexity": "eval perplexity --model m --data {}",
    "rankings": "eval reward --model m --data {}",
    "coqa": "eval coqa --model m --data {}",
    "extractive": "eval extractive --model m --data {} --scorer squad",
    "extractive, training": "eval extractive --model m --data world:squad_en --train-data {} --scorer squad",
    "transfer": "eval transfer --table table.yaml --output out",
    "suite": "eval suite --suite suite.yaml --models a=m --output out",
}
TABLE = """
data: [{name: en, source: "%s", language: en}]
tests: [{name: en, source: "%s", language: en, scorers: [squad]}]
rows: [{name: a, model: qanet, fine_tuned_on: [en]}]
"""
SUITE = "- {name: a, command: perplexity, options: {data: '%s'}, figure: bits_per_byte, higher_is_better: false}\n"
TO_DO = re.compile(
    r"\b(give|save|rename|take|split|mend|fix|unpack|decompress|fetch|let|write|remove|name|download|quote|put|keep|check|move|make)\b"
    r"|supported:|did you mean",
    re.IGNORECASE,
)
RAW = re.compile(r"Traceback|\b[A-Z]\w+(Error|Exception|Invalid|Warning)\b|<class| at 0x")


@pytest.fixture(scope="module")
def places(tmp_path_factory, tokenizer_folder):
    """A working folder with a small model and good data; the models stay, what is bad comes and goes."""
    folder = tmp_path_factory.mktemp("bad")
    shutil.copytree(tokenizer_folder, folder / "m")
    size = len(PreTrainedTokenizerFast.from_pretrained(folder / "m"))
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": size, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder / "m")
    (folder / "good.jsonl").write_text(ROW * 4)
    (folder / "good.txt").write_text("A cat sat on a mat.\n")
    return folder


@pytest.fixture(autouse=True)
def working(places, monkeypatch):
    """In that folder; a reader that does not end is stopped."""
    monkeypatch.chdir(places)
    with ended():
        yield
    for path in places.glob("bad*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    assert not Path("out").exists()


def refused(command: str, path: str, capsys) -> str:
    """The one message of a command that takes this file for data."""
    Path("table.yaml").write_text(TABLE % (path, path))
    Path("suite.yaml").write_text(SUITE % path)
    try:
        status = main([part.format(path) for part in COMMANDS[command].split()])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    assert status == 2, said.err[:1000]
    told = said.err.removeprefix("a: a\n")  # a suite's task, which has begun
    assert told.startswith("rlhf-kit ") and len(said.err) < 4000, said.err[:1000]
    assert not RAW.search(said.err), said.err[:1000]
    assert TO_DO.search(said.err), said.err[:1000]
    assert all(char.isprintable() or char in "\n\t" for char in said.err), said.err[:1000]
    assert said.err.count("rlhf-kit ") == 1 and terminal(Path(path).name[:100]) in said.err, said.err[:1000]
    return said.err


# Every kind to an eighth of the commands, and every command an eighth of the kinds, which come from all formats.
TRIED = [(command, kind) for at, command in enumerate(COMMANDS) for kind in list(KINDS)[at % 8 :: 8]]


@pytest.mark.parametrize("command, kind", TRIED)
def test_bad_data_is_one_message(command, kind, capsys):
    suffix, content = KINDS[kind]
    Path(f"bad{suffix}").write_bytes(content)
    refused(command, f"bad{suffix}", capsys)


PLACES = ("nowhere", "a folder", "a folder of such folders", "a pipe", "a socket", "a folder with a pipe")
PLACES += ("a name too long", "a word too long", "under a file", "a file that may not be read", "a loop of links")


@pytest.mark.parametrize("kind", [*PLACES, *LINKS])
@pytest.mark.parametrize("command", [*COMMANDS][::4])
def test_what_is_no_file_of_data_is_one_message(command, kind, capsys):
    if kind == "a file that may not be read" and os.geteuid() == 0:
        pytest.skip("root may read all")
    refused(command, made(kind, ".jsonl", "good.jsonl"), capsys)


@pytest.mark.parametrize("name", ["\x1b[31mbad\n.jsonl", "bad[b].jsonl", "bad<b>.jsonl", "bad\u202e.jsonl"])
@pytest.mark.parametrize("command", [*COMMANDS][:-2:3])
def test_a_name_of_signs_stays_a_name(command, name, capsys):
    Path(name).write_text("no rows")
    said = refused(command, name, capsys)
    Path(name).unlink()
    assert "\x1b" not in said and "\u202e" not in said


ARROW, STATE, ABOUT = "data-00000-of-00001.arrow", "state.json", "dataset_info.json"
SAVED = {  # the file of a folder that `datasets` saved, and what stands there instead, None for nothing
    "no Arrow": (ARROW, b"abc" * 100),
    "an empty Arrow": (ARROW, b""),
    "JSON for Arrow": (ARROW, ROW.encode()),
    "Arrow's file for its stream": (ARROW, OTHERS["Arrow's file"]),
    "Arrow cut off": (ARROW, OTHERS["Arrow's stream"][:-100]),
    "Arrow that is gone": (ARROW, None),
    "a state of lists": (STATE, b"[" * 10**6),
    "a state that is null": (STATE, b"null"),
    "an empty state": (STATE, b"{}"),
    "a state elsewhere": (STATE, b'{"_data_files": [{"filename": "/dev/zero"}]}'),
    "features of objects": (ABOUT, b'{"a":' * 10**6),
    "features of none": (ABOUT, b"[]"),
    "a feature that is none": (ABOUT, b'{"features": {"prompt": {"_type": "Nope"}}}'),
    "no features": (ABOUT, None),
}


@pytest.mark.parametrize("kind", [*SAVED, "a pipe"])
@pytest.mark.parametrize("command", ["pretrain", "sft", "ppo, evaluation", "score", "tldr", "extractive", "coqa"])
def test_a_bad_folder_that_was_saved_is_one_message(command, kind, capsys):
    datasets.Dataset.from_dict({"x": ["a"]}).save_to_disk("bad")
    capsys.readouterr()
    name, content = SAVED.get(kind, (ARROW, None))
    Path("bad", name).unlink()
    if content is not None:
        Path("bad", name).write_bytes(content)
    elif kind == "a pipe":
        os.mkfifo(Path("bad", name))
    refused(command, "bad", capsys)


@pytest.mark.parametrize("kind", ["a device", "a NUL", "Latin-1", "too long", "nowhere"])
def test_a_bad_chat_template_is_one_message(kind, capsys):
    path = Path("bad.jinja")
    contents = {"a NUL": b"{{ \0 }}", "Latin-1": b"caf\xe9", "too long": b"x" * 2_000_000}
    if kind == "a device":
        os.symlink("/dev/zero", path)
    elif kind in contents:
        path.write_bytes(contents[kind])
    assert main(f"sft {MODEL} --dataset_name good.jsonl --chat_template_path {path} --dry-run".split()) == 2
    assert "chat_template_path" in capsys.readouterr().err


def test_a_file_that_goes_while_it_is_read_is_told(monkeypatch):
    Path("bad.jsonl").write_text(ROW)
    monkeypatch.setattr(unpacking, "_measure", lambda path, *_: path.unlink())
    with pytest.raises(UserError, match="bad.jsonl cannot be read: No such file"):
        load("bad.jsonl", ["demonstrations"])
