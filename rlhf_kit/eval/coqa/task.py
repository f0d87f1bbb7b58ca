"""CoQA measured: the stories are checked, the model answers, the official scorer scores."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from rlhf_kit.data.coqa import Story, read_stories
from rlhf_kit.data.sources import WORLD
from rlhf_kit.errors import UserError
from rlhf_kit.eval import results, scorers
from rlhf_kit.eval.coqa.turns import PRESETS, Answered, Prompts, answer_by_gold, answer_by_own
from rlhf_kit.eval.items import Item, Results, Run, Settings
from rlhf_kit.eval.type_guess import guess_score, type_guess
from rlhf_kit.generation.generators import layout, load_generator
from rlhf_kit.hashes import text_hash
from rlhf_kit.models.checkpoints import context_length, load_config, load_tokenizer
from rlhf_kit.models.identity import model_hash
from rlhf_kit.processes import processes, quiet
from rlhf_kit.terminal import say
from rlhf_kit.terminal.console import Console

VERSION = 1
ANSWER = {"gold": answer_by_gold, "model": answer_by_own}
PREDICTIONS = "predictions.json"


def run(options: argparse.Namespace) -> None:
    """`rlhf-kit eval coqa` with parsed options (`coqa.py`). Raises UserError."""
    quiet()
    how, of_world = PRESETS[options.preset], _is_world(options.data)
    stories = read_stories(options.data, options.split or ("test" if of_world else "validation"))
    stories = stories[: options.limit]
    tokenizer = load_tokenizer(options.model)
    context = context_length(load_config(options.model, what="a causal language model"))
    asked = layout(tokenizer, options.apply_chat_template)
    prompts = Prompts(tokenizer, context, how.max_new_tokens, options.apply_chat_template)
    prompts.check(stories)
    pool = _demonstrations(options)
    settings = Settings(
        "coqa", options.preset, VERSION, options.model, model_hash(options.model), options.data,
        results.fingerprint([asdict(story) for story in stories]), options.seed, options.limit,
        {
            **asked,
            "history": options.history, "shots": options.shots, "dtype": options.dtype, "decoding": asdict(how),
            "demonstrations": results.fingerprint([asdict(story) for story in pool]) if pool else None,
        },
    )  # fmt: skip
    state = processes()
    turns = {turn_id(story, turn): story for story in stories for turn in range(len(story.questions))}
    shares = [story.id for story in turns.values()]
    making = Run(options.output, settings, list(turns), state, unit="questions", shares=shares, files=[PREDICTIONS])
    todo = list({turns[name].id: turns[name] for name in making.todo}.values())
    for story in todo:
        prompts.demonstrate(story, pool, options.shots, options.seed)
    model = load_generator(options.model, options.dtype, state.device)[0] if todo else None
    with making:
        answered = ANSWER[options.history](model, prompts, todo, how, options.max_batch_tokens) if todo else ()
        for answer in answered:
            making.add(item(answer, len(prompts.demonstrations[answer.story.id])))
    guessed = {"type_guess": guessing(stories)} if of_world else {}
    found = making.finish(details=lambda items: details(items, stories) | guessed)
    if found is None:
        return
    show(found)
    if options.output is not None:
        write_predictions(options.output / PREDICTIONS, making.ordered)
        say(f"Written 已寫入: {options.output}/results.json, items.jsonl, {PREDICTIONS}")


def _is_world(source: str) -> bool:
    return source.partition(":")[0] == WORLD


def _demonstrations(options: argparse.Namespace) -> list[Story]:
    if options.shots == 0:
        if options.demonstrations is not None:
            raise UserError("--demonstrations needs --shots K, the number of them.")
        return []
    source = options.demonstrations or options.data
    if options.demonstrations is None and Path(source).is_file():
        raise UserError(
            f"--shots {options.shots}: {source!r} is the file that is measured. Give others to learn from by "
            "--demonstrations, such as coqa-train-v1.0.json."
        )
    return read_stories(source, "train")


# --- items ----------------------------------------------------------------------------------------------------------


def turn_id(story: Story, turn: int) -> str:
    """Of a turn from 0; the id has CoQA's `turn_id`, from 1."""
    return f"{story.id}/{turn + 1}"


def item(answered: Answered, demonstrations: int) -> Item:
    story, turn, said = answered.story, answered.turn, answered.continuation
    references = story.answers[turn]
    score = scorers.coqa(said.answer, references)
    best = max(scorers.coqa(said.answer, [reference]).f1 for reference in references)
    return Item(
        turn_id(story, turn), story.id, text_hash(answered.prompt.text), said.text, said.answer,
        {"em": score.em, "f1": score.f1, "f1_max": best},
        group=scorers.DOMAINS.get(story.source, story.source),
        details={
            "turn_id": turn + 1, "dropped_turns": answered.prompt.dropped, "demonstrations": demonstrations,
            "ended": said.ended,
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
    settings, told = found.settings, found.details
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
        if told.get(key):
            table.add_row(name, "", *(f"{told[key][score]:.1f}" for score in ("em", "f1")))
    console.print(table)
    cut = {
        "questions whose oldest history was dropped 刪去最舊對話": told["questions_with_history_dropped"],
        "answers cut off at the limit 回答被截斷": told["answers_cut_off"],
    }
    console.print("; ".join(f"{count} {what}" for what, count in cut.items()), soft_wrap=True)
    if not found.reportable:
        console.print("--limit was given: not a result to report. 只評了一部分，不可當作正式結果。", soft_wrap=True)
