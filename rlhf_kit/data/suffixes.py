"""Names of files by their endings: what is read, and what to do with what is not."""

from __future__ import annotations

from pathlib import Path

FORMATS = (".json", ".jsonl", ".parquet", ".csv", ".txt")
SUFFIXES = (*FORMATS, *(f"{suffix}.gz" for suffix in FORMATS))
# Endings of files that are not read, by what to do instead.
_ADVICE = {
    "unpack it, and name a file inside": "zip tar tgz tbz2 txz bz2 xz zst lz4 7z rar",
    "save it as .csv with commas, or as .jsonl": "tsv tab psv xls xlsx ods",
    "rename it to .jsonl": "ndjson jsonlines jl",
    "rename it to .parquet": "pq",
    "save it as .parquet": "arrow feather orc avro",
    "save it as .txt, or as .jsonl with one object per line": "md html xml pdf docx yaml yml pkl log",
}
OTHERS = {f".{ending}": advice for advice, endings in _ADVICE.items() for ending in endings.split()}
SUPPORTED = "Supported: .json, .jsonl, .parquet, .csv and, for text and prompts, .txt; each may be compressed as .gz."


def suffix_of(path: Path) -> str:
    """ ".jsonl" or ".jsonl.gz", in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def is_file_name(path: Path) -> bool:
    """Whether a name ends as files do that are read here, or that people try."""
    return path.suffix.lower() in (*FORMATS, ".gz", *OTHERS)
