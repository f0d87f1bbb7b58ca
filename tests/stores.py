"""An empty store for a test: a file, or with RLHF_KIT_TEST_STORE=postgresql://... a database of its own there."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

from rlhf_kit.data.labels.store import Store, open_store

SERVER = os.environ.get("RLHF_KIT_TEST_STORE", "")


def new_name(folder: Path, name: str = "labels.db") -> str:
    """The name of a store that is not made yet."""
    if not SERVER:
        return str(folder / name)
    database = f"test_{uuid.uuid4().hex}"
    url = make_url(SERVER).set(drivername="postgresql+psycopg")
    with create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"CREATE DATABASE {database}"))
    return make_url(SERVER).set(database=database).render_as_string()


def new_store(folder: Path, name: str = "labels.db") -> Store:
    return open_store(new_name(folder, name), create=True)
