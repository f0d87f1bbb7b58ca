"""The page of extractive question answering: figures by kind of question, and errors marked in their passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf_kit.escaping import html
from rlhf_kit.eval.extractive.questions import KINDS, Question
from rlhf_kit.eval.items import Item, Measured, Results
from rlhf_kit.pages.shell import document, number, section, table, zh

SHOWN = 40  # errors told
PARTS = {"HasAns": "有答案", "NoAns": "無答案"}  # of SQuAD 2.0, by their names in its script
STYLE = """<style>
.passage{white-space:pre-wrap;overflow-wrap:anywhere}.passage mark{background:none;color:inherit}
.gold{border-bottom:3px solid var(--green)}.said{outline:2px solid var(--red);border-radius:3px}
</style>"""


def marked(context: str, gold: Sequence[tuple[int, int]], said: tuple[int, int] | None) -> str:
    """The passage as HTML; `gold` (underlined) and `said` (framed) are (first, past-the-last) characters."""
    spans = [*((span, "gold") for span in gold), *([(said, "said")] if said else [])]
    borders = sorted({0, len(context), *(border for span, _ in spans for border in span)})
    parts = []
    for low, high in zip(borders, borders[1:], strict=False):
        classes = dict.fromkeys(name for (start, end), name in spans if start <= low and high <= end)
        text = html(context[low:high])
        parts.append(f'<mark class="{" ".join(classes)}">{text}</mark>' if classes else text)
    return f'<p class="passage">{"".join(parts)}</p>'


def error(question: Question, answer: str, start: int, scores: Mapping[str, float]) -> str:
    """One question with its passage, the given answers and the model's marked, and what that was worth."""
    gold = [(at, at + len(text)) for text, at in question.answers]
    predicted = (start, start + len(answer)) if answer else None
    references = " · ".join(dict.fromkeys(question.references)) or "–"
    return (
        f'<div class="sample"><h3>{html(question.question)} <span class="soft">{html(question.id)}</span></h3>'
        f"{marked(question.context, gold, predicted)}"
        f'<p class="soft">answer {zh("答案")}: <b class="gold">{html(references)}</b> · model {zh("模型")}: '
        f'<b class="said">{html(answer) or "–"}</b> · F1 {number(100 * scores["f1"], ".0f")}</p></div>'
    )


def errors_section(items: Sequence[Item], questions: Sequence[Question]) -> str:
    """The first errors, as they stand in the data. `items` and `questions` in one order."""
    wrong = [(item, question) for item, question in zip(items, questions, strict=True) if item.scores["em"] < 1]
    errors = [error(question, item.answer, item.details["start"], item.scores) for item, question in wrong[:SHOWN]]
    words = (
        f"{len(wrong)} of {len(items)} answers are not exactly right; the first {len(errors)}. Underlined: the given "
        "answers; framed: the model's. 底線為標準答案，外框為模型的答案。"
    )
    return STYLE + section(("Errors", "錯誤"), words, *errors, grid="errors")


def answerable_parts(found: Results) -> dict[str, Measured]:
    """The figures of questions with an answer and of those without, where there may be either."""
    whole = found.measured
    return {
        f"{name} {PARTS[name]}": Measured(
            {key: whole.scores[f"{name}_{key}"] for key in ("em", "f1")},
            {key: whole.intervals[f"{name}_{key}"] for key in ("em", "f1")},
            {"items": count},
        )
        for name, count in sorted(found.details.get("parts", {}).items())
    }


def report_page(found: Results, items: Sequence[Item], questions: Sequence[Question]) -> str:
    """The page of one run. `items` and `questions` in one order."""
    settings, details = found.settings, found.details
    head = ["Question " + zh("問題"), "n " + zh("題數"), "EM", "F1", "95 % interval of F1 " + zh("信賴區間")]
    rows = [_row("all " + zh("全部"), found.measured)]
    rows += [_row(html(name), part) for name, part in answerable_parts(found).items()]
    rows += [
        _row(f"{name} {zh(KINDS[name][0] if name in KINDS else '其他')}", found.groups[name]) for name in found.groups
    ]
    if details["human"]:
        rows.append([f"human {zh('人')}", "", *(number(details["human"][key], ".1f") for key in ("em", "f1")), ""])
    facts = {
        "scorer": details["scorer"], "split": settings.options["split"], "windows": details["windows"],
        "references a question": number(details["references_a_question"], ".3g"),
        "questions cut": len(details["questions_cut"]), "answers realigned": len(details["questions_realigned"]),
        **{f"dropped: {fault}": len(ids) for fault, ids in details["questions_dropped"].items()},
        "commit": found.commit,
    }  # fmt: skip
    listed = "".join(f"<dt>{html(name)}</dt><dd>{html(str(value))}</dd>" for name, value in facts.items())
    body = [
        f"<h1>Extractive question answering {zh('抽取式問答')}</h1>",
        f'<p class="soft">{html(settings.model)} · {html(settings.data)}</p>',
        "" if found.reportable else "<p><b>--limit was given: no result to report. 只評了一部分。</b></p>",
        section(
            ("By kind of question", "各類問題"),
            "Intervals: bootstrap over passages. 信賴區間：以段落為單位重抽。",
            table(head, rows),
            f"<dl>{listed}</dl>",
            grid="results",
        ),
        errors_section(items, questions),
    ]
    return document("rlhf_kit: extractive question answering 抽取式問答", body)


def _row(name: str, part: Measured) -> list[str]:
    bounds = part.intervals["f1"]
    between = " to ".join(number(bound, ".1f") for bound in bounds) if bounds else "–"
    return [name, str(part.n["items"]), *(number(part.scores[key], ".1f") for key in ("em", "f1")), between]
