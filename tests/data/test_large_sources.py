"""Sources too large for the memory: the same rows, faults and notices as in memory, made once, and no row kept."""

import csv
import gzip
import json
import os
import subprocess
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlhf_kit.data import loading, rows, store
from rlhf_kit.data.loading import load
from rlhf_kit.data.rows import Spooled
from rlhf_kit.errors import UserError
from rlhf_kit.ppo.prompts import encode_prompts
from rlhf_kit.reward.data import encode_comparisons
from rlhf_kit.sft import encode_demonstrations
from rlhf_kit.stages.pretrain import text_tokens

SAYS = {"role": "assistant", "content": "hello"}
ROWS = {
    "text": [{"text": f"line {at}", "spans": [[0, 4]]} for at in range(7)] + [{"text": " "}, {"text": "end"}],
    "demonstrations": [
        {"prompt": "a", "completion": "b"},
        {"messages": [{"role": "user", "content": "hi"}, SAYS], "tools": [{"name": "f"}], "note": 1},
        {"instruction": "do", "input": "this", "output": "done"},
    ],
    "ranked": [
        {"prompt": "a", "completions": ["x", "y"], "ranks": [2, 1], "labeler": 7},
        {"prompt": [{"role": "user", "content": "b"}], "completions": ["x", "y", "z"], "scores": [1, 3, 1]},
    ],
    "pairs": [
        {"prompt": "a", "chosen": "x", "rejected": "y", "group": 1, "weight": 0.5},
        {"prompt": "b", "chosen": "x", "rejected": "y", "margin": 2},
        {"prompt": "a", "chosen": "y", "rejected": "z", "group": 1, "weight": 0.5},
        {"prompt": "a", "chosen": "x", "rejected": "z", "group": 1, "weight": 0.5},
    ],
    "thumbs": [{"prompt": "a", "completion": "x", "label": True}, {"prompt": "b", "completion": "y", "label": False}],
    "prompts": [
        {"prompt": "a", "at": 1, "more": {"x": 0.1}, "name": "n"},
        {"prompt": "b", "at": 2.5, "more": [None, 2], "completions": ["x", "y"]},
        {"messages": [{"role": "user", "content": "hi"}, SAYS]},
    ],
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rlhf_kit"


@pytest.fixture
def large(home, monkeypatch):
    """Every source is too large."""
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    return home


def written(path, values, ending=".jsonl"):
    path = path / f"train{ending}"
    text = "".join(json.dumps(value) + "\n" for value in values)
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), path)
    elif ending == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(values[0]))
            writer.writeheader()
            writer.writerows(values)
    elif ending == ".jsonl.gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text("﻿" + text if ending == ".jsonl" else text, encoding="utf-8")
    return str(path)


def outcome(source, kinds, **options):
    """(rows, types, kind, what was told but the place), or the message of the refusal."""
    lines = []
    try:
        dataset, kind = load(source, kinds, tell=lines.append, **options)
    except UserError as error:
        return str(error)
    lines = [line for line in lines if "are read from" not in line]
    return list(loading.checked(dataset, kinds, "rows")[0]), dataset.features, kind, lines


def both(monkeypatch, *arguments, **options):
    """The outcome in memory, and in files."""
    small = outcome(*arguments, **options)
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    return small, outcome(*arguments, **options)


@pytest.mark.parametrize("kind", ROWS)
def test_a_large_source_has_the_rows_and_notices_of_a_small_one(kind, home, tmp_path, monkeypatch):
    small, large = both(monkeypatch, written(tmp_path, ROWS[kind]), (kind,))
    if kind == "prompts":  # further columns: the same values, whatever holds them
        small, large = (each[:1] + each[2:] for each in (small, large))
    assert large == small and len(large[0]) >= 2
    assert len([path for path in home.iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl.gz", ".json"])
def test_of_every_form(ending, home, tmp_path, monkeypatch):
    values = [{"prompt": f"say\n{at}", "completion": "a, b", "note": str(at)} for at in range(2500)]
    source = tmp_path / "train.json"
    source.write_text(json.dumps(values))
    source = str(source) if ending == ".json" else written(tmp_path, values, ending)
    small, large = both(monkeypatch, source, ("demonstrations",))
    assert large == small and large[0][2499] == {"prompt": "say\n2499", "completion": "a, b"}


def test_of_shards_of_lines_and_of_what_datasets_saved(home, tmp_path, monkeypatch):
    for at in range(2):
        (tmp_path / f"train-{at}-of-2.jsonl").write_text(f'{{"prompt": "p{at}"}}\n')
    datasets.Dataset.from_list([{"prompt": "a", "n": 1}] * 1200).save_to_disk(tmp_path / "saved")
    (tmp_path / "lines.txt").write_text("one\r\n\n two\n", encoding="utf-8")
    for source in (tmp_path, tmp_path / "saved", tmp_path / "lines.txt"):
        monkeypatch.setattr(rows, "IN_MEMORY", 2**24)
        small, large = both(monkeypatch, str(source), ("prompts",))
        assert (large[0], large[2:]) == (small[0], small[2:]) and len(large[0]) > 1


FAULTY = {
    "a.jsonl": b'{"prompt": "a"}\n\n{"prompt": 1}\n{"prompt"\n{"prompt": "a", "prompt": "b"}\n[]\n',
    "b.jsonl": b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "b\xff"}\n',
    "c.jsonl": b'{"prompt": "a"}\n\0\n',
    "d.jsonl": '{"prompt": "人人"}\n'.encode()[:-5],
    "a.csv": b'prompt,label\n"two\nlines",true\nb,x\nc,1,2\n',
    "b.csv": b'prompt,n\n"a,1\n',
    "c.csv": b"prompt;n\na;1\n",
    "a.parquet": b"PAR1 and no more",
    "e.jsonl": b"<html>\n",
    "f.jsonl": b'{"answer": "a"}\n',
    "g.jsonl": b"",
}


@pytest.mark.parametrize("name", FAULTY)
def test_its_faults_are_told_in_the_same_words_and_nothing_is_stored(name, home, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(FAULTY[name])
    kinds = ("thumbs",) if name == "a.csv" else ("prompts",)
    small, large = both(monkeypatch, str(path), kinds)
    assert isinstance(small, str) and large == small
    assert not [path for path in home.glob("*") if path.is_dir()]


def test_bad_rows_are_dropped_as_in_memory(home, tmp_path, monkeypatch):
    values = [{"prompt": "a", "completion": "b", "label": at % 3 != 1 or "?"} for at in range(9)]
    small, large = both(monkeypatch, written(tmp_path, values), ("thumbs",), on_bad_row="drop")
    assert large == small and len(large[0]) == 6


def test_what_is_stored_is_not_read_again_and_a_changed_file_is(large, tmp_path, monkeypatch):
    source = written(tmp_path, [{"text": "one"}])
    first = outcome(source, ("text",))
    monkeypatch.setattr(loading, "_canonical", None)  # whatever would read it fails
    assert outcome(source, ("text",)) == first
    copy = tmp_path / "other.jsonl"
    copy.write_bytes((tmp_path / "train.jsonl").read_bytes())
    assert outcome(str(copy), ("text",)) == first
    monkeypatch.undo()
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(large.parent))
    assert [row["text"] for row in outcome(written(tmp_path, [{"text": "two"}]), ("text",))[0]] == ["two"]


def test_a_damaged_file_is_made_again(large, tmp_path):
    source = written(tmp_path, [{"text": "one"}])
    first = outcome(source, ("text",))
    stored = next(large.glob("*/rows.arrow"))
    stored.write_bytes(stored.read_bytes()[:100])
    assert outcome(source, ("text",)) == first


ONE_LOAD = """
import os, sys, time
import datasets
from rlhf_kit.data import loading, rows, store
datasets.config.HF_DATASETS_CACHE, rows.IN_MEMORY, rows.AT_ONCE = sys.argv[2], 0, 10
store.AT_ONCE = 10
write = store.pyarrow.ipc.new_stream
class Stream:
    def __init__(self, *arguments): self.stream, self.count = write(*arguments), 0
    def __enter__(self): self.stream.__enter__(); return self
    def __exit__(self, *error): return self.stream.__exit__(*error)
    def write_table(self, table):
        self.stream.write_table(table)
        self.count += 1
        if self.count == 3: HOW
store.pyarrow.ipc.new_stream = Stream
print(len(loading.load(sys.argv[1], ("text",))[0]))
"""


def start(how, source, home):
    command = [sys.executable, "-c", ONE_LOAD.replace("HOW", how), source, str(home.parent)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_kill_in_the_middle_leaves_nothing_that_is_read(large, tmp_path):
    source = written(tmp_path, [{"text": f"line {at}"} for at in range(100)])
    assert start("os.kill(os.getpid(), 9)", source, large).wait() == -9
    left = [path for path in large.iterdir() if path.is_dir()]
    assert len(left) == 1 and left[0].name.startswith(".") and (left[0] / "rows.arrow").stat().st_size
    assert len(outcome(source, ("text",))[0]) == 100
    assert [path.name for path in large.iterdir() if path.is_dir()] == [left[0].name.split(".")[1]]


def test_of_two_processes_one_makes_them_and_the_other_waits(large, tmp_path):
    source = written(tmp_path, [{"text": f"line {at}"} for at in range(100)])
    processes = [start("time.sleep(2)", source, large) for _ in range(2)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [out for out, _ in ends] == ["100\n", "100\n"], ends
    assert sum("read once into" in error for _, error in ends) == 1


def test_no_room_is_said_with_the_place(large, tmp_path, monkeypatch):
    source = written(tmp_path, [{"text": "one"}])
    large.parent.write_text("a file")
    assert f"{str(large)!r}, where large data are kept, cannot be written" in outcome(source, ("text",))


# --- tokens ---------------------------------------------------------------------------------------------------------


def tokens(kind, source, tokenizer):
    dataset, _ = load(source, (kind,))
    if kind == "text":
        return list(text_tokens(dataset, tokenizer, "texts"))
    if kind == "demonstrations":
        encoded, counts = encode_demonstrations(dataset, tokenizer, 12)
        return encoded.features, list(encoded), counts
    if kind == "prompts":
        prompts = encode_prompts(dataset, tokenizer, 4, 20, max_prompt_length=5)
        return list(prompts), prompts[0], prompts[:2], prompts.lengths.tolist()
    encoded, counts = encode_comparisons(dataset, tokenizer, 12)
    return encoded.features, list(encoded), counts


@pytest.mark.parametrize("kind", ["text", "demonstrations", "prompts", "ranked", "pairs", "thumbs"])
def test_tokens_are_those_in_memory_and_made_once(kind, home, tmp_path, monkeypatch, tiny):
    source = written(tmp_path, [row for row in ROWS[kind] if "messages" not in row] * 3)
    small = tokens(kind, source, tiny)
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    assert tokens(kind, source, tiny) == small
    stored = sorted(home.glob("*/about.json"))
    assert len(stored) == 2 and tokens(kind, source, tiny) == small and sorted(home.glob("*/about.json")) == stored
    tiny.add_tokens(["line"])
    tokens(kind, source, tiny)  # of another tokenizer they are others
    assert len(list(home.glob("*/about.json"))) == 3


def test_the_name_of_what_is_stored_follows_from_the_code(monkeypatch):
    before = store.key_of("rows")
    monkeypatch.setattr(store, "_code", lambda: "another")
    assert store.key_of("rows") != before != store.key_of("tokens")


# --- the memory -----------------------------------------------------------------------------------------------------

LOADERS = """
import gc, json, sys, tracemalloc
from pathlib import Path
import datasets
from rlhf_kit import progress
from rlhf_kit.data import loading, rows
from rlhf_kit.data.packs import pack
from rlhf_kit.ppo.prompts import encode_prompts, prompt_order
from rlhf_kit.sft import encode_demonstrations
from rlhf_kit.stages.pretrain import text_tokens
from rlhf_kit.training.order import Shuffled
from transformers import AutoTokenizer

folder = Path(sys.argv[1])
datasets.config.HF_DATASETS_CACHE, rows.IN_MEMORY = str(folder / "cache"), 2**16
datasets.disable_progress_bars()
progress.QUIET_FOR = 1e9  # the first line that is shown takes more than all the rows
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])


def read(kind, source):
    data, _ = loading.load(source, (kind,), tell=lambda _: None)
    if kind == "text":
        taken = pack(text_tokens(data, tokenizer, "texts"), 64, tokenizer.eos_token_id)
    elif kind == "demonstrations":
        taken, _ = encode_demonstrations(data, tokenizer, 64)
    else:
        taken = encode_prompts(data, tokenizer, 4, 64)
        prompt_order(len(taken), range(8), 0)
    order = iter(Shuffled(range(len(taken))))
    for _ in range(8):
        taken[next(order)]
    return taken, order


for kind, row in json.loads(sys.argv[3]).items():
    sizes = []
    for count in (9000, 2000, 10000):  # the first for what is imported and made once
        path = folder / f"{kind}-{count}.jsonl"
        with path.open("w") as file:
            for at in range(count):
                file.write(json.dumps({**row, "text" if kind == "text" else "prompt": f"say {at}"}) + "\\n")
        tracemalloc.start()
        kept = read(kind, str(path))
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory())
        tracemalloc.stop()
        del kept
    print(json.dumps([kind, *((sizes[2][at] - sizes[1][at]) / 8000 for at in (0, 1))]))
"""


def test_no_row_is_kept(tmp_path, tokenizer_folder):
    """By Python's own count, in bytes a row: what stays, and the most there was on the way."""
    kinds = {"text": {"n": 1}, "demonstrations": {"completion": "yes"}, "prompts": {"n": 1}}
    command = [sys.executable, "-c", LOADERS, str(tmp_path), str(tokenizer_folder), json.dumps(kinds)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    assert [kind for kind, *_ in lines] == [*kinds]
    for kind, stays, most in lines:
        assert stays < 30 and most < 60, (kind, stays, most)  # of 30 half is what imports and caches took once


def test_rows_in_a_file_are_a_sequence(large):
    spooled = Spooled({"at": at, "text": "人" * at} for at in range(2100))
    assert len(spooled) == 2100 and spooled[-1] == {"at": 2099, "text": "人" * 2099}
    assert spooled[3:5] == [spooled[3], spooled[4]] and [row["at"] for row in spooled] == list(range(2100))
    assert list(Spooled([])) == [] and not os.listdir(large)
    with pytest.raises(IndexError):
        spooled[2100]
