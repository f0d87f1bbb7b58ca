"""`rlhf-kit label`: rankings and thumbs typed in the terminal, kept in the store."""

from __future__ import annotations

import getpass
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.markdown import Markdown

from rlhf_kit.data.labels import schema
from rlhf_kit.data.labels.content import FLAGS
from rlhf_kit.data.labels.store import Event, Store, open_store
from rlhf_kit.feedback.asking import PREVIOUS, QUIT, Read, ask_ranking, ask_thumb
from rlhf_kit.feedback.assignment import (
    Assignment,
    assignment_of,
    last_assignment,
    next_assignment,
    policy_of,
    standing,
)
from rlhf_kit.feedback.truth import compare_decision
from rlhf_kit.inputs import read_text
from rlhf_kit.options import option
from rlhf_kit.references import imported
from rlhf_kit.terminal.console import Console


@dataclass
class LabelOptions:
    dataset_name: str | None = option(
        None,
        "A store of labels: FILE.db or postgresql://USER@HOST/NAME. 標註資料庫",
        positional="STORE",
        required=True,
    )
    kind: Literal["ranking", "thumbs"] = option("ranking", "What to do. 排序或讚／噓")
    labeler: str | None = option(None, "Your name. Default: your login. 你的名字")
    guidelines: Path | None = option(None, "Markdown; a changed text is a new version, to be read again. 標註準則")

    reveal_truth: bool = option(
        False, "After each ranking of the embedded world: how it compares with the truth. 排完後顯示與真相的差距"
    )


def run(options: LabelOptions) -> None:
    """`rlhf-kit label`. Raises UserError."""
    store = open_store(options.dataset_name)
    if options.guidelines is not None:
        store.add_guidelines(read_text(options.guidelines))
    labeler = store.add_labeler(options.labeler or getpass.getuser())
    label(store, labeler, options.kind, Console(), input, options.reveal_truth)


def label(store: Store, labeler: int, kind: str, console: Console, read: Read, reveal_truth: bool = False) -> None:
    """Ask until nothing is left, or the labeler quits. Each decision is in the store before the next is asked.

    With `reveal_truth`, a ranking of a prompt of the embedded world is compared with its truth once it is kept.
    """
    guideline = _acknowledged(store, labeler, console, read)
    if guideline == QUIT:
        return
    policy, again = policy_of(store), None
    while True:
        chosen = again or next_assignment(store, labeler, kind, policy)
        done, left = standing(store, labeler, kind, policy)
        if chosen is None:
            console.print(f"Nothing is left for you: {done} done. Thank you! 你的部分都完成了（{done} 筆），謝謝！")
            _tell_agreement(store, labeler, console)
            return
        console.print(f"{done} done 已完成, {left} left 剩下 (?: keys 按鍵)")
        started = time.time()
        decided, content = _ask(store, labeler, chosen, console, read)
        if decided == QUIT:
            return
        again = last_assignment(store, labeler, kind) if decided == PREVIOUS else None
        if decided != PREVIOUS:
            store.add_event(
                Event(
                    uuid.uuid4().hex, decided, labeler, content, chosen.id, guideline, started, time.time(), "terminal"
                )
            )
            if reveal_truth and (compared := compare_decision(store.task(chosen.task), content)) is not None:
                console.print(str(compared))


def _ask(store: Store, labeler: int, chosen: Assignment, console: Console, read: Read) -> tuple[str, dict]:
    task = store.task(chosen.task)
    texts = {answer.id: answer.text for answer in task.answers}
    answers = [(str(number), texts[number]) for number in chosen.presented]
    _, was = assignment_of(store, chosen.id, labeler)
    if task.kind == schema.THUMBS:
        return ask_thumb(console, read, task.prompt, answers[0], list(FLAGS))
    decided, content = ask_ranking(console, read, task.prompt, answers, list(FLAGS), was.content if was else None)
    if decided == schema.RANKED and task.mode == schema.EXAMPLE:
        gold = sorted(zip(task.gold, task.answers, strict=True), key=lambda pair: pair[0])
        console.print("The order of the guidelines 準則的順序:")
        for rank, answer in gold:
            console.print(f"  {rank}. {answer.text}")
        console.print(task.explanation or "")
    return decided, content


def _tell_agreement(store: Store, labeler: int, console: Console) -> None:
    """How far the labeler's rankings agree with those of others, where others ranked the same lists."""
    own = imported("rlhf_kit.data.labels.agreement:own_agreement", "feedback")(store, labeler)
    if own.n:
        console.print(f"You agree with others on {own.value:.1%} of {own.n} pairs. 你與其他人的一致率。")


def _acknowledged(store: Store, labeler: int, console: Console, read: Read) -> int | str | None:
    """The version of the guidelines, shown and acknowledged once; None where there are none."""
    latest = store.guidelines()
    if latest is None:
        return None
    version, text = latest
    if not store.acknowledged(labeler, version):
        console.print(Markdown(text))
        try:
            read("Enter: I have read them 我讀完了 ")
        except EOFError:
            return QUIT
        store.acknowledge(labeler, version)
    return version
