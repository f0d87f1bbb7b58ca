"""What the server signs: which model gave this answer, to which turns, drawn how. The browser keeps it meanwhile."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from itsdangerous import BadSignature, URLSafeSerializer

from rlhf_kit.data.labels.store import Answer
from rlhf_kit.data.messages import Message
from rlhf_kit.hashes import text_hash

SALT = "an answer of a model"


def prove(key: str, turns: Sequence[Message], text: str, source: Mapping[str, Any]) -> str:
    return str(URLSafeSerializer(key, SALT).dumps([_of_turns(turns), text, dict(source)]))


def proven(key: str, turns: Sequence[Message], proof: Any) -> Answer:
    """Raises ValueError for what this server did not sign, or signed of other turns."""
    try:
        of_turns, text, source = URLSafeSerializer(key, SALT).loads(proof if isinstance(proof, str) else "")
    except BadSignature:
        raise ValueError("no model of this server gave this answer") from None
    if of_turns != _of_turns(turns):
        raise ValueError("the answer is to other turns")
    return Answer(text, [source])


def _of_turns(turns: Sequence[Message]) -> str:
    return text_hash(json.dumps(turns))
