"""Rows of every kind of data. A larger size continues where a smaller one ended.

A row is a function of (kind, split, its number, seed), and of the rows before it where prompts are not to come twice.
"""

import hashlib
import random
from itertools import combinations, count

from . import reading
from .judging import labeler_utility
from .names import ANIMALS, PEOPLE, SHOPS, TOWNS
from .phrases import DONT_KNOWS, OPENERS, REFUSALS
from .relations import FACTS
from .stories import cloze_document
from .tasks import CATEGORIES, Task, demonstration, extras, join, task
from .texts import document

_NOISE = 0.35  # standard deviation of what one labeler feels about one answer, in units of truth
_GRID = 0.25  # answers that feel nearer than this tie
_DEFAULT_SIZES = {
    "text": (60000, 1000), "cloze": (120000, 1000), "cloze_zh": (60000, 1000),
    "demonstrations": (2400, 200), "dialogues": (12000, 40),
    "ranked": (1300, 200), "pairs": (1400, 200), "thumbs": (1400, 200), "prompts": (1500, 480),
    "conversations": (200, 40),
    "squad_en": (300, 60), "squad_zh": (300, 60), "crowd_en": (2000, 300), "crowd_zh": (2000, 300),
}  # fmt: skip
KINDS = tuple(_DEFAULT_SIZES)

# How the answers of a ranked list come about: what is said and, independently of it, how. Were friendly words more
# frequent with right answers, a reward model would take them for a sign of being right.
_CONTENTS = {"right": 84, "wrong": 2, "unsure": 2, "refusal": 7, "foreign": 5}
# "I don't know" is among the answers to harmful requests, or nothing ranked would tell that it is no refusal.
_CONTENTS_OF_FAULTS = {"harmful": {"right": 50, "wrong": 30, "unsure": 20}, "unknown": {"right": 82, "wrong": 18}}
_OPENERS = {0: 60, 1: 28, 2: 12}  # friendly words before
_EXTRAS = {0: 55, 1: 28, 2: 17}  # sentences too many
_DAMAGES = {"": 88, "cut": 7, "said twice": 5}


def _rng(*parts):
    return random.Random(int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big"))


def rows(kind, split="train", size=None, seed=0):
    """`size` rows (dicts) of one kind; the splits "train" and "test" never share a prompt or a fact asked about."""
    if kind not in _DEFAULT_SIZES:
        raise ValueError(f"unknown kind {kind!r}: the world has {', '.join(KINDS)}")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}: the world has train and test")
    size = _DEFAULT_SIZES[kind][split == "test"] if size is None else size
    make, key = _MAKERS[kind]
    out, seen = [], set()
    for number in range(size):
        # A prompt drawn twice is drawn again, as long as the world has others.
        for attempt in range(40):
            row = make(_rng(kind, split, seed, number, attempt), split, number)
            if row is not None and (key is None or key(row) not in seen):
                break
        else:
            row = next(r for r in (make(_rng(kind, split, seed, number, a), split, number) for a in count(40)) if r)
        if key is not None:
            seen.add(key(row))
        out.append(row)
    return out


def _text(rng, split, number):
    return {"text": document(rng)}


def _cloze(rng, split, number):
    return cloze_document(rng)


def _cloze_zh(rng, split, number):
    return cloze_document(rng, "zh")


def _prompt_row(rng, split, number):
    item = task(rng, split)
    return {"prompt": item.messages, "category": item.category, "language": item.language}


def _demonstration(rng, split, number):
    return demonstration(rng, split)


def _pick(rng, weights):
    (choice,) = rng.choices(list(weights), list(weights.values()))
    return choice


def _answer(rng, item: Task, split):
    """One answer of a drawn content and manner, or None where the content makes no sense for this prompt."""
    language = item.language
    content = _pick(rng, _CONTENTS_OF_FAULTS.get(item.category, _CONTENTS))
    pools = {"right": item.right, "wrong": item.wrong, "foreign": item.foreign}
    pools |= {"unsure": DONT_KNOWS[language], "refusal": REFUSALS[language]}
    sentence = rng.choice(pools[content])
    if content in ("unsure", "refusal") and sentence in item.right:
        return None
    sentences = [sentence, *extras(rng, item, split, _pick(rng, _EXTRAS))]
    damage = _pick(rng, _DAMAGES)
    if damage == "cut":
        sentences[-1] = _cut(rng, sentences[-1], language)
    elif damage:
        sentences.insert(0, sentence)
    return join(language, [*rng.sample(OPENERS[language], _pick(rng, _OPENERS)), *sentences])


def _cut(rng, sentence, language):
    if language == "en":
        words = sentence.split(" ")
        return " ".join(words[: max(1, len(words) - rng.randint(1, 2))]).rstrip(".?!")
    return sentence[: max(2, len(sentence) - rng.randint(1, 4))].rstrip("。？！")


def _graded(rng, split, number_of_answers):
    """A prompt and that many different answers to it."""
    item = task(rng, split)
    answers = []
    while len(answers) < number_of_answers:
        answer = _answer(rng, item, split)
        if answer and answer not in answers:
            answers.append(answer)
    return item, answers


def _felt(rng, prompt, answer):
    """The noisy utility of one answer, on the grid."""
    return round((labeler_utility(prompt, answer) + rng.gauss(0, _NOISE)) / _GRID) * _GRID


def _ranked(rng, split, number):
    item, answers = _graded(rng, split, rng.randint(4, 6))
    felt = [_felt(rng, item.messages, answer) for answer in answers]
    levels = sorted(set(felt), reverse=True)
    if len(levels) == 1:
        return None
    # Dense ranks: 1, 1, 2.
    return {"prompt": item.messages, "completions": answers, "ranks": [levels.index(u) + 1 for u in felt]}


def _pair(rng, split, number):
    item, answers = _graded(rng, split, 2)
    first, second = (_felt(rng, item.messages, answer) for answer in answers)
    if first == second:
        return None
    better, worse = answers if first > second else answers[::-1]
    return {"prompt": item.messages, "chosen": better, "rejected": worse, "margin": abs(first - second)}


def _thumb(rng, split, number):
    item, (answer,) = _graded(rng, split, 1)
    return {"prompt": item.messages, "completion": answer, "label": _felt(rng, item.messages, answer) > 0.5}


def prompt_key(messages):
    return tuple((m["role"], m["content"]) for m in messages)


def _by_prompt(row):
    return prompt_key(row["prompt"])


def accuracy_ceiling(ranked) -> float:
    """The share of strictly ordered pairs that the noise-free utility orders as the labeler did.

    Each list weighs the same; a tie of the noise-free utility counts half. No reward model can be
    expected to do better on these lists.
    """
    shares = []
    for row in ranked:
        utility = [labeler_utility(row["prompt"], c) for c in row["completions"]]
        hits = []
        for i, j in combinations(range(len(utility)), 2):
            order = row["ranks"][j] - row["ranks"][i]
            if order:
                gap = (utility[i] - utility[j]) * order
                hits.append(0.5 if abs(gap) < 1e-9 else float(gap > 0))
        if hits:
            shares.append(sum(hits) / len(hits))
    return sum(shares) / len(shares)


def describe() -> dict:
    """The content of the world, in numbers."""
    return {
        "people": len(PEOPLE), "towns": len(TOWNS), "animals": len(ANIMALS), "shops": len(SHOPS), "facts": len(FACTS),
        "facts held out of train questions": sum(f.held_out for f in FACTS), "languages": ["en", "zh"],
        "prompt categories": list(CATEGORIES),
        "default sizes": {kind: {"train": a, "test": b} for kind, (a, b) in _DEFAULT_SIZES.items()},
    }  # fmt: skip


_MAKERS = {
    "text": (_text, None), "cloze": (_cloze, None), "cloze_zh": (_cloze_zh, None),
    "demonstrations": (_demonstration, None), "dialogues": (reading.dialogue, None), "ranked": (_ranked, _by_prompt),
    "pairs": (_pair, None), "thumbs": (_thumb, None), "prompts": (_prompt_row, _by_prompt),
    "conversations": (reading.conversation, None),
    "squad_en": (reading.squad_en, None), "squad_zh": (reading.squad_zh, None),
    "crowd_en": (reading.crowd_en, None), "crowd_zh": (reading.crowd_zh, None),
}  # fmt: skip
