"""Bytes of a file, unpacked where it is packed: within bounds, as a packed file says nothing of its size."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from rlhf_kit.errors import UserError
from rlhf_kit.inputs import check_regular, read_bytes

MOST_UNPACKED = 2**30  # bytes of what a .gz holds
LONGEST_LINE, MOST_LINES = 2**26, 2**24  # bytes of a line, and lines, in a .gz that holds rows
MOST_TIMES = 32  # what a large Parquet file may unpack to, in its own size: it repeats less than a small one
PIECE = 2**20
_BOUND = "Unpack it (gunzip) and name the file itself, or split it into shards: train-00000-of-00002.jsonl.gz."


def unpacked(path: Path, has_lines: bool) -> bytes:
    """The content of a file, of a .gz what it holds. `has_lines`: its lines are rows, and none may be endless.

    Raises UserError for what cannot be read, is cut off, goes on behind its end, or unpacks to more than the bounds.
    """
    if path.suffix.lower() != ".gz":
        return read_bytes(path)
    check_regular(path)
    try:
        _measure(path, has_lines)  # before anything is held
        with gzip.open(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def _measure(path: Path, has_lines: bool) -> None:
    """Unpack a .gz to nowhere."""
    size = line = lines = 0
    with gzip.open(path) as file:
        try:
            while piece := file.read(PIECE):
                size += len(piece)
                line = len(piece) - piece.rfind(b"\n") - 1 + (line if b"\n" not in piece else 0)
                lines += piece.count(b"\n")
                if size > MOST_UNPACKED:
                    raise UserError(f"{path} unpacks to more than {MOST_UNPACKED // 2**20:,} MiB. {_BOUND}")
                if has_lines and (line > LONGEST_LINE or lines > MOST_LINES):
                    told = f"a line of more than {LONGEST_LINE // 2**20} MiB, or more than {MOST_LINES:,} lines"
                    raise UserError(f"{path} holds {told}. {_BOUND}")
        except EOFError:
            raise UserError(f"{path} cannot be read: it is cut off in the middle. Fetch or pack it anew.") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            if not _begins_packed(path):
                raise UserError(f"{path} cannot be read: it is not packed by gzip. Take .gz off its name.") from error
            told = f"it is damaged, or goes on with something else behind its end ({error})"
            raise UserError(f"{path} cannot be read: {told}. Fetch or pack it anew.") from error


def measure_parquet(path: Path, content: bytes) -> None:
    """Raise UserError for a Parquet file that would fill the memory: by what it says of itself, then by its texts as
    they would stand in a table, read without writing out those that repeat."""
    whole = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content)).metadata
    chunks = [
        group.column(at)
        for group in map(whole.row_group, range(whole.num_row_groups))
        for at in range(whole.num_columns)
    ]
    most = max(MOST_UNPACKED, MOST_TIMES * len(content))
    size = max(sum(chunk.total_uncompressed_size for chunk in chunks), sum(8 * chunk.num_values for chunk in chunks))
    if size <= most and whole.num_rows <= MOST_LINES:
        # Arrow reads texts that are stored by their differences in no other form: in few rows at a time.
        delta = {chunk.path_in_schema for chunk in chunks if "DELTA" in str(chunk.encodings)}
        texts = sorted({chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"})
        texts = [name for name in texts if name not in delta]
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content), read_dictionary=texts)
        size = sum(_size(column) for batch in file.iter_batches(64 if delta else 2**16) for column in batch.columns)
    if size > most or whole.num_rows > MOST_LINES:
        told = f"more than {most // 2**20:,} MiB, or more than {MOST_LINES:,} rows"
        raise UserError(f"{path} unpacks to {told}. Split it into shards: train-00000-of-00002.parquet.")


def _size(array: pyarrow.Array) -> int:
    """Bytes of an array, texts that repeat written out."""
    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        if pyarrow.types.is_primitive(kind.value_type):
            return 8 * len(array)
        lengths = pyarrow.compute.binary_length(array.dictionary)
        return pyarrow.compute.sum(lengths.take(array.indices).cast("int64")).as_py() or 0
    if pyarrow.types.is_struct(kind):
        return sum(map(_size, array.flatten()))
    if pyarrow.types.is_map(kind):
        return _size(array.keys) + _size(array.items)
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return _size(array.flatten())
    return array.nbytes


def _begins_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"
