"""Files as strangers have them: half characters, other delimiters, doubled names, archives, packed bombs."""

import gzip
import json
import struct

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlhf_kit import inputs
from rlhf_kit.data import unpacking
from rlhf_kit.data.loading import load
from rlhf_kit.errors import UserError

GOOD = '{"prompt": "a", "completion": "b"}\n'
HALF = r"\ud83d"


@pytest.fixture
def read(tmp_path):
    """Rows of a file of that name and content."""

    def read(name, content, *kinds, **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load(str(path), kinds or ("demonstrations",), **options)[0]

    return read


@pytest.fixture
def told(read):
    """What is said of a file that is refused."""

    def told(*args, **options) -> str:
        with pytest.raises(UserError) as error:
            read(*args, **options)
        return str(error.value)

    return told


DIALOGUE = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
RANKED = '{"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2]}'
HALVES = {
    "a completion": (GOOD + "\n" + GOOD.replace("b", HALF), "demonstrations", "line 3: `completion` has half"),
    "a turn": (DIALOGUE.replace('"b"', f'"{HALF}"'), "demonstrations", "line 1: `messages`, 2, `content` has half"),
    "the second half": ('{"text": "ok \\udc00"}', "text", r"line 1: `text` has half a character ('\udc00', at 3)"),
    "an answer": (RANKED.replace('"c"', f'"{HALF}"'), "ranked", "`completions`, 2"),
    "a further column": (f'{{"prompt": "a", "facts": {{"x": ["{HALF}"]}}}}', "prompts", "`facts`, `x`, 1 has half"),
    "a column not read": (GOOD.replace("}", f', "meta": "{HALF}"}}'), "demonstrations", "`meta` has half"),
    "a name": (f'{{"prompt": "a", "x{HALF}": 1}}', "prompts", r"the name 'x\ud83d' has half"),
}


@pytest.mark.parametrize("case", HALVES)
def test_half_a_character_is_told_with_its_line(case, told):
    content, kind, fault = HALVES[case]
    said = told("x.jsonl", content, kind)
    assert fault in said and "different types" not in said
    said.encode()  # it can be printed anywhere


def test_half_a_character_in_json_csv_and_a_whole_pair(told, read):
    assert "row 2: `completion` has half" in told("x.json", f"[{GOOD}, {GOOD.replace('b', HALF)}]")
    rows = 'prompt,completions,ranks\n"a\nb","[""c"",""d""]","[1,2]"\nd,"[""c"",""HALF""]","[1,2]"\n'.replace(
        "HALF", HALF
    )
    assert "row 2 (line 4): `completions`, 2 has half" in told("x.csv", rows, "ranked")
    assert read("x.jsonl", GOOD.replace("b", r"\ud83d\ude00"))[0]["completion"] == "😀"
    assert len(read("x.jsonl", GOOD + GOOD.replace("b", HALF), on_bad_row="drop")) == 1


def test_bytes_that_are_no_text_are_told_with_their_place(told, tmp_path):
    assert "line 2, byte 48" in told("x.jsonl", GOOD.encode() + b'{"prompt": "x\xed\xa0\xbd"}')
    bad = pyarrow.StringArray.from_buffers(
        3, pyarrow.py_buffer(struct.pack("<4i", 0, 2, 6, 9)), pyarrow.py_buffer(b"okfine\xed\xa0\xbd")
    )
    table = pyarrow.table({"prompt": ["a", "b", "c"], "completion": bad})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    for name in ("x.parquet", "saved"):
        with pytest.raises(UserError, match="row 3 holds text that is not UTF-8"):
            load(str(tmp_path / name), ("demonstrations",))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused_where_one_is_needed(number, told):
    for column, kind in (("scores", "ranked"), ("ranks", "ranked")):
        row = RANKED.replace("ranks", column).replace("2]", f"{number}]")
        assert f"line 1: `{column}` holds the number" in told("x.jsonl", row, kind)
    row = f'{{"prompt": "a", "chosen": "b", "rejected": "c", "margin": {number}}}'
    assert "line 1: `margin` is the number" in told("x.jsonl", row, "pairs")
    assert "line 1: `completion` is the number" in told("x.jsonl", GOOD.replace('"b"', number))


@pytest.mark.parametrize("sign, name", [(";", "semicolons"), ("\t", "tabs"), ("|", "the sign |")])
@pytest.mark.parametrize(
    "first", ["prompt{}completion", '"prompt"{}"completion"', "\ufeffprompt{}completion", "sep={}"]
)
def test_a_csv_of_another_delimiter_is_told_as_such(first, sign, name, told):
    said = told("x.csv", f"{first.format(sign)}\nwhy, oh{sign}b\n")
    assert f"separated by {name}, not by commas" in said and "Rename" not in said


def test_other_signs_within_cells_are_text(read):
    assert read("x.csv", 'prompt,completion\n"a;b|c\td;e",x\n')[0]["prompt"] == "a;b|c\td;e"
    assert read("x.csv", "text\na;b\n", "text")["text"] == ["a;b"]


def test_rows_of_several_lines_are_told_with_their_line(told):
    said = told("x.csv", 'prompt,completion\n"a\n\nb",c\n\nd\n"e\nf",""\ng,h,i\n')
    assert "row 2 (line 6): has no cell" in said
    assert "row 4 (line 9): has more cells than the 2 columns" in said
    assert "in the record that begins on line 3" in told("x.csv", 'prompt,completion\na,b\nc,"d\ne,f\n')
    assert "row 1: has no cell" in told("x.csv", "prompt,completion\na\n")


def test_a_name_that_stands_twice_loses_nothing_in_silence(told, read):
    assert "several columns have the same name: 'prompt'" in told("x.csv", "prompt,completion,prompt\na,b,c\n")
    assert "line 1: an object has `prompt` twice" in told("x.jsonl", GOOD.replace("}", ', "prompt": "c"}'))
    assert "row 1: an object has `content` twice" in told(
        "x.json", f"[{DIALOGUE}]".replace('"b"', '"b", "content": "c"')
    )
    assert "`completions`: an object has `role` twice" in told(
        "x.csv", 'prompt,completions\na,"[{""role"": ""x"", ""role"": ""y""}]"\n', "ranked"
    )
    assert "the file has `data` twice" in told("x.json", '{"data": [], "data": [1]}')
    assert len(read("x.csv", "prompt,completion,,\na,b,,\n")) == 1  # as spreadsheets leave
    assert "in a column without a name" in told("x.csv", "prompt,completion,,\na,b,,c\n")


def test_json_that_no_reader_takes_is_told_with_its_line(told):
    for line, what in (("[" * 100_000, "nested too deeply"), ("1" * 5000, "thousands of digits"), ("{", "column 2")):
        said = told("x.jsonl", GOOD + line)
        assert "line 2: is not valid JSON" in said and what in said
    assert "nested too deeply" in told("x.json", "[" * 100_000)


@pytest.mark.parametrize(
    "name, advice",
    [*((f"x.{ending}", "Unpack it") for ending in "zip tar tar.gz tgz jsonl.zst jsonl.bz2 json.xz 7z".split()),
     *((f"x.{ending}", "Save it as .csv with commas") for ending in ("tsv", "tsv.gz", "xlsx")),
     ("x.gz", "such as train.jsonl.gz"), ("x.ndjson", "Rename it to .jsonl"), ("x", "no suffix")],
)  # fmt: skip
def test_a_file_that_is_not_read_says_what_to_do(name, advice, told):
    assert advice in told(name, GOOD)


@pytest.mark.parametrize(
    "magic, advice",
    [(b"PK\x03\x04", ".zip"), (b"\x1f\x8b", "ends in .gz"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"),
     (b"(\xb5/\xfd", "zstd"), (b"PAR1", "Parquet"), (b"\xff\xfe", "UTF-16")],
)  # fmt: skip
def test_a_file_under_another_formats_name_is_told_what_it_is(magic, advice, told):
    assert advice in told("x.jsonl", magic + b"\xff\xff")


def test_what_comes_in_a_files_place_is_told_as_such(told, read):
    page, pointer = "\n<!DOCTYPE html>\n<p>404", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    for name in ("x.json", "x.jsonl", "x.csv"):
        assert "web page" in told(name, page) and "git lfs pull" in told(name, pointer)
    assert "git lfs pull" in told("x.txt", pointer, "text")
    assert len(read("x.txt", page, "text")) == 1  # a text may be one


def test_a_parquet_file_that_lies_is_refused(tmp_path, told):
    path = tmp_path / "y.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([2**62], pyarrow.timestamp("us"))}), path)
    assert "contains an invalid date" in told("x.parquet", path.read_bytes(), "text")
    assert "is not a Parquet file" in told("x.parquet", b"PAR1\0\0\0\0PAR1", "text")
    assert "is not a Parquet file" in told("x.parquet", path.read_bytes()[:-8] + b"\xff\xff\xff\x7fPAR1", "text")


def test_a_gz_is_whole_or_refused(read, told):
    packed = gzip.compress(GOOD.encode())
    assert len(read("x.jsonl.gz", packed * 3)) == len(read("x.jsonl.gz", packed + packed + packed + b"\0\0")) == 3
    assert "cut off in the middle" in told("x.jsonl.gz", packed[:-5])
    assert "cut off in the middle" in told("x.jsonl.gz", packed + packed[:-9])
    assert "has other data after its end" in told("x.jsonl.gz", packed + b"more")
    assert "damaged" in told("x.jsonl.gz", packed[:-6] + b"??" + packed[-4:])
    assert "Remove .gz from its name" in told("x.jsonl.gz", GOOD)


def test_a_gz_is_unpacked_within_bounds(told, read, monkeypatch):
    """The bounds are checked before anything is held: nothing beyond a piece is ever asked for."""
    monkeypatch.setattr(unpacking, "PIECE", 64)
    monkeypatch.setattr(unpacking, "MOST_UNPACKED", 4000)
    monkeypatch.setattr(unpacking, "MOST_TIMES", 0)
    monkeypatch.setattr(inputs, "LONGEST_LINE", 300)
    monkeypatch.setitem(inputs.MOST, "lines", (90, 50))
    held = []
    monkeypatch.setattr(unpacking.gzip.GzipFile, "read", lambda file, size=-1: held.append(size) or real(file, size))
    assert len(read("x.jsonl.gz", gzip.compress(GOOD.encode() * 90))) == 90
    held.clear()
    assert "unpacks to more than" in told("x.json.gz", gzip.compress(b" " * 4001))
    assert "unpacks to more than" in told("x.jsonl.gz", gzip.compress(b" " * 199 + b"\n") * 30)
    assert "holds a line of more than" in told("x.csv.gz", gzip.compress(b"a" * 2000))
    assert "has 200 lines in 24 bytes; a file this small may hold at most 90" in told(
        "x.jsonl.gz", gzip.compress(b"\n" * 200)
    )
    assert set(held) == {64}


real = gzip.GzipFile.read


def test_a_json_packed_or_not_may_be_one_long_line(read, monkeypatch):
    monkeypatch.setattr(inputs, "LONGEST_LINE", 30)
    rows = json.dumps([json.loads(GOOD)] * 50)
    assert len(read("x.json.gz", gzip.compress(rows.encode()))) == len(read("x.json", rows)) == 50


@pytest.mark.parametrize("column", ["texts", "dialogues"])
def test_a_parquet_file_that_would_fill_the_memory_is_refused(column, tmp_path):
    """A few hundred bytes each, of which 2 GiB would be made: a text of 1 MiB said 2,000 times."""
    again = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 2000, pyarrow.int32()), ["x" * 2**20])
    if column == "dialogues":
        offsets = pyarrow.array(range(2001), pyarrow.int32())
        again = pyarrow.ListArray.from_arrays(offsets, pyarrow.StructArray.from_arrays([again], ["content"]))
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": again}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"x.parquet unpacks to more than 256 MiB.*Split it into shards"):
        load(str(path), ["text"])


def test_a_parquet_file_of_few_bytes_and_many_rows_or_numbers_is_refused(tmp_path, monkeypatch):
    """A number that repeats is stored once: 1000 of them are 8000 bytes once they are read."""
    monkeypatch.setattr(unpacking, "MOST_TIMES", 1)
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"label": [1] * 1000}), path)
    assert path.stat().st_size < 4000
    monkeypatch.setattr(unpacking, "MOST_UNPACKED", 9000)
    monkeypatch.setitem(inputs.MOST, "rows", (1000, 5000))
    unpacking.measure_parquet(path, path.read_bytes())
    monkeypatch.setitem(inputs.MOST, "rows", (999, 5000))
    with pytest.raises(
        UserError, match="x.parquet has 1,000 rows in .* bytes; a file this small may hold at most 999"
    ):
        unpacking.measure_parquet(path, path.read_bytes())
    monkeypatch.setattr(unpacking, "MOST_UNPACKED", 7999)
    with pytest.raises(UserError, match="x.parquet unpacks to more than .* Split it into shards"):
        unpacking.measure_parquet(path, path.read_bytes())


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", None])
def test_a_parquet_file_is_read_however_its_texts_are_stored(encoding, tmp_path):
    path, table = tmp_path / "x.parquet", pyarrow.table({"text": ["the cat", "the cat sat"]})
    how = {"use_dictionary": True} if encoding is None else {"use_dictionary": False, "column_encoding": encoding}
    pyarrow.parquet.write_table(table, path, **how)
    assert load(str(path), ["text"])[0]["text"][:] == ["the cat", "the cat sat"]
