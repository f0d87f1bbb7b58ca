"""Bytes of a file, unpacked if it is packed, within limits: a packed file does not show its size."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, TextIO

import pyarrow
import pyarrow.compute
import pyarrow.ipc
import pyarrow.parquet

from rlhf_kit.errors import UserError
from rlhf_kit.inputs import Extent, check_regular, refuse_crowd, unread

MOST_UNPACKED = 2**28  # bytes of what any packed file may hold
MOST_TIMES = 32  # what a larger one may unpack to, in its own size: it repeats less than a small one
MOST_PACKED = 2**30  # bytes of what a .gz may hold, however large it is
PIECE = 2**20
_BOUND = "Unpack it (gunzip) and name the file itself, or split it into shards: train-00000-of-00002.jsonl.gz."


def unpacked(path: Path, extent: Extent | None = None) -> bytes:
    """The content of a file, of a .gz what it holds. `extent`: of a text, gone through before anything is held.

    Raises UserError for what cannot be read, is cut off, goes on behind its end, or unpacks to more than the bounds;
    and what `extent` refuses.
    """
    check_regular(path)
    is_packed = path.suffix.lower() == ".gz"
    try:
        if is_packed or extent:
            _measure(path, is_packed, extent)
        with _opened(path, is_packed) as file:
            return file.read()
    except OSError as error:
        raise unread(path, error) from error


def mapped(path: Path) -> pyarrow.Buffer:
    """The content of a file, of which the system keeps in memory what it has room for. Raises UserError."""
    check_regular(path)
    try:
        with pyarrow.memory_map(str(path)) as file:
            return file.read_buffer()
    except OSError as error:
        raise unread(path, error) from error


def text_of(path: Path, extent: Extent, newline: str) -> TextIO:
    """As `unpacked`, of a text that is read bit by bit: its file, gone through once, at its beginning."""
    check_regular(path)
    is_packed = path.suffix.lower() == ".gz"
    try:
        _measure(path, is_packed, extent)
        return io.TextIOWrapper(_opened(path, is_packed), encoding="utf-8-sig", newline=newline)
    except OSError as error:
        raise unread(path, error) from error


def _opened(path: Path, is_packed: bool) -> BinaryIO:
    return gzip.open(path) if is_packed else path.open("rb")


def _measure(path: Path, is_packed: bool, extent: Extent | None) -> None:
    """Unpack a file to nowhere."""
    size, most = 0, min(most_unpacked(path.stat().st_size), MOST_PACKED)
    with _opened(path, is_packed) as file:
        while piece := _piece(path, file):
            size += len(piece)
            if is_packed and size > most:
                raise UserError(f"{path} unpacks to more than {most // 2**20:,} MiB. {_BOUND}")
            if extent:
                extent.add(piece)
    if extent:
        extent.refuse_crowds()


def _piece(path: Path, file: BinaryIO) -> bytes:
    try:
        return file.read(PIECE)
    except EOFError:
        raise UserError(
            f"{path} cannot be read: it is cut off in the middle. Download or compress it again."
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        if not _begins_packed(path):
            raise UserError(
                f"{path} cannot be read: it is not compressed by gzip. Remove .gz from its name."
            ) from error
        reason = f"it is damaged, or has other data after its end ({error})"
        raise UserError(f"{path} cannot be read: {reason}. Download or compress it again.") from error


def most_unpacked(size: int) -> int:
    """The most bytes that a packed file of this size may contain."""
    return max(MOST_UNPACKED, MOST_TIMES * size)


def measure_parquet(path: Path, content: bytes | pyarrow.Buffer) -> None:
    """Raise UserError for a Parquet file that would fill the memory: by what it says of itself, then by its texts as
    they would stand in a table, read without writing out those that repeat."""
    whole = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content)).metadata
    chunks = [
        group.column(at)
        for group in map(whole.row_group, range(whole.num_row_groups))
        for at in range(whole.num_columns)
    ]
    size = max(sum(chunk.total_uncompressed_size for chunk in chunks), sum(8 * chunk.num_values for chunk in chunks))
    _refuse_size(path, size, most_unpacked(len(content)))
    refuse_crowd(path, "values", sum(chunk.num_values for chunk in chunks), len(content))
    # Arrow reads texts that are stored by their differences in no other form: in few rows at a time.
    delta = {chunk.path_in_schema for chunk in chunks if "DELTA" in str(chunk.encodings)}
    texts = sorted({chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"})
    texts = [name for name in texts if name not in delta]
    file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content), read_dictionary=texts)
    _measure_batches(path, file.iter_batches(64 if delta else 2**16), most_unpacked(len(content)))


def measure_arrow(path: Path) -> None:
    """Raise UserError for a file of Arrow's stream that would fill the memory.

    Also raises pyarrow.ArrowException for a damaged one, whose places may lie outside of it.
    """
    check_regular(path)
    with pyarrow.memory_map(str(path)) as content:
        if any(map(_is_packed, pyarrow.ipc.MessageReader.open_stream(content))):
            raise UserError(
                f"{path} is compressed internally, which `datasets` never writes. Save it again, or as .parquet."
            )
    with pyarrow.memory_map(str(path)) as content, pyarrow.ipc.open_stream(content) as stream:
        _measure_batches(path, map(_sound, stream), most_unpacked(path.stat().st_size))


def _is_packed(message: pyarrow.Message) -> bool:
    """Whether columns are compressed, of which Arrow writes out a whole batch at once (its Message.fbs)."""
    if message.type not in ("record batch", "dictionary"):
        return False
    table = message.metadata.to_pybytes()
    batch = _places(table, _behind(table, _places(table, _behind(table, 0))[2]))
    if message.type == "dictionary":
        batch = _places(table, _behind(table, batch[1]))
    return len(batch) > 3 and batch[3] > 0


def _places(table: bytes, start: int) -> list[int]:
    """Where the fields of FlatBuffers' table at `start` are, 0 for one that is not there."""
    offsets = start - struct.unpack_from("<i", table, start)[0]
    end = offsets + struct.unpack_from("<H", table, offsets)[0]
    return [offset and start + offset for (offset,) in struct.iter_unpack("<H", table[offsets + 4 : end])]


def _behind(table: bytes, place: int) -> int:
    return place + struct.unpack_from("<I", table, place)[0]


def _sound(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    try:
        batch.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        if "UTF8" not in str(error):  # such a text is reported with its row
            raise
    return batch


def _measure_batches(path: Path, batches: Iterable[pyarrow.RecordBatch], most: int) -> None:
    size = rows = 0
    for batch in batches:
        size += sum(map(_size, batch.columns))
        rows += len(batch)
        _refuse_size(path, size, most)
    refuse_crowd(path, "rows", rows, path.stat().st_size)


def _refuse_size(path: Path, size: int, most: int) -> None:
    if size > most:
        message = f"{path} unpacks to more than {most // 2**20:,} MiB"
        raise UserError(f"{message}. Split it into shards: train-00000-of-00002{path.suffix}.")


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
