"""Labels that people give: the store, its reading as data, and how far labelers agree. Needs `[feedback]`."""

from __future__ import annotations

SUFFIXES = (".db", ".sqlite", ".sqlite3")
POSTGRESQL = ("postgresql://", "postgres://", "postgresql+psycopg://")
MODES = ("normal", "gold", "example")  # gold: the answer is known; example: and is explained
NORMAL, GOLD, EXAMPLE = MODES
SOURCES = ("ranked", "thumbs", "demonstrations", "prompts")  # what is read of a store: `labels.db:thumbs`


def is_store(source: str) -> bool:
    """Whether a source of data is a store of labels, by its name alone."""
    return source.startswith(POSTGRESQL) or parts(source)[0].lower().endswith(SUFFIXES)


def parts(source: str) -> tuple[str, str]:
    """(file or URL, kind) of a store's name; the kind is "" where none is named.

    >>> parts("labels.db:thumbs"), parts("labels.db")
    (('labels.db', 'thumbs'), ('labels.db', ''))
    """
    path, colon, kind = source.rpartition(":")
    return (path, kind) if colon and kind in SOURCES else (source, "")
