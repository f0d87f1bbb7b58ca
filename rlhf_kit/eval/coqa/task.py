"""CoQA measured: the stories are checked, the model answers, the official scorer scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from transformers import PreTrainedModel

from rlhf_kit.data.coqa import Story, read_stories
from rlhf_kit.data.sources import WORLD
from rlhf_kit.eval import results, scorers
from rlhf_kit.eval.coqa.turns import PRESETS, Answered, Prompts, answer_by_gold, answer_by_own
from rlhf_kit.eval.items import Item, Results
from rlhf_kit.eval.task import ShotArguments, Task
from rlhf_kit.eval.type_guess import guess_score, type_guess
from rlhf_kit.generation.generators import layout
from rlhf_kit.hashes import text_hash
from rlhf_kit.options import option
from rlhf_kit.terminal.console import Console

ANSWER = {"gold": answer_by_gold, "model": answer_by_own}
PREDICTIONS = "predictions.json"


@dataclass
class CoQAArguments(ShotArguments):
    dataset_name: str | None = option(
        None, "CoQA's JSON, a folder, a hub id (stanfordnlp/coqa) or world. 測試資料", required=True
    )
    split: str | None = option(
        None, "Split of a folder or a hub dataset. Default: validation; of the world test. 資料的分割"
    )
    preset: Literal["gpt2", "gpt3"] = option("gpt2", "gpt2: greedy decoding; gpt3: 4 beams. 解碼方式")
    history: Literal["gold", "model"] = option(
        "gold", "Answers in the history: the data's or the model's. 對話紀錄中的回答"
    )


class CoQA(Task):
    name, unit, files = "coqa", "questions", (PREDICTIONS,)
    Arguments = CoQAArguments

    @property
    def protocol(self) -> str:
        return self.options.preset

    def read(self) -> list[Story]:
        self.is_world = self.options.dataset_name.partition(":")[0] == WORLD
        return read_stories(
            self.options.dataset_name, self.options.split or ("test" if self.is_world else "validation")
        )

    def prepare(self) -> list[str]:
        self.decoding = PRESETS[self.options.preset]
        self.chat = layout(self.tokenizer, self.options.apply_chat_template)
        new_tokens = self.decoding.max_new_tokens
        self.prompts = Prompts(self.tokenizer, self.context, new_tokens, self.options.apply_chat_template)
        self.prompts.check(self.rows)
        source = self.source_of_shots
        self.pool = read_stories(source, "train") if source else []
        self.turns = {turn_id(story, turn): story for story in self.rows for turn in range(len(story.questions))}
        return list(self.turns)

    def shares(self, ids: Sequence[str]) -> list[str]:
        return [self.turns[name].id for name in ids]

    def settings(self) -> dict[str, Any]:
        pool = results.fingerprint([asdict(story) for story in self.pool]) if self.pool else None
        options = self.options
        return {
            **self.chat, "history": options.history, "shots": options.shots, "dtype": options.dtype,
            "decoding": asdict(self.decoding), "demonstrations": pool,
        }  # fmt: skip

    def ask(self, model: PreTrainedModel, ids: Sequence[str]) -> Iterator[Item]:
        stories = list({self.turns[name].id: self.turns[name] for name in ids}.values())
        for story in stories:
            self.prompts.demonstrate(story, self.pool, self.options.shots, self.options.seed)
        answer = ANSWER[self.options.history]
        for answered in answer(model, self.prompts, stories, self.decoding, self.options.max_batch_tokens):
            yield item(answered, len(self.prompts.demonstrations[answered.story.id]))

    def details(self, items: Sequence[Item]) -> dict[str, Any]:
        return details(items, self.rows) | ({"type_guess": guessing(self.rows)} if self.is_world else {})

    def show(self, results: Results) -> None:
        show(results)

    def write(self, results: Results, items: Sequence[Item]) -> None:
        write_predictions(self.folder / PREDICTIONS, items)


# --- items ----------------------------------------------------------------------------------------------------------


def turn_id(story: Story, turn: int) -> str:
    """Of a turn from 0; the id has CoQA's `turn_id`, from 1."""
    return f"{story.id}/{turn + 1}"


def item(answered: Answered, demonstrations: int) -> Item:
    story, turn, continuation = answered.story, answered.turn, answered.continuation
    references = story.answers[turn]
    score = scorers.coqa(continuation.answer, references)
    best = max(scorers.coqa(continuation.answer, [reference]).f1 for reference in references)
    return Item(
        turn_id(story, turn), story.id, text_hash(answered.prompt.text), continuation.text, continuation.answer,
        {"em": score.em, "f1": score.f1, "f1_max": best},
        group=scorers.DOMAINS.get(story.source, story.source),
        details={
            "turn_id": turn + 1, "dropped_turns": answered.prompt.dropped, "demonstrations": demonstrations,
            "ended": continuation.ended,
        },
    )  # fmt: skip


def details(items: Sequence[Item], stories: Sequence[Story]) -> dict[str, Any]:
    """The official report, the human row, and what was cut to fit. `items` and the stories' turns in one order."""
    sources = [story.source for story in stories for _ in story.questions]
    scores = [scorers.Score(item.scores["em"], item.scores["f1"]) for item in items]
    references = [of_turn for story in stories for of_turn in story.answers]
    humans = [scorers.coqa_human(of_turn) for of_turn in references if len(of_turn) > 1]
    dropped = [item.details["dropped_turns"] for item in items]
    return {
        "official": scorers.coqa_report(zip(sources, scores, strict=True)),
        "human": {
            name: 100 * sum(getattr(score, name) for score in humans) / len(humans) for name in ("em", "f1")
        } if humans else None,
        "references_a_turn": sum(map(len, references)) / len(references),
        "questions_with_history_dropped": sum(count > 0 for count in dropped),
        "turns_dropped": sum(dropped),
        "answers_cut_off": sum(not item.details["ended"] for item in items),
        "demonstrations_a_question": sum(item.details["demonstrations"] for item in items) / len(items),
    }  # fmt: skip


def guessing(stories: Sequence[Story]) -> dict[str, float] | None:
    """What an answer of the right type scores (`type_guess`), in percent, over the `questions` whose type is known.

    Of a world's stories; None where no type is known. Whoever scores no more has not been seen to read.
    """
    scores = []
    for story in stories:
        language = "en" if story.text.isascii() else "zh"
        for question, references in zip(story.questions, story.answers, strict=True):
            candidates = type_guess(story.text, question, language)
            scores += [guess_score(scorers.coqa, candidates, references)] if candidates else []
    if not scores:
        return None
    means = {name: 100 * sum(getattr(score, name) for score in scores) / len(scores) for name in ("em", "f1")}
    return {**means, "questions": len(scores)}


def write_predictions(path: Path, items: Sequence[Item]) -> None:
    """As CoQA's scorer reads them: `[{"id", "turn_id", "answer"}]`."""
    rows = [{"id": item.cluster, "turn_id": item.details["turn_id"], "answer": item.answer} for item in items]
    results.write(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "coqa")


def show(found: Results) -> None:
    """A row a domain with its intervals, the whole below, and what to know of it."""
    console = Console()
    settings, details = found.settings, found.details
    options = settings.options
    console.print(
        f"{settings.model} · {settings.data} · {settings.protocol}, {options['layout']} layout, "
        f"history {options['history']}, {options['shots']} shots",
        soft_wrap=True,
    )  # fmt: skip
    table = Table.grid(padding=(0, 2))
    table.add_row("domain 領域", "questions 題數", "EM", "F1", "95 %", "F1 max")
    for name, part in [*found.groups.items(), ("overall 全部", found.measured)]:
        bounds = part.intervals["f1"]
        cells = [f"{part.scores[key]:.1f}" for key in ("em", "f1", "f1_max")]
        between = f"{bounds[0]:.1f} to {bounds[1]:.1f}" if bounds else ""
        table.add_row(name, str(part.n["items"]), cells[0], cells[1], between, cells[2])
    for name, key in (("human 人", "human"), ("type guess 猜同類", "type_guess")):
        if details.get(key):
            table.add_row(name, "", *(f"{details[key][score]:.1f}" for score in ("em", "f1")))
    console.print(table)
    cut = {
        "questions whose oldest history was dropped 刪去最舊對話": details["questions_with_history_dropped"],
        "answers cut off at the limit 回答被截斷": details["answers_cut_off"],
    }
    console.print("; ".join(f"{count} {what}" for what, count in cut.items()), soft_wrap=True)
    if not found.reportable:
        console.print("--limit was given: not a result to report. 只評了一部分，不可當作正式結果。", soft_wrap=True)
