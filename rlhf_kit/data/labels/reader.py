"""A store of labels as rows to train on: rankings, thumbs, the best answers, prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean
from typing import Any

from rlhf_kit.data.groups import Row
from rlhf_kit.data.labelers import merge
from rlhf_kit.data.labels import parts, schema
from rlhf_kit.data.labels.store import Decision, Store, Task, open_store
from rlhf_kit.data.messages import prompt_key
from rlhf_kit.errors import UserError

MERGED_BY = "ranked-pairs"  # how several labelers' rankings choose the best answer


def read_labels(source: str, kinds: Sequence[str]) -> list[Row]:
    """Rows of a store, as the first of `kinds` of which it has any; `labels.db:thumbs` names one of them.

    A revision replaces what it revises; gold tasks, examples, hidden repeats and what was skipped are left out.
    Raises UserError for another kind, or a store that has no row of any.
    """
    path, wanted = parts(source)
    readable = [kind for kind in READERS if kind in kinds]
    if not readable or (wanted and wanted not in readable):
        raise UserError(f"{source}: a store of labels has {', '.join(READERS)}; this stage takes {', '.join(kinds)}.")
    store = open_store(path)
    for kind in [wanted] if wanted else readable:
        if rows := READERS[kind](store):
            return rows
    raise UserError(
        f"{store.name} has no {' or '.join([wanted] if wanted else readable)} yet: {len(store.tasks())} tasks, "
        f"{len(store.decisions())} decisions. Label some with `rlhf-kit ui` or `rlhf-kit label`."
    )


def rankings(store: Store) -> list[Row]:
    """`prompt`, `completions` in the order they were added, `ranks`, `labeler`: a row a ranking."""
    names = {number: name for number, (name, _) in store.labelers().items()}
    return [
        {
            "prompt": task.prompt,
            "completions": [answer.text for answer in task.answers],
            "ranks": [decision.content["ranks"][str(answer.id)] for answer in task.answers],
            "labeler": names[decision.labeler],
        }
        for task, decision in counted(store, schema.RANKED)
    ]


def rankings_with_models(store: Store) -> list[Row]:
    """`rankings`, and in `models` what wrote each answer; of several, all by name."""
    models = [
        ["+".join(dict.fromkeys(str(source.get("model", "unknown")) for source in answer.sources)) or "unknown"
         for answer in task.answers]
        for task, _ in counted(store, schema.RANKED)
    ]  # fmt: skip
    return [row | {"models": names} for row, names in zip(rankings(store), models, strict=True)]


def thumbs(store: Store) -> list[Row]:
    """`prompt`, `completion`, `label`: a row a thumb."""
    return [
        {"prompt": task.prompt, "completion": task.answers[0].text, "label": decision.content["label"]}
        for task, decision in counted(store, schema.THUMB)
    ]


def merged(store: Store) -> list[Row]:
    """One ranking of all labelers' a list."""
    return merge(rankings(store), MERGED_BY)


def best(store: Store) -> list[Row]:
    """`prompt` and `completion`: of each list the answer that all rankings together put first.

    Of answers that tie there the one with the best mean rating is taken, then the first.
    """
    ratings: dict[tuple[str, str], list[int]] = defaultdict(list)
    for task, decision in counted(store, schema.RANKED):
        for answer in task.answers:
            if (rating := decision.content.get("ratings", {}).get(str(answer.id))) is not None:
                ratings[prompt_key(task.prompt), answer.text].append(rating)
    rows = []
    for row in merged(store):
        first = [text for text, rank in zip(row["completions"], row["ranks"], strict=True) if rank == 1]
        key = prompt_key(row["prompt"])
        rows.append(
            {"prompt": row["prompt"], "completion": max(first, key=lambda text: mean(ratings[key, text] or [0]))}
        )
    return rows


def prompts(store: Store) -> list[Row]:
    """Each prompt once."""
    return [
        {"prompt": prompt}
        for prompt in {prompt_key(task.prompt): task.prompt for task in store.tasks().values()}.values()
    ]


def counted(store: Store, kind: str) -> list[tuple[Task, Decision]]:
    """Decisions of a kind that are labels to learn from, with their tasks."""
    tasks = store.tasks()
    return [
        (tasks[decision.task], decision)
        for decision in store.decisions()
        if decision.kind == kind and decision.turn == 0 and tasks[decision.task].mode == schema.NORMAL
    ]


READERS: dict[str, Any] = {"ranked": rankings, "thumbs": thumbs, "demonstrations": best, "prompts": prompts}
