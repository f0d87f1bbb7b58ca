"""The store of labels: opened, written and asked. SQLite in a file, or PostgreSQL by its URL."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    create_engine,
    event,
    func,
    insert,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError

from rlhf_kit.data.labels import POSTGRESQL, schema
from rlhf_kit.data.labels.content import content_faults
from rlhf_kit.data.messages import as_messages, prompt_key
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.hashes import text_hash

BUSY = 30.0  # seconds that a write waits for another one
WRITING = 0x726C6866  # the advisory lock of PostgreSQL that assigning takes
SQLITE_HEADER = b"SQLite format 3\x00"
LAST_GUIDELINES = select(schema.guidelines).order_by(schema.guidelines.c.version.desc()).limit(1)

Prompt = str | Sequence[Mapping[str, Any]]
Gold = Sequence[int | bool] | None  # the rank or thumb of each answer


@dataclass(frozen=True)
class Answer:
    """`sources`: what wrote it: {"model": ..., "temperature": ...}; several where they wrote the same."""

    text: str
    sources: Sequence[Mapping[str, Any]] = ()
    id: int | None = None  # in the store


@dataclass(frozen=True)
class Task:
    id: int
    kind: str
    mode: str
    prompt: Prompt
    answers: tuple[Answer, ...]  # in the order they were added
    gold: Sequence[int | bool] | None = None
    explanation: str | None = None


@dataclass(frozen=True)
class Event:
    """What a labeler did. `content` of a decision, by id of the answer as text: `ranks` (1 = best, equal = tie),
    `ratings` (1 to 7), `flags` (lists of names); `label` (a thumb), `comment`, `reason`."""

    uid: str
    kind: str
    labeler: int
    content: Mapping[str, Any] = field(default_factory=dict)
    assignment: int | None = None
    guideline: int | None = None
    opened: float | None = None
    submitted: float | None = None
    interface: str = "web"


@dataclass(frozen=True)
class Decision:
    """The last event of an assignment: what a labeler thinks of a task now."""

    event: int
    kind: str
    task: int
    assignment: int
    labeler: int
    turn: int
    presented: tuple[int, ...]
    content: Mapping[str, Any]
    guideline: int | None
    opened: float | None
    submitted: float
    interface: str


class StoreFault(UserError):
    """The database cannot be read or written just now: a full disk, a lock, a server that is gone."""


class Store:
    """Opened by `open_store`. Every method is one transaction: after it returns, what it wrote stays."""

    def __init__(self, engine: Engine, name: str):
        self.engine, self.name = engine, name
        self.queue = threading.Lock()  # of this process's writers: SQLite lets one that waits sleep for up to 100 ms

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self._faults(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One writer at a time: what is read in it is still so when it is written."""
        with self.queue, self._faults(), self.engine.connect() as connection:
            connection = connection.execution_options(writes=True)
            with connection.begin():
                if self.engine.dialect.name == "postgresql":
                    connection.execute(select(func.pg_advisory_xact_lock(WRITING)))
                yield connection

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except DBAPIError as error:
            raise StoreFault(
                f"The store {self.name} cannot be used: {' '.join(str(error.orig).split())}. Nothing of this step was "
                "kept; what was acknowledged before is safe."
            ) from error

    # --- guidelines, labelers, tasks ---------------------------------------------------------------------------------

    def add_guidelines(self, markdown: str) -> int:
        """The version of this text: a new one where it differs from the last."""
        with self.writing() as connection:
            last = connection.execute(LAST_GUIDELINES).first()
            if last is not None and last.text == markdown:
                return last.version
            version = 1 if last is None else last.version + 1
            connection.execute(insert(schema.guidelines).values(version=version, text=markdown, created=time.time()))
            return version

    def guidelines(self) -> tuple[int, str] | None:
        """(version, Markdown) of the last ones; None where there are none."""
        with self.reading() as connection:
            row = connection.execute(LAST_GUIDELINES).first()
        return None if row is None else (row.version, row.text)

    def add_labeler(self, name: str, role: str = schema.LABELER) -> int:
        """The id of who is called so, added where nobody is. Raises UserError for another role than before."""
        if not re.fullmatch(r"[^\x00-\x1f\x7f]{1,80}", name) or name != name.strip():
            raise UserError(f"A labeler's name is {name!r}; give 1 to 80 characters without blanks around them.")
        if role not in schema.ROLES:
            raise UserError(f"{role!r} is not a role; give one of {', '.join(schema.ROLES)}.")
        with self.writing() as connection:
            row = connection.execute(select(schema.labelers).where(schema.labelers.c.name == name)).first()
            if row is None:
                row_id = connection.execute(
                    insert(schema.labelers).values(name=name, role=role, created=time.time())
                ).inserted_primary_key
                return row_id[0]
            if row.role != role:
                raise UserError(f"{name!r} is there already, as {row.role}. Give another name.")
            return row.id

    def labelers(self) -> dict[int, tuple[str, str]]:
        """(name, role) by id."""
        with self.reading() as connection:
            rows = connection.execute(select(schema.labelers).order_by(schema.labelers.c.id))
            return {row.id: (row.name, row.role) for row in rows}

    def add_task(
        self,
        kind: str,
        prompt: Prompt,
        answers: Sequence[Answer],
        mode: str = schema.NORMAL,
        gold: Gold = None,
        explanation: str | None = None,
    ) -> int:
        """The id of the task, added where the same list is not there yet. Equal answers become one.

        Raises UserError for a ranking of fewer than two different answers, a thumb on another number than one, or a
        list that is there in another mode or with other gold values.
        """
        merged, row, known = self._new_task(kind, answers, prompt, mode, gold)
        with self.writing() as connection:
            before = self._same(connection, row, mode, known)
            if before is not None:
                return before
            task = connection.execute(
                insert(schema.tasks).values(
                    **row, mode=mode, prompt=prompt, gold=None if gold is None else list(gold),
                    explanation=explanation, draw=random.Random(repr(row)).random(), created=time.time(),
                )
            ).inserted_primary_key[0]  # fmt: skip
            rows = [
                {"task": task, "place": place, "text": answer.text, "sources": list(map(dict, answer.sources))}
                for place, answer in enumerate(merged)
            ]
            connection.execute(insert(schema.answers), rows)
            return task

    def check_task(self, kind: str, prompt: Prompt, answers: Sequence[Answer], mode: str, gold: Gold = None) -> bool:
        """Whether the task is there already. Raises UserError where `add_task` would."""
        _, row, known = self._new_task(kind, answers, prompt, mode, gold)
        with self.reading() as connection:
            return self._same(connection, row, mode, known) is not None

    @staticmethod
    def _new_task(
        kind: str, answers: Sequence[Answer], prompt: Prompt, mode: str, gold: Gold
    ) -> tuple[list[Answer], dict[str, str], dict[str, int | bool]]:
        """(its answers, what its row is found by, gold values by text). Raises UserError for what is no task."""
        merged = merge_equal(answers)
        needed = "one answer" if kind == schema.THUMBS else "two different answers or more"
        if (len(merged) != 1) if kind == schema.THUMBS else (len(merged) < 2):
            raise UserError(f"A task of the kind {kind!r} needs {needed}, and has {len(merged)}.")
        if (gold is None) != (mode == schema.NORMAL) or (gold is not None and len(gold) != len(merged)):
            raise UserError(
                f"A {mode} task has {0 if gold is None else len(gold)} gold values for {len(merged)} answers."
            )
        texts = [answer.text for answer in merged]
        row = {
            "kind": kind,
            "prompt_hash": text_hash(prompt_key(prompt)),
            "answers_hash": text_hash("\x00".join(sorted(texts))),
        }
        return merged, row, dict(zip(texts, gold or (), strict=False))

    def _same(self, connection: Connection, row: Mapping[str, Any], mode: str, gold: Mapping[str, Any]) -> int | None:
        """The id of the task that has this list. Raises UserError where it is there otherwise than as it is given.

        gold: by an answer's text; empty for a normal task, which may be there as another: labels of it are decisions.
        """
        tasks, answers = schema.tasks, schema.answers
        found = connection.execute(
            select(tasks).where(*(tasks.c[name] == value for name, value in row.items()))
        ).first()
        if found is None or mode == schema.NORMAL:
            return None if found is None else found.id
        texts = connection.execute(select(answers.c.text).where(answers.c.task == found.id).order_by(answers.c.place))
        known = dict(zip(texts.scalars(), found.gold or (), strict=False))
        if (found.mode, known) != (mode, gold):
            raise UserError(
                f"The list of answers to {as_messages(found.prompt)[-1]['content'][:60]!r} is in the store, as a task "
                f"of the mode {found.mode}{' with other values' * (found.mode == mode)}; it stays what it is. Give "
                "other answers, or a new store."
            )
        return found.id

    def tasks(self, kind: str | None = None) -> dict[int, Task]:
        """By id, in the order they were added; of one kind, or all."""
        return self._tasks(*([] if kind is None else [schema.tasks.c.kind == kind]))

    def _tasks(self, *conditions: ColumnElement[bool]) -> dict[int, Task]:
        tasks, answers = schema.tasks, schema.answers
        with self.reading() as connection:
            rows = connection.execute(select(tasks).where(*conditions).order_by(tasks.c.id)).all()
            ordered = select(answers).join(tasks).where(*conditions).order_by(answers.c.task, answers.c.place)
            of_task: dict[int, list[Answer]] = {}
            for answer in connection.execute(ordered):
                of_task.setdefault(answer.task, []).append(Answer(answer.text, answer.sources, answer.id))
        return {
            row.id: Task(row.id, row.kind, row.mode, row.prompt, tuple(of_task[row.id]), row.gold, row.explanation)
            for row in rows
        }

    def task(self, number: int) -> Task:
        """Raises KeyError where there is none."""
        return self._tasks(schema.tasks.c.id == number)[number]

    def answer_given(self, number: int, labeler: int) -> str | None:
        """The text of an answer, if the labeler was given its task."""
        with self.reading() as connection:
            return connection.execute(
                select(schema.answers.c.text)
                .join(schema.assignments, schema.assignments.c.task == schema.answers.c.task)
                .where(schema.answers.c.id == number, schema.assignments.c.labeler == labeler)
                .limit(1)
            ).scalar()

    # --- events ------------------------------------------------------------------------------------------------------

    def add_event(self, event: Event) -> bool:
        """Keep what a labeler did; False where this very event (by `uid`) is kept already.

        Raises UserError for an event of an assignment that is not the labeler's, or whose content does not fit it.
        """
        with self.writing() as connection:
            kept = connection.execute(select(schema.events.c.labeler).where(schema.events.c.uid == event.uid)).scalar()
            if kept is not None:
                if kept != event.labeler:
                    raise UserError("An event of this name is another labeler's.")
                return False
            self._check(connection, event)
            values = {**vars(event), "content": dict(event.content)}
            values["submitted"] = event.submitted or time.time()
            connection.execute(insert(schema.events).values(**values))
            return True

    def _check(self, connection: Connection, event: Event) -> None:
        known = (*schema.DECISIONS, schema.ACKNOWLEDGED)
        if event.kind not in known:
            raise UserError(
                f"{event.kind!r} is not an event; give one of {', '.join(known)}.{did_you_mean(event.kind, known)}"
            )
        if (event.assignment is None) != (event.kind == schema.ACKNOWLEDGED):
            raise UserError(f"An event {event.kind!r} {'needs' if event.assignment is None else 'has no'} assignment.")
        if event.assignment is None:
            return
        row = connection.execute(
            select(schema.assignments.c.labeler, schema.assignments.c.presented, schema.tasks.c.kind)
            .join(schema.tasks)
            .where(schema.assignments.c.id == event.assignment)
        ).first()
        if row is None or row.labeler != event.labeler:
            raise UserError("This task was not given to this labeler.")
        faults = content_faults(event.kind, row.kind, [str(answer) for answer in row.presented], event.content)
        if faults:
            raise UserError(f"The decision {event.kind!r} cannot be kept: {'; '.join(faults)}.")

    def acknowledge(self, labeler: int, guideline: int) -> None:
        """Once: again is no event."""
        self.add_event(Event(f"ack-{labeler}-{guideline}", schema.ACKNOWLEDGED, labeler, guideline=guideline))

    def acknowledged(self, labeler: int, guideline: int) -> bool:
        uid = f"ack-{labeler}-{guideline}"
        with self.reading() as connection:
            return (
                connection.execute(select(schema.events.c.id).where(schema.events.c.uid == uid)).scalar() is not None
            )

    def decisions(self, kind: str | None = None, assignment: int | None = None) -> list[Decision]:
        """The last event of each assignment, in their order: of all of them, of one kind of task, or of one alone."""
        of = schema.events.c.assignment
        last = (
            select(func.max(schema.events.c.id).label("id"))
            .where(of.is_not(None) if assignment is None else of == assignment)
            .group_by(of)
            .subquery()
        )
        events, given, tasks = schema.events, schema.assignments, schema.tasks
        chosen = (
            select(events, given.c.task, given.c.turn, given.c.presented)
            .join(last, last.c.id == events.c.id)
            .join(given, given.c.id == events.c.assignment)
            .join(tasks, tasks.c.id == given.c.task)
            .order_by(given.c.id)
        )
        with self.reading() as connection:
            rows = connection.execute(chosen if kind is None else chosen.where(tasks.c.kind == kind)).all()
        return [
            Decision(
                row.id, row.kind, row.task, row.assignment, row.labeler, row.turn, tuple(row.presented), row.content,
                row.guideline, row.opened, row.submitted, row.interface,
            )
            for row in rows
        ]  # fmt: skip


def merge_equal(answers: Iterable[Answer]) -> list[Answer]:
    """Answers of the same text are one, with the sources of all, where the first of them stands."""
    sources: dict[str, list[Mapping[str, Any]]] = {}
    for answer in answers:
        sources.setdefault(answer.text, []).extend(answer.sources)
    return [Answer(text, of_text) for text, of_text in sources.items()]


# --- opening --------------------------------------------------------------------------------------------------------


def open_store(source: str | Path, create: bool = False) -> Store:
    """The store in a file, or in PostgreSQL by its URL; made where it is not there and `create` is set.

    Raises UserError for what is no store of labels, or one of another version.
    """
    source = str(source)
    engine = _engine(source, create)
    opened = Store(engine, source)
    with opened._faults():
        names = set(inspect(engine).get_table_names())
    ours = {table.name for table in schema.metadata.tables.values()}
    if not names and create:
        if engine.dialect.name == "sqlite":  # kept in the file: readers and a writer do not wait for one another
            with engine.connect() as connection:
                connection.connection.execute("PRAGMA journal_mode=WAL")
        with opened.writing() as connection:
            if not inspect(connection).get_table_names():  # two may begin at once
                schema.metadata.create_all(connection)
                connection.execute(insert(schema.store).values(name="schema", value=str(schema.VERSION)))
    elif not ours <= names:
        raise UserError(
            f"{source} is a database of something else (its tables: {', '.join(sorted(names)[:8]) or 'none'}). Give "
            "the file of `rlhf-kit collect --output_file`, or a new name."
        )
    with opened.reading() as connection:
        version = connection.execute(select(schema.store.c.value).where(schema.store.c.name == "schema")).scalar()
    if version != str(schema.VERSION):
        raise UserError(
            f"{source} is a store of version {version}, and this rlhf_kit reads version {schema.VERSION}. Read it "
            "with the rlhf_kit that made it, and export it there."
        )
    return opened


def _engine(source: str, create: bool) -> Engine:
    try:
        if source.startswith(POSTGRESQL):
            url = make_url(source).set(drivername="postgresql+psycopg")
            if url.password is not None:  # the name of the data goes into logs, records and model cards
                raise UserError("The password must not be in the URL; put it into PGPASSWORD or ~/.pgpass.")
            return create_engine(url, pool_pre_ping=True, hide_parameters=True)
        path = Path(source).expanduser()
        if not path.exists():
            if not create:
                raise UserError(f"There is no {path}. `rlhf-kit collect` makes a store of labels.")
            if not path.parent.is_dir():
                raise UserError(f"There is no folder {path.parent} for {path.name}. Make it, or give another name.")
        elif not path.is_file() or _beginning(path) not in (SQLITE_HEADER, b""):
            raise UserError(f"{path} is not an SQLite file. Give a store that `rlhf-kit collect` made, or a new name.")
        engine = create_engine(
            f"sqlite:///{path}",
            connect_args={"timeout": BUSY},
            hide_parameters=True,  # no label in a traceback
        )
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise UserError(
            f"{source!r} cannot be opened: {error}. Give FILE.db, or postgresql://USER@HOST/NAME with a driver: "
            'pip install "rlhf_kit[postgresql]".'
        ) from error
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(SQLITE_HEADER))


def _configure(connection, _) -> None:
    connection.isolation_level = None  # BEGIN is ours: Python's driver sends none before a read
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.execute(text("BEGIN IMMEDIATE" if writes else "BEGIN"))
