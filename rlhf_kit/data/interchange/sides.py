"""Which of two fields was shown on the left: inferred from names, never from the order of a task's fields.

Label Studio keeps tasks as JSON in a database, and PostgreSQL's gives the keys back sorted by length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Any

from rlhf_kit.data.interchange.records import Skip

# Words that tell the first from the second wherever they stand; and what is counted where a number or letter ends it.
_SIDES = (("left", "right"), ("first", "second"), ("左", "右"), ("甲", "乙"))
_COUNTED = frozenset(
    "answer response completion reply output text txt summary candidate option choice".split()
    + "答案 回答 回應 回覆 選項 摘要".split()
)
_WORD = re.compile(r"\d+|[左右甲乙]|[^\W\d_a-zA-Z左右甲乙]+|[A-Z]?[a-z]+|[A-Z]+")


def left_and_right(to_name: Any, fields: Sequence[str]) -> tuple[str, str]:
    """The fields of a Pairwise: the two that its `to_name` lists, or the only two whose names tell first from second.

    `to_name` lists tags, in most exports that of the Pairwise alone; those that are no fields can only contradict.

    >>> left_and_right("comparison", ["answer2", "prompt", "answer1"])
    ('answer1', 'answer2')

    Raises:
        Skip: the names do not tell.
    """
    tags = [tag.strip() for tag in to_name.split(",")] if isinstance(to_name, str) else []
    if len(set(tags)) == len(tags) == 2 and set(tags) <= set(fields):
        return tags[0], tags[1]
    pairs = [pair for pair in permutations(fields, 2) if _in_order(*pair)]
    if len(pairs) != 1 or (len(tags) == 2 and _in_order(tags[1], tags[0])):
        raise Skip(f"a Pairwise that does not tell left from right ({quoted(fields)}): give --sides LEFT RIGHT")
    return pairs[0]


def _in_order(first: str, second: str) -> bool:
    """Whether two names differ in one word, by which the one comes before the other: answer_1 and answer_2, say."""
    words = [[word.lower() for word in _WORD.findall(name)] for name in (first, second)]
    unlike = [at for at, pair in enumerate(zip(*words, strict=False)) if pair[0] != pair[1]]
    if len(words[0]) != len(words[1]) or len(unlike) != 1:
        return False
    (at,) = unlike
    one, other = words[0][at], words[1][at]
    if (one, other) in _SIDES:
        return True
    counted = at == len(words[0]) - 1 and (at == 0 or words[0][at - 1] in _COUNTED)
    return counted and _number(other) == _number(one) + 1


def _number(word: str) -> float:
    """Of a number or a single letter."""
    if word.isdecimal():
        return int(word[:9])
    return ord(word) if len(word) == 1 and word.isascii() else float("nan")


def quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
