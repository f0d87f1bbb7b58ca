"""Labels made elsewhere, put into a store: each as its labeler's decision on a task, once however often it is read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import insert, select

from rlhf_kit.data.labels import schema
from rlhf_kit.data.labels.store import Answer, Event, Store
from rlhf_kit.data.orders import dense
from rlhf_kit.hashes import text_hash

NOBODY = "import"  # labeler of rows that name none


def add_rankings(store: Store, rows: Iterable[Mapping[str, Any]]) -> int:
    """Put ranked rows (`prompt`, `completions`, `ranks`, `labeler`) into a store; how many of them were new.

    A ranking that a labeler already gave is not added again; another one of the same answers revises it. Answers given
    twice are one, with their first rank.
    """
    added = 0
    for row in rows:
        ranks = _ranks(row)
        task = store.add_task(schema.RANKING, row["prompt"], list(map(Answer, ranks)))
        ids = {answer.text: answer.id for answer in store.task(task).answers}
        content = {"ranks": {str(ids[text]): rank for text, rank in ranks.items()}}
        added += _add(store, row, task, schema.RANKED, content, [ids[text] for text in ranks])
    return added


def add_thumbs(store: Store, rows: Iterable[Mapping[str, Any]]) -> int:
    """Put thumbs (`prompt`, `completion`, `label`) into a store; how many of them were new."""
    added = 0
    for row in rows:
        task = store.add_task(schema.THUMBS, row["prompt"], [Answer(row["completion"])])
        content = {"label": bool(row["label"])}
        added += _add(store, row, task, schema.THUMB, content, [store.task(task).answers[0].id])
    return added


def add_known(store: Store, rows: Iterable[Mapping[str, Any]], mode: str) -> int:
    """Put rankings or thumbs into a store as gold tasks or examples, whose answer is known; how many were new.

    An example's `explanation` is shown after it was ranked. Raises UserError, and nothing was added, for a list that
    is there as another task, or is there with another order.
    """
    tasks = []
    for row in rows:
        thumb = "label" in row
        gold = {row["completion"]: bool(row["label"])} if thumb else _ranks(row)
        kind = schema.THUMBS if thumb else schema.RANKING
        tasks.append(
            ((kind, row["prompt"], list(map(Answer, gold)), mode, list(gold.values())), row.get("explanation"))
        )
    there = [store.check_task(*task) for task, _ in tasks]
    for task, explanation in tasks:
        store.add_task(*task, explanation)
    return there.count(False)


def _ranks(row: Mapping[str, Any]) -> dict[str, int]:
    """Ranks by text, without gaps, in the order the answers are given; of one given twice the first rank."""
    first = dict(reversed(list(zip(row["completions"], row["ranks"], strict=True))))
    texts = list(dict.fromkeys(row["completions"]))
    return dict(zip(texts, dense([first[text] for text in texts]), strict=True))


def _add(
    store: Store, row: Mapping[str, Any], task: int, kind: str, content: Mapping[str, Any], presented: list[int]
) -> bool:
    labeler = store.add_labeler(" ".join(str(row.get("labeler") or NOBODY).split())[:80] or NOBODY)
    uid = text_hash(repr((task, labeler, sorted(content.get("ranks", {}).items()), content.get("label"))))
    assignment = _assignment(store, task, labeler, presented)
    return store.add_event(
        Event(f"import-{uid}", kind, labeler, content, assignment, submitted=time.time(), interface="import")
    )


def _assignment(store: Store, task: int, labeler: int, presented: list[int]) -> int:
    given, now = schema.assignments, time.time()
    same = (given.c.task == task) & (given.c.labeler == labeler) & (given.c.turn == 0)
    values = {
        "task": task, "labeler": labeler, "turn": 0, "presented": presented, "opened": now, "expires": now,
    }  # fmt: skip
    with store.writing() as connection:
        before = connection.execute(select(given.c.id).where(same)).scalar()
        return before or connection.execute(insert(given).values(values)).inserted_primary_key[0]
