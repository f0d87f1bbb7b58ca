"""What a small or an endless file takes of the memory before it is refused, or where it is read: within 2 GB."""

import gzip
import json
import os
import resource
from pathlib import Path

import datasets
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError
from rlhf_kit.inputs import read_json, read_yaml

MOST = 2 * 10**9
SIZE = 50_000_000
AGAIN = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3000, pyarrow.int32()), ["x" * 2**20])
ARROW = "data-00000-of-00001.arrow"


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**30)


def _behind(path: Path) -> None:
    path.write_text('{"text": "a"}\n')
    os.truncate(path, 2**30)


def _text(*pieces: str | bytes):
    """A writer of the first piece, as often as makes SIZE bytes, between the others."""
    piece, before, after = (*pieces, "", "")[:3]
    return lambda path: path.write_text(before + piece * (SIZE // len(piece)) + after)


def _packed(piece: bytes):
    """A writer of a GiB in a MB: a .gz may hold several, which are one."""
    return lambda path: path.write_bytes(gzip.compress(piece * (2**24 // len(piece))) * 64)


def _parquet(values: pyarrow.Array, **how):
    return lambda path: pyarrow.parquet.write_table(pyarrow.table({"text": values}), path, compression="zstd", **how)


def _saved(values: pyarrow.Array, **how):
    def write(folder: Path) -> None:
        datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(folder)
        table, options = pyarrow.table({"text": values}), pyarrow.ipc.IpcWriteOptions(**how)
        with pyarrow.OSFile(str(folder / ARROW), "wb") as file:
            with pyarrow.ipc.new_stream(file, table.schema, options=options) as stream:
                stream.write_table(table)

    return write


def _saved_sparse(folder: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(folder)
    os.truncate(folder / ARROW, 2**40)


HEAVY = {  # the file's name, what writes it, and what is said, None where it is read
    "a GiB of one letter, packed": ("x.txt.gz", _packed(b"x"), "unpacks to more than 256 MiB"),
    "a line of a GiB, packed": ("x.jsonl.gz", _packed(b"x"), "a line of more than 64 MiB"),
    "short rows, packed": ("x.jsonl.gz", _packed(b"[]\n"), "unpacks to more than 256 MiB"),
    "blank lines, packed": ("x.csv.gz", lambda path: path.write_bytes(gzip.compress(b"\n" * SIZE)), "lines in"),
    "a GiB of nothing, rows": ("x.jsonl", _sparse, "NUL"),
    "a GiB of nothing, JSON": ("x.json", _sparse, "NUL"),
    "a GiB of nothing, CSV": ("x.csv", _sparse, "NUL"),
    "a GiB of nothing, text": ("x.txt", _sparse, "NUL"),
    "a GiB of nothing, Parquet": ("x.parquet", _sparse, "not a Parquet file"),
    "a row, and a GiB of nothing": ("x.jsonl", _behind, "NUL"),
    "a text of 50 MB": ("x.jsonl", _text("x", '{"text": "', '"}'), None),
    "a line of 50 MB": ("x.txt", _text("x"), None),
    "a row of lists": ("x.jsonl", _text("[],", '{"text": [', "[]]}"), "values in"),
    "a list of lists": ("x.json", _text("[],", "[", "[]]"), "values in"),
    "a list of objects": ("x.json", _text('{"a": 1}, ', "[", "{}]"), "rows in"),
    "short rows": ("x.jsonl", _text("[]\n"), "lines in"),
    "rows of a number": ("x.jsonl", _text("1\n"), "lines in"),
    "short rows, CSV": ("x.csv", _text("a,b\n"), "lines in"),
    "short cells": ("x.csv", _text("," * 200 + "\n", "text\n"), "values in"),
    "quotes": ("x.csv", _text('"', "text\n"), None),
    "headings": ("x.txt", _text(" = a = \n"), "texts in"),
    "open brackets": ("x.json", _text("["), "values in"),
    "open brackets, fewer": ("x.json", lambda path: path.write_text("[" * 10**6), "nested too deeply"),
    "a number": ("x.json", _text("9"), "thousands of digits"),
    "a text said again, Parquet": ("x.parquet", _parquet(AGAIN), "unpacks to more than 256 MiB"),
    "a number said again, Parquet": ("x.parquet", _parquet(pyarrow.array([0] * 2**23)), "values in"),
    "nothing, often, Parquet": ("x.parquet", _parquet(pyarrow.nulls(2**22)), "rows in"),
    "a text said again, saved": ("saved", _saved(AGAIN), "unpacks to more than 256 MiB"),
    "texts, packed and saved": ("saved", _saved(pyarrow.array(["x" * 2**20] * 50), compression="zstd"), "compressed"),
    "short rows, saved": ("saved", _saved(pyarrow.array(["x"] * 2**22)), "rows in"),
    "a TiB of nothing, saved": ("saved", _saved_sparse, None),
    "references of a GiB": ("references", _sparse, "at most"),
    "references of lists": ("references", _text("[],", "[", "[]]"), "values in"),
    "anchors": ("yaml", lambda path: path.write_text(
        "a0: &a0 [x, x]\n" + "".join(f"a{at}: &a{at} [*a{at - 1}, *a{at - 1}]\n" for at in range(1, 40))
    ), "anchors"),
}  # fmt: skip
READERS = {"references": read_json, "yaml": read_yaml}


def _grown(path: Path) -> tuple[str | None, int]:
    """What is said of a file, and bytes of memory that a child takes for it beyond those of its start."""
    answer, told = os.pipe()
    child = os.fork()
    if not child:
        base = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_CPU, (60, 61))
        try:
            READERS.get(path.name, lambda path: load(str(path), ["text"]))(path)
            said = None
        except UserError as error:
            said = str(error)
        except BaseException as error:
            said = f"raised {error!r}"
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - base
        os.write(told, json.dumps([said and said[:1000], taken]).encode())
        os._exit(0)
    os.close(told)
    with open(answer, "rb") as file:
        found = file.read()
    os.waitpid(child, 0)
    return tuple(json.loads(found)) if found else ("it ended by itself", 0)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="memory is read where Linux has it")
@pytest.mark.parametrize("kind", HEAVY)
def test_what_is_small_or_endless_takes_little_memory(kind, tmp_path):
    name, write, expected = HEAVY[kind]
    write(tmp_path / name)
    said, taken = _grown(tmp_path / name)
    assert said is None if expected is None else expected in (said or "it is read"), said
    ends_at_once = "GiB of nothing" in kind and "Parquet" not in kind  # which is read whole
    most = MOST / 4 if ends_at_once else MOST
    assert taken < most, f"{taken / 1e9:.1f} GB"
