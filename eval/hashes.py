"""Short names for what was measured: 16 hexadecimal digits that change when the content does."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

# Of a model's folder, what its outputs depend on.
MODEL_FILES = re.compile(
    r"(adapter_|generation_)?config\.json|(adapter_|pytorch_)?model[-.].*|(tokenizer|vocab|merges)[_.].*"
    r"|(special_tokens_map|added_tokens)\.json|chat_template\.jinja"
)


def text_hash(text: str) -> str:
    """16 hexadecimal digits that tell one prompt from another."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_hash(name: str) -> str:
    """16 hexadecimal digits of a model's files, by content: the same model under another name has the same.

    Of an adapter its base model counts too. A name that is no folder stands for itself.
    """
    folder = Path(name)
    if not folder.is_dir():
        return text_hash(name)
    found = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if MODEL_FILES.fullmatch(path.name)):
        content = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
        found.update(path.name.encode() + content.digest())
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        found.update(model_hash(str(base)).encode())
    return found.hexdigest()[:16]
