"""Short names for what was measured: 16 hexadecimal digits that change when the content does."""

from __future__ import annotations

import hashlib


def text_hash(text: str) -> str:
    """16 hexadecimal digits that tell one prompt from another."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
