"""Who labels what next: overlap between labelers, gold tasks, hidden repeats, and locks that expire.

A labeler is given examples first, then by a draw that depends on the labeler and how much they have done alone: a gold
task, one of their own again in another order, or the next task that has fewer decisions than it needs. Nobody sees a
task twice but in a repeat.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, Subquery, case, func, insert, or_, select, update

from rlhf_kit.data.labels import schema
from rlhf_kit.data.labels.store import Decision, Store
from rlhf_kit.errors import UserError

given, tasks, events, answers = schema.assignments, schema.tasks, schema.events, schema.answers
NAME = "assignment"  # of the policy in the store
APART = 5  # decisions between a task and its hidden repeat


@dataclass(frozen=True)
class Policy:
    """Kept in the store: every process that assigns goes by the same.

    Args:
        minimum: decisions a task needs, each by somebody else.
        overlap: share of the tasks that need `overlap_minimum` instead, to measure how far labelers agree.
        gold, repeats: share of a labeler's tasks.
        lock: seconds for which a task that was given counts as one of its decisions.
    """

    minimum: int = 1
    overlap: float = 0.2
    overlap_minimum: int = 3
    gold: float = 0.05
    repeats: float = 0.05
    lock: float = 1800.0

    def __post_init__(self):
        """Raises UserError with all faults."""
        shares = {name: getattr(self, name) for name in ("overlap", "gold", "repeats")}
        faults = [f"{name} is {share}; give 0 to 1" for name, share in shares.items() if not 0 <= share <= 1]
        faults += [] if self.gold + self.repeats <= 0.9 else ["gold and repeats together leave too few new tasks"]
        faults += [] if 1 <= self.minimum <= self.overlap_minimum else ["give 1 <= minimum <= overlap_minimum"]
        faults += [] if self.lock > 0 else [f"lock is {self.lock}; give seconds above 0"]
        if faults:
            raise UserError(f"Assignment: {'; '.join(faults)}.")


@dataclass(frozen=True)
class Assignment:
    id: int
    task: int
    labeler: int
    turn: int
    presented: tuple[int, ...]  # ids of the answers as shown, first to last
    opened: float


def set_policy(store: Store, policy: Policy) -> None:
    row = {"name": NAME, "value": json.dumps(asdict(policy))}
    with store.writing() as connection:
        changed = connection.execute(update(schema.store).where(schema.store.c.name == NAME).values(row))
        if not changed.rowcount:
            connection.execute(insert(schema.store).values(row))


def policy_of(store: Store) -> Policy:
    with store.reading() as connection:
        value = connection.execute(select(schema.store.c.value).where(schema.store.c.name == NAME)).scalar()
    return Policy() if value is None else Policy(**json.loads(value))


def next_assignment(
    store: Store, labeler: int, kind: str, policy: Policy, now: float | None = None
) -> Assignment | None:
    """What a labeler is to do next, locked for them; what is open already comes first. None: nothing is left."""
    now = time.time() if now is None else now
    with store.writing() as connection:
        opened = _open(connection, labeler, kind)
        if opened is not None:
            connection.execute(update(given).where(given.c.id == opened.id).values(expires=now + policy.lock))
            return opened
        chosen = _choose(connection, labeler, kind, policy, now)
        return None if chosen is None else _give(connection, labeler, *chosen, now, policy.lock)


def assigned(store: Store, labeler: int, task: int, policy: Policy) -> Assignment:
    """This task for this labeler, whatever would come next; the one they have where they have it already."""
    with store.writing() as connection:
        own = (given.c.task == task) & (given.c.labeler == labeler) & (given.c.turn == 0)
        row = connection.execute(select(given).where(own)).first()
        return _give(connection, labeler, task, 0, time.time(), policy.lock) if row is None else _assignment(row)


def assignment_of(store: Store, number: int, labeler: int) -> tuple[Assignment | None, Decision | None]:
    """An assignment of this labeler and what was decided in it last; None where it is another's, or is not there."""
    with store.reading() as connection:
        row = connection.execute(select(given).where(given.c.id == number, given.c.labeler == labeler)).first()
    if row is None:
        return None, None
    return _assignment(row), next(iter(store.decisions(assignment=number)), None)


def last_assignment(store: Store, labeler: int, kind: str) -> Assignment | None:
    """What the labeler decided last; None where that is nothing."""
    with store.reading() as connection:
        row = connection.execute(
            select(given)
            .join(tasks)
            .join(events, events.c.assignment == given.c.id)
            .where(given.c.labeler == labeler, tasks.c.kind == kind)
            .order_by(events.c.id.desc())
            .limit(1)
        ).first()
    return None if row is None else _assignment(row)


def standing(store: Store, labeler: int, kind: str, policy: Policy, now: float | None = None) -> tuple[int, int]:
    """(decisions of this labeler, tasks that are left for them: new ones, and the one that is open)."""
    now = time.time() if now is None else now
    with store.reading() as connection:
        decided = select(events.c.assignment).where(events.c.assignment.is_not(None))
        own = select(func.count()).select_from(given).join(tasks)
        done = connection.execute(
            own.where(given.c.labeler == labeler, tasks.c.kind == kind, given.c.id.in_(decided))
        ).scalar_one()
        new = connection.execute(select(func.count()).select_from(_left(labeler, kind, policy, now))).scalar_one()
        return done, new + (_open(connection, labeler, kind) is not None)


def _open(connection: Connection, labeler: int, kind: str) -> Assignment | None:
    row = connection.execute(
        select(given)
        .join(tasks)
        .outerjoin(events, events.c.assignment == given.c.id)
        .where(given.c.labeler == labeler, tasks.c.kind == kind, events.c.id.is_(None))
        .order_by(given.c.id)
        .limit(1)
    ).first()
    return None if row is None else _assignment(row)


def _assignment(row) -> Assignment:
    return Assignment(row.id, row.task, row.labeler, row.turn, tuple(row.presented), row.opened)


def _choose(connection: Connection, labeler: int, kind: str, policy: Policy, now: float) -> tuple[int, int] | None:
    """(task, turn), or None where nothing is left."""
    seen = connection.execute(
        select(given.c.task, given.c.turn)
        .join(tasks)
        .where(given.c.labeler == labeler, tasks.c.kind == kind)
        .order_by(given.c.id)
    ).all()
    if (example := _unseen(connection, labeler, kind, schema.EXAMPLE)) is not None:
        return example, 0
    draw = random.Random(f"{labeler} {len(seen)}").random()
    if draw < policy.gold and (gold := _unseen(connection, labeler, kind, schema.GOLD)) is not None:
        return gold, 0
    if (
        policy.gold <= draw < policy.gold + policy.repeats
        and (again := _repeatable(connection, labeler, seen)) is not None
    ):
        return again, 1
    new = _wanted(connection, labeler, kind, policy, now)
    return None if new is None else (new, 0)


def _unseen(connection: Connection, labeler: int, kind: str, mode: str) -> int | None:
    mine = select(given.c.task).where(given.c.labeler == labeler)
    return connection.execute(
        select(tasks.c.id)
        .where(tasks.c.kind == kind, tasks.c.mode == mode, tasks.c.id.not_in(mine))
        .order_by(tasks.c.id)
        .limit(1)
    ).scalar()


def _repeatable(connection: Connection, labeler: int, seen: Sequence) -> int | None:
    """The oldest of the labeler's normal tasks that was ranked or given a thumb, some time ago, and not repeated."""
    repeated = {row.task for row in seen if row.turn == 1}
    old = [row.task for row in seen[:-APART] if row.turn == 0 and row.task not in repeated]
    return connection.execute(
        select(tasks.c.id)
        .join(given, given.c.task == tasks.c.id)
        .join(events, events.c.assignment == given.c.id)
        .where(given.c.labeler == labeler, tasks.c.id.in_(old), tasks.c.mode == schema.NORMAL,
               events.c.kind.in_((schema.RANKED, schema.THUMB)))
        .order_by(given.c.id)
        .limit(1)
    ).scalar()  # fmt: skip


def _wanted(connection: Connection, labeler: int, kind: str, policy: Policy, now: float) -> int | None:
    """The task that is nearest to what it needs, then the oldest, among those this labeler has not seen."""
    left = _left(labeler, kind, policy, now)
    return connection.execute(select(left.c.id).order_by(left.c.lacking, left.c.id).limit(1)).scalar()


def _left(labeler: int, kind: str, policy: Policy, now: float) -> Subquery:
    """`id` of each task that needs more decisions, with how many it is `lacking`, and that this labeler has not seen.

    Counted are the decisions that stand, and the locks that have not expired.
    """
    last = select(func.max(events.c.id)).where(events.c.assignment == given.c.id).correlate(given).scalar_subquery()
    kind_of_last = select(events.c.kind).where(events.c.id == last).correlate(given).scalar_subquery()
    stands = kind_of_last.in_((schema.RANKED, schema.THUMB, schema.UNRANKABLE))
    held = last.is_(None) & (given.c.expires > now)
    count = (  # by the index of each task's assignments: fast without the statistics that a new PostgreSQL lacks
        select(func.count())
        .where(given.c.task == tasks.c.id, given.c.turn == 0, or_(stands, held))
        .correlate(tasks)
        .scalar_subquery()
    )
    needed = case((tasks.c.draw < policy.overlap, policy.overlap_minimum), else_=policy.minimum)
    seen = select(given.c.task).where(given.c.labeler == labeler)
    unseen = (
        select(tasks.c.id, (needed - count).label("lacking"))
        .where(tasks.c.kind == kind, tasks.c.mode == schema.NORMAL, tasks.c.id.not_in(seen))
        .subquery()
    )
    return select(unseen).where(unseen.c.lacking > 0).subquery()


def _give(connection: Connection, labeler: int, task: int, turn: int, now: float, lock: float) -> Assignment:
    presented = list(
        connection.execute(select(answers.c.id).where(answers.c.task == task).order_by(answers.c.place)).scalars()
    )
    random.SystemRandom().shuffle(presented)  # kept with the assignment
    values = {
        "task": task,
        "labeler": labeler,
        "turn": turn,
        "presented": presented,
        "opened": now,
        "expires": now + lock,
    }
    number = connection.execute(insert(given).values(values)).inserted_primary_key[0]
    return Assignment(number, task, labeler, turn, tuple(presented), now)
