"""Files that nobody should train or score on: (ending, content) of each kind, none with a row that a command takes."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

ROW = '{"prompt": "a", "completion": "b"}\n'
TABLE = pyarrow.table({"prompt": ["a"], "completion": ["b"]})
MANY = 10**6


def _parquet(table: pyarrow.Table) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


def _arrow(make) -> bytes:
    file = io.BytesIO()
    with make(file, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("rows.jsonl"))
    return file.getvalue()


def _zip(content: bytes = ROW.encode()) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", content)
    return file.getvalue()


PACKED = gzip.compress(ROW.encode())
OTHERS = {  # what is no text at all, or another format's, under a text's name
    "gzip": PACKED,
    "bzip2": bz2.compress(ROW.encode()),
    "xz": lzma.compress(ROW.encode()),
    "zstd": b"\x28\xb5\x2f\xfd\x24\x00\x01\x00\x00",
    "a zip": _zip(),
    "a zip in a zip": _zip(_zip(bytes(MANY))),
    "a tar": _tar(),
    "7z": b"7z\xbc\xaf\x27\x1c\x00\x04",
    "Parquet": _parquet(TABLE),
    "Arrow's file": _arrow(pyarrow.ipc.new_file),
    "Arrow's stream": _arrow(pyarrow.ipc.new_stream),
    "a pickle": pickle.dumps({"a": 1}),
    "NumPy": b"\x93NUMPY\x01\x00v\x00",
    "a picture": b"\x89PNG\r\n\x1a\n\x00\x00",
    "a database": b"SQLite format 3\x00\x10\x00",
    "UTF-16": ROW.encode("utf-16"),
    "UTF-16 without a mark": ROW.encode("utf-16-le"),
    "UTF-16, the other way": ROW.encode("utf-16-be"),
    "UTF-32": ROW.encode("utf-32"),
    "Latin-1": b'{"prompt": "caf\xe9"}',
    "half a character": b'{"prompt": "\xed\xa0\xbd"}',
    "a NUL": ROW.encode() + b"\0\n",
    "only NULs": bytes(1000),
    "GIT LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}
TEXTS = {  # as .json and .jsonl alike
    "a web page": "<!DOCTYPE html>\n<html><body>404: no such file</body></html>",
    "a server's error": '<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "an answer of words": "Not Found",
    "nothing": "",
    "blanks": " \t\n\r\n ",
    "other blanks": "\u3000\u00a0\n\x0b\x0c",
    "a mark alone": "\ufeff",
    "cut off": ROW[:-8],
    "deep lists": "[" * MANY + "]" * MANY,
    "deep objects": '{"a":' * MANY + "1" + "}" * MANY,
    "a deep value": '{"prompt": ' + "[" * 300 + "]" * 300 + "}",
    "an integer of many digits": '{"prompt": ' + "9" * 10**5 + "}",
    "a comma too many": '{"prompt": "a", "completion": "b",}',
    "a comment": "// rows\n" + ROW,
    "a comment of Python": "# rows\n" + ROW,
    "single quotes": "{'prompt': 'a', 'completion': 'b'}",
    "names without quotes": '{prompt: "a"}',
    "a tab in a text": '{"prompt": "a\tb"}',
    "an escape that is none": r'{"prompt": "\x61"}',
    "two values": "{} {}",
    "a number": "1",
    "not a number": "NaN",
    "a text": '"rows"',
    "null": "null",
    "lists": "[[1], [2]]",
    "many columns": json.dumps({f"c{at}": at for at in range(10**5)}),
    "a key twice": '{"prompt": "a", "prompt": "b", "completion": "c"}',
    "a name of nothing": '{"": "a"}',
    "names of blanks": '{" ": "a", "\\t": "b"}',
    "a name with half a character": r'{"\ud800": "a"}',
    "a name with escapes": r'{"\u001b[31mprompt": "a", "x\ny": "b", "[/INST]": "c"}',
    "a name of many characters": json.dumps({"x" * 10**5: 1}),
    "lists that have a name": '{"prompt": ["a", "b"], "completion": ["c", "d"]}',
}
LISTS = {  # as .json
    "a list of nothing": "[]",
    "a list of nulls": "[null, null]",
    "a list of texts": '["a", "b"]',
    "a list of numbers": "[1, 2.5, 1e999, -Infinity]",
    "a list that ends with a comma": '[{"prompt": "a"},]',
    "a list of other rows": '[{"x": 1}, {"y": [1]}, 5, null, "z"]',
    "data that is a text": '{"data": "rows"}',
    "data that is an object": '{"data": {"prompt": "a"}}',
    "data that is nothing": '{"data": null}',
    "data in data": '{"data": [{"data": [[]]}]}',
    "no closing bracket": '[{"prompt": "a"}',
    "numbers as texts": '[{"prompt": 3, "completion": NaN, "text": Infinity}]',
    "many values": "[" + "[]," * 3_500_000 + "[]]",
}
ROWS = {  # as .jsonl
    "rows that change": '{"prompt": 1}\n{"prompt": {"a": 1}}\n5\n"x"\nnull\n[]\n',
    "a list over lines": '[\n  {"prompt": "a"},\n  {"prompt": "b"}\n]\n',
    "an object over lines": '{\n  "prompt": "a"\n}\n',
    "rows with commas": ROW.replace("\n", ",\n") * 2,
    "old line ends": ROW.replace("\n", "\r") * 2,
    "two rows a line": ROW.strip() * 2,
    "rows of nothing": "{}\n{}\n",
    "many lines": "\n" * 2_200_000,
}
CSV = {
    "a column": "x\n1\n",
    "columns alone": "prompt,completion\n",
    "commas alone": ",,\n,,\n",
    "no name": ",\na,b\n",
    "a column twice": "prompt,prompt\na,b\n",
    "a column twice but for blanks": "prompt, prompt\na,b\n",
    "semicolons": "prompt;completion\na;b\n",
    "tabs": "prompt\tcompletion\na\tb\n",
    "a quote that stays open": 'prompt,completion\n"a,b\nc,d\n',
    "a quote in a cell": 'prompt,completion\n"a"b,c\n',
    "too many cells": "prompt,completion\na,b,c\n",
    "too few cells": "prompt,completion,x\na,b\n",
    "many columns": ",".join(f"c{at}" for at in range(10**5)) + "\n",
    "a web page": TEXTS["a web page"],
    "a name with escapes": "\x1b[31mx,[/INST]\n1,2\n",
    "old line ends and no row": "prompt,completion\r\r",
    "nothing": "",
    "blanks": " \n \n",
    "many cells": "," * 6_000_000,
}
WRONG = {"prompt": [{"a": {"b": [1]}}], "completion": [{"c": [[None]]}], "text": [{"d": 1}], "completions": [{"e": 1}]}
PARQUET = {
    "nothing": b"",
    "text": ROW.encode(),
    "its mark alone": b"PAR1",
    "its marks alone": b"PAR1\x00\x00\x00\x00PAR1",
    "cut off": OTHERS["Parquet"][:-20],
    "its start": OTHERS["Parquet"][:40],
    "a foot that lies": OTHERS["Parquet"][:-8] + b"\xff\xff\xff\x7fPAR1",
    "no rows": _parquet(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())})),
    "no columns": _parquet(pyarrow.table({})),
    "structs": _parquet(pyarrow.table(WRONG)),
    "dates": _parquet(pyarrow.table({"text": pyarrow.array([2**62], pyarrow.timestamp("ns"))})),
    "years without end": _parquet(pyarrow.table({"text": pyarrow.array([2**62], pyarrow.timestamp("us"))})),
    "bytes": _parquet(pyarrow.table({"prompt": [b"\xff"], "text": [b"\xff"]})),
    "nulls": _parquet(pyarrow.table({"prompt": pyarrow.nulls(3), "text": pyarrow.nulls(3)})),
    "a column twice": _parquet(
        pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    ),
    "many columns": _parquet(pyarrow.table({f"c{at}": [1] for at in range(2000)})),
}
GZ = {
    "cut off": PACKED[:-5],
    "its start": PACKED[:6],
    "something behind": PACKED + b"more",
    "a sum that lies": PACKED[:-6] + b"??" + PACKED[-4:],
    "damaged": PACKED[:14] + b"\xff\xff\xff" + PACKED[17:],
    "not packed": ROW.encode(),
    "nothing": b"",
    "nothing, packed": gzip.compress(b""),
    "packed twice": gzip.compress(PACKED),
    "a tar": gzip.compress(_tar()),
    "Parquet": gzip.compress(OTHERS["Parquet"]),
    "many lines": gzip.compress(b"\n" * 2_200_000),
    "NULs": gzip.compress(bytes(MANY)),
}
ENDINGS = "tar tar.gz tgz zip 7z rar bz2 jsonl.bz2 xz zst gz tsv xlsx arrow feather pkl npy yaml html md ndjson pq bin"


def _kinds():
    for suffix, contents in {
        ".jsonl": OTHERS | TEXTS | ROWS,
        ".json": OTHERS | TEXTS | LISTS,
        ".csv": OTHERS | CSV,
        ".parquet": PARQUET,
        ".jsonl.gz": GZ,
    }.items():
        yield from ((f"{name}{suffix}", suffix, content) for name, content in contents.items())
    yield from ((f"any.{ending}", f".{ending}", ROW) for ending in ENDINGS.split())


KINDS = {
    name: (suffix, content if isinstance(content, bytes) else content.encode()) for name, suffix, content in _kinds()
}
