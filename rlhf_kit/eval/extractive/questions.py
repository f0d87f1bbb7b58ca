"""A question about a passage, and what it asks for by its question word, English and Chinese (both scripts) alike."""

from __future__ import annotations

import re
from dataclasses import dataclass

OTHER = "other"
# kind -> how it is called in Chinese, and what tells it. Of equal places the first kind wins: 什麼時候 is no 什麼.
KINDS = {
    "why": ("為什麼", r"\bwhy\b|[為为][什甚][麼么]|[為为]何(?!物)|何故"),
    "when": ("何時", r"\bwhen\b|何[時时日年]|[什甚][麼么][時时](?:候|[間间])|[幾几][時时]|哪一?[年月天日]"),
    "where": ("哪裡", r"\bwhere\b|哪[裡裏里兒儿]|何[處处地方]|[什甚][麼么]地方"),
    "how many": ("多少", r"\bhow\s+(?:many|much)\b|多少|[幾几](?!乎)"),
    "how": ("如何", r"\bhow\b|如何|怎[麼么樣样]?"),
    "who": ("誰", r"\bwho(?:m|se)?\b|[誰谁]|何人"),
    "which": ("哪", r"\bwhich\b|哪"),
    "what": ("什麼", r"\bwhat\b|[什甚][麼么]|何"),
}
_WORDS = re.compile("|".join(f"({pattern})" for _, pattern in KINDS.values()), re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A question, its passage, and its answers: (text, start in `context`), `context[start:][:len(text)] == text`.

    Training learns the first answer, scoring takes them all; none: the passage does not tell. `group`: one for each
    passage, since questions about the same passage are not independent. `kind`: `kind_of` the question.
    """

    id: str
    context: str
    question: str
    answers: tuple[tuple[str, int], ...]
    group: str
    kind: str = ""

    @property
    def references(self) -> list[str]:
        return [text for text, _ in self.answers]


def kind_of(question: str) -> str:
    """A key of KINDS, by the question word that stands first; OTHER without one.

    kind_of("In which city was she born?") == "which", kind_of("她在什麼時候出生？") == "when"
    """
    match = _WORDS.search(question)
    return list(KINDS)[match.lastindex - 1] if match and match.lastindex else OTHER
