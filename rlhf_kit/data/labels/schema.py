"""The tables of a store of labels. Events are only ever added: a revision is a new event, and the last one counts.

guidelines ─< events >─ labelers ─< links
                │
tasks ─< assignments
  └─< answers
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    JSON,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)

from rlhf_kit.data.labels import EXAMPLE, GOLD, NORMAL  # noqa: F401  modes of tasks, named without SQLAlchemy

VERSION = 1  # goes up when a store of the version before cannot be read as one of this

RANKING, THUMBS = KINDS = ("ranking", "thumbs")  # of tasks
RANKED, THUMB, UNRANKABLE, SKIPPED = DECISIONS = ("ranked", "thumb", "unrankable", "skipped")  # that end an assignment
ACKNOWLEDGED = "acknowledged"  # the guidelines
LABELER, ADMIN = ROLES = ("labeler", "admin")

metadata = MetaData()

store = Table("store", metadata, Column("name", String(40), primary_key=True), Column("value", Text, nullable=False))

guidelines = Table(
    "guidelines",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("text", Text, nullable=False),  # Markdown
    Column("created", Float, nullable=False),  # this and all times: seconds since 1970, UTC
)

labelers = Table(
    "labelers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(80), nullable=False, unique=True),
    Column("role", String(20), nullable=False),
    Column("created", Float, nullable=False),
)

links = Table(
    "links",
    metadata,
    Column("hash", String(64), primary_key=True),  # SHA-256 of the token, which is nowhere else
    Column("labeler", ForeignKey("labelers.id"), nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float),  # once
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("mode", String(20), nullable=False),
    Column("prompt", JSON, nullable=False),  # text or messages
    Column("prompt_hash", String(16), nullable=False),
    Column("answers_hash", String(16), nullable=False),
    Column(
        "gold", JSON(none_as_null=True)
    ),  # of a gold task or an example: the rank or thumb of each answer, by its place
    Column("explanation", Text),  # of an example
    Column("draw", Float, nullable=False),  # from 0 to 1, by its lists' hash: tasks below a share are that share
    Column("created", Float, nullable=False),
    UniqueConstraint("kind", "prompt_hash", "answers_hash"),  # the same list is one task
)

answers = Table(
    "answers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", ForeignKey("tasks.id"), nullable=False),
    Column("place", Integer, nullable=False),  # from 0, as it was added; shown in another order
    Column("text", Text, nullable=False),
    Column("sources", JSON, nullable=False),  # [{"model": ..., "temperature": ...}, ...]; hidden from labelers
    UniqueConstraint("task", "place"),
)

assignments = Table(
    "assignments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task", ForeignKey("tasks.id"), nullable=False),
    Column("labeler", ForeignKey("labelers.id"), nullable=False),
    Column("turn", Integer, nullable=False),  # 0; 1 is the hidden repeat
    Column("presented", JSON, nullable=False),  # ids of the answers, first to last
    Column("opened", Float, nullable=False),
    Column("expires", Float, nullable=False),  # until then nobody else is given it in the labeler's place
    UniqueConstraint("task", "labeler", "turn"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", String(64), nullable=False, unique=True),  # given by who sends it: sent twice is kept once
    Column("kind", String(20), nullable=False),
    Column("labeler", ForeignKey("labelers.id"), nullable=False),
    Column("assignment", ForeignKey("assignments.id")),  # of a decision
    Column("guideline", ForeignKey("guidelines.version")),
    Column("content", JSON, nullable=False),  # ranks, ratings, flags by id of the answer; label, comment, reason
    Column("opened", Float),
    Column("submitted", Float, nullable=False),
    Column("interface", String(20), nullable=False),  # web, terminal, import
)
Index("events_by_assignment", events.c.assignment, events.c.id)
Index("assignments_by_labeler", assignments.c.labeler)


def _append_only() -> None:
    """The database itself refuses to change or remove an event."""
    refuse = "events are only added"
    for action in ("UPDATE", "DELETE"):
        trigger = f"CREATE TRIGGER events_{action.lower()} BEFORE {action} ON events"
        sqlite = DDL(f"{trigger} BEGIN SELECT RAISE(ABORT, '{refuse}'); END")
        postgresql = DDL(f"{trigger} FOR EACH STATEMENT EXECUTE FUNCTION events_refused()")
        if action == "UPDATE":
            function = "CREATE OR REPLACE FUNCTION events_refused() RETURNS trigger LANGUAGE plpgsql AS"
            function = DDL(f"{function} $$ BEGIN RAISE EXCEPTION '{refuse}'; END $$")
            event.listen(events, "after_create", function.execute_if(dialect="postgresql"))
        event.listen(events, "after_create", sqlite.execute_if(dialect="sqlite"))
        event.listen(events, "after_create", postgresql.execute_if(dialect="postgresql"))


_append_only()
