"""Our scorers beside the datasets' official scripts, on answers that were bent in fourteen ways.

    python benchmarks/scorers_vs_official.py --scripts DIR --english xquad.en.json --chinese DRCD_dev.json

The scripts are no part of this project: DIR is a folder of yours that holds coqa.py (CoQA's evaluate-v1.0), squad.py
(evaluate-v1.1), squad2.py (evaluate-v2.0), mlqa.py (mlqa_evaluation_v1) and cmrc.py (cmrc2018_evaluate v6). Data:
files in SQuAD's format. Of a file of answers the script's functions and ours give figures in percent, not rounded but
for CoQA's domains; told are the number of files and the largest difference of any figure. CMRC's script asks NLTK for
words without parting sentences before, as we do. SQuAD 2.0's questions are the same, half of the answers taken away,
CoQA's stories the passages.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import random
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from nltk.tokenize.destructive import NLTKWordTokenizer

from rlhf_kit.eval import scorers
from rlhf_kit.eval.predictions import score_coqa, score_spans, score_squad2

SCRIPTS = ("coqa", "squad", "squad2", "mlqa", "cmrc")
MARKS = [*".,;:!?()[]{}\"'`-–—%$&*/\\~^_=+<>|#@，。；：！？（）《》「」『』“”‘’…·、～－", *" \n\t\u3000\u00a0", "  "]
SOURCES = [*scorers.DOMAINS]
OTHERS = [
    "Пётр Великий 3.5%", "محمد علي", "ひらがなカタカナ", "한국어 2.8%的", "ไทย", "naïve café's 23–1 don't", "𠮷野家",
    "e\u0301te\u0301", "\u200b", "ǅ ﬁn ß İ", "the", "An!", 'a.m. U.S. J. R. Tolkien. He went. "Quoted" (x)',
    "3.5% of $4,000.50; cannot gonna 'tis",
]  # fmt: skip
QUOTES = ['"{}"', "“{}”", "'{}'", "({})", "{}.", "{0}. {0}", "«{}»", "{}'s", "the {}", "{0}, {0}"]

# --- answers ---------------------------------------------------------------------------------------------------------


def full_width(text: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


def with_marks(text: str, rng: random.Random) -> str:
    chars = list(text)
    for _ in range(rng.randint(1, 5)):
        chars.insert(rng.randint(0, len(chars)), rng.choice(MARKS))
    return "".join(chars)


def shuffled(text: str, rng: random.Random) -> str:
    between = " " if " " in text else ""
    words = text.split(between) if between else list(text)
    return between.join(rng.sample(words, len(words)))


def moved(context: str, start: int, size: int, rng: random.Random) -> str:
    begin = max(0, start + rng.randint(-6, 6))
    return context[begin : max(begin, start + size + rng.randint(-6, 12))]


Way = Callable[[str, str, int, random.Random], str | None]  # answer, passage, its start there, draws; None: no answer
WAYS: dict[str, Way] = {
    "as it is": lambda text, context, start, rng: text,
    "moved": lambda text, context, start, rng: moved(context, start, len(text), rng),
    "longer": lambda text, context, start, rng: context[start : start + len(text) + rng.randint(0, 60)],
    "case": lambda text, context, start, rng: rng.choice([str.upper, str.lower, str.title, str.swapcase])(text),
    "marks": lambda text, context, start, rng: with_marks(text, rng),
    "empty": lambda text, context, start, rng: rng.choice(["", text, " ", "the", "。", "-", "..."]),
    "missing": lambda text, context, start, rng: None if rng.random() < 0.2 else text,
    "other scripts": lambda text, context, start, rng: rng.choice(["", text]) + rng.choice(OTHERS),
    "other scripts before": lambda text, context, start, rng: f"{rng.choice(OTHERS)} {text}",
    "full width": lambda text, context, start, rng: full_width(text),
    "shuffled": lambda text, context, start, rng: shuffled(text, rng),
    "figures": lambda text, context, start, rng: re.sub(r"\d+", rng.choice([r"\g<0>%", r"$\g<0>", r"\g<0>–1"]), text),
    "quotes": lambda text, context, start, rng: rng.choice(QUOTES).format(text),
    "mixed": lambda text, context, start, rng: WAYS[rng.choice(list(WAYS)[:-1])](text, context, start, rng),
}


def questions(data: dict) -> Iterator[tuple[dict, str]]:
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            yield from ((question, paragraph["context"]) for question in paragraph["qas"])


def bent(way: str, question: dict, context: str, rng: random.Random) -> str | None:
    answer = rng.choice(question["answers"] or [{"text": context[:9], "answer_start": 0}])
    return WAYS[way](answer["text"], context, answer["answer_start"], rng)


def answers_of(way: str, data: dict) -> dict[str, str]:
    rng = random.Random(way)
    given = {question["id"]: bent(way, question, context, rng) for question, context in questions(data)}
    return {name: text for name, text in given.items() if text is not None}


def unanswerable(data: dict) -> dict:
    """With half of the answers taken away, and some that are no word."""
    data, rng = json.loads(json.dumps(data)), random.Random(0)
    for question, _ in questions(data):
        draw = rng.random()
        question["answers"] = (
            [] if draw < 0.5 else [{"text": "the.", "answer_start": 0}] if draw < 0.52 else question["answers"]
        )
    return data


def stories(data: dict) -> tuple[dict, list[dict]]:
    """CoQA's form, four references a turn, and the paragraphs."""
    paragraphs, rng = [one for article in data["data"] for one in article["paragraphs"]], random.Random(0)

    def turns(texts: list[str]) -> list[dict]:
        return [{"input_text": text.strip() or "x", "turn_id": turn} for turn, text in enumerate(texts, 1)]

    def story(number: int, paragraph: dict) -> dict:
        asked, context = paragraph["qas"], paragraph["context"]
        others = [[bent("mixed", one, context, rng) or "" for one in asked] for _ in range(3)]
        return {
            "id": str(number), "source": SOURCES[number % len(SOURCES)], "story": context,
            "questions": turns([one["question"] for one in asked]),
            "answers": turns([one["answers"][0]["text"] for one in asked]),
            "additional_answers": {str(at): turns(texts) for at, texts in enumerate(others)},
        }  # fmt: skip

    return {"data": [story(number, paragraph) for number, paragraph in enumerate(paragraphs)]}, paragraphs


# --- both -----------------------------------------------------------------------------------------------------------


def load(folder: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"official_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if name == "cmrc":
        module.nltk.word_tokenize = NLTKWordTokenizer().tokenize
    return module


def written(folder: Path, name: str, value: Any) -> Path:
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return folder / name


def squad2_figures(script: ModuleType, data: dict, given: dict, na_probs: dict) -> dict[str, float]:
    has = script.make_qid_to_has_ans(data["data"])
    raw = script.get_raw_scores(data["data"], given)
    em, f1 = (script.apply_no_ans_threshold(scores, na_probs, has, 0.6) for scores in raw)
    found = dict(script.make_eval_dict(em, f1))
    for prefix, wanted in (("HasAns", True), ("NoAns", False)):
        part = [name for name, there in has.items() if there == wanted]
        script.merge_eval(found, script.make_eval_dict(em, f1, qid_list=part), prefix)
    script.find_all_best_thresh(found, given, *raw, na_probs, has)
    return found


def compare_squad2(script: ModuleType, path: Path, data: dict, folder: Path) -> Iterator[float]:
    data = unanswerable(data)
    references = written(folder, "references.json", data)
    for way in WAYS:
        rng, told = random.Random(way), answers_of(way, data)
        given = {one["id"]: told.get(one["id"], "") if rng.random() < 0.8 else "" for one, _ in questions(data)}
        na_probs = {name: round(rng.random(), rng.choice([1, 6])) for name in rng.sample([*given], len(given))}
        theirs = squad2_figures(script, data, given, na_probs)
        files = written(folder, "given.json", given), False, written(folder, "na.json", na_probs), 0.6
        ours = score_squad2(references, *files)
        ours |= {"exact": ours["exact_match"], "total": ours["questions"]}
        yield max(abs(ours[name] - value) for name, value in theirs.items())


def compare_coqa(script: ModuleType, path: Path, data: dict, folder: Path) -> Iterator[float]:
    data, paragraphs = stories(data)
    references = written(folder, "references.json", data)
    evaluator = script.CoQAEvaluator(str(references))
    for way in WAYS:
        rng = random.Random(way)
        given = [
            {"id": story["id"], "turn_id": turn, "answer": bent(way, question, paragraph["context"], rng)}
            for story, paragraph in zip(data["data"], paragraphs, strict=True)
            for turn, question in enumerate(paragraph["qas"], 1)
        ]
        given = [one for one in given if one["answer"] is not None]
        file = written(folder, "given.json", rng.sample(given, len(given)))
        read = evaluator.preds_to_dict(str(file))
        em, f1 = (100 * sum(scores.values()) / len(evaluator.gold_data) for scores in evaluator.get_raw_scores(read))
        ours, theirs = score_coqa(references, file), evaluator.model_performance(read)
        gaps = [ours["exact_match"] - em, ours["f1"] - f1]
        gaps += [ours["by_domain"][name][key] - value for name, part in theirs.items() for key, value in part.items()]
        yield max(map(abs, gaps))


def compare_spans(
    figures: Callable[[dict, dict], tuple[float, float]], scorer: scorers.Scorer, path: Path, data: dict, folder: Path
) -> Iterator[float]:
    for way in WAYS:
        given = answers_of(way, data)
        em, f1 = figures(data, given)
        ours = score_spans("spans", scorer, path, written(folder, "given.json", given), False)
        yield max(abs(ours["exact_match"] - em), abs(ours["f1"] - f1))


def comparisons(scripts: dict[str, ModuleType]) -> dict[str, tuple[str, Callable]]:
    """name -> ("english", "chinese" or both, what compares)."""

    def figures(name: str, data: dict, given: dict, *language: str) -> tuple[float, float]:
        found = scripts[name].evaluate(data["data"], given, *language)
        return found["exact_match"], found["f1"]

    def of_cmrc(data: dict, given: dict) -> tuple[float, float]:
        f1, em, _, _ = scripts["cmrc"].evaluate(data, given)
        return em, f1

    def of_mlqa(language: str) -> Callable:
        scorer = partial(scorers.mlqa, language=language)
        return partial(compare_spans, lambda data, given: figures("mlqa", data, given, language), scorer)

    return {
        "CoQA": ("both", partial(compare_coqa, scripts["coqa"])),
        "SQuAD 1.1": ("both", partial(compare_spans, partial(figures, "squad"), scorers.squad)),
        "SQuAD 2.0": ("both", partial(compare_squad2, scripts["squad2"])),
        "MLQA, en": ("english", of_mlqa("en")),
        "MLQA, zh": ("chinese", of_mlqa("zh")),
        "CMRC": ("both", partial(compare_spans, of_cmrc, scorers.cmrc)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", type=Path, required=True, metavar="DIR")
    parser.add_argument("--english", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--chinese", type=Path, nargs="+", default=[], metavar="FILE")
    options = parser.parse_args()
    scripts = {name: load(options.scripts, name) for name in SCRIPTS}
    found = defaultdict(list)
    for name, (languages, compare) in comparisons(scripts).items():
        for language in ("english", "chinese"):
            for path in getattr(options, language) if languages in (language, "both") else []:
                data = json.loads(path.read_text(encoding="utf-8"))
                with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
                    with contextlib.redirect_stdout(io.StringIO()):  # they tell of every missing answer
                        gaps = list(compare(path, data, Path(folder)))
                found[name] += gaps
                print(f"{name}, {path.name}: {len(gaps)} files, largest difference {max(gaps):.1e}", flush=True)
    print("\n| script | files of predictions | largest difference of a figure |\n| --- | --- | --- |")
    for name, gaps in found.items():
        print(f"| {name} | {len(gaps)} | {max(gaps):.1e} |")
    sys.exit(any(gap > 1e-9 for gaps in found.values() for gap in gaps))


if __name__ == "__main__":
    main()
