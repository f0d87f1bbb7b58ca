"""What tells one model from another: its content, wherever it is; on the hub its commit, whatever its branch."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from rlhf_kit.data.hub import split_revision
from rlhf_kit.errors import HubUnreachableError
from rlhf_kit.hashes import file_hash, text_hash
from rlhf_kit.models.weights import adapter_config, pinned

# Of a model's folder, what its outputs depend on.
MODEL_FILES = re.compile(
    r"(adapter_|generation_)?config\.json|(adapter_|pytorch_)?model[-.].*|(tokenizer|vocab|merges)[_.].*"
    r"|(special_tokens_map|added_tokens)\.json|chat_template\.jinja"
)


def model_hash(name: str) -> str:
    """16 hexadecimal digits of a model's files, by content: the same model under another name has the same.

    Of a model of the hub they are the first of its commit. Of an adapter its base model counts too. Where the hub
    cannot be asked and the cache does not have it, nothing was loaded by the name: it is what a model in memory is
    called, and its text counts.

    Raises:
        UserError: where the hub does not have it; for an adapter that is none, or whose base is not there.
    """
    try:
        name = pinned("a model", name)
    except HubUnreachableError:
        return text_hash(name)
    _, commit = split_revision(name)
    adapter = adapter_config("a model", name)
    if commit and adapter is None:
        return commit[:16]
    digest = hashlib.sha256((commit or "").encode())
    files = [] if commit else [path for path in Path(name).iterdir() if MODEL_FILES.fullmatch(path.name)]
    for path in sorted(path for path in files if path.is_file()):
        digest.update(path.name.encode() + bytes.fromhex(file_hash(path)))
    if adapter is not None:
        digest.update(model_hash(adapter.base_model_name_or_path).encode())
    return digest.hexdigest()[:16]
