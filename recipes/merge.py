"""`rlhf-kit merge`: an adapter and its base as one plain model, which every library loads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from rlhf_kit.errors import UserError
from rlhf_kit.models.adapters import save
from rlhf_kit.models.checkpoints import (
    DTYPES,
    load_config,
    load_policy,
    load_reward_model,
    load_tokenizer,
    set_special_tokens,
)
from rlhf_kit.models.weights import adapter_config, attempt, is_classifier_config
from rlhf_kit.recipes.card import merged_card
from rlhf_kit.recipes.run import prepare_environment
from rlhf_kit.storage import RECORD, Folder

SAVING = ".saving"


def main(argv: Sequence[str] | None = None) -> int:
    """Merge an adapter; returns the exit status: 0 done, 2 a mistake of the user, and nothing was written."""
    parser = argparse.ArgumentParser(
        prog="rlhf-kit merge",
        description="A LoRA adapter merged into its base: a plain model. 把 LoRA 併回原模型，存成一般模型。",
        allow_abbrev=False,
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="folder or hub id of an adapter 轉接器的資料夾或 hub id")
    parser.add_argument("--output_dir", "--output-dir", required=True, type=Path, help="folder to write 輸出資料夾")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=DTYPES,
        help="type of the weights [auto: as the base is saved] 權重的型別，預設與原模型相同",
    )
    options = parser.parse_args(argv)
    prepare_environment()
    try:
        told = merge(options.adapter, options.output_dir, options.dtype)
    except UserError as error:
        print(f"rlhf-kit merge: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(told)  # noqa: T201
    return 0


def merge(adapter: str, folder: Path, dtype: str = "auto") -> str:
    """Write the model that `adapter` makes of its base, and its tokenizer, into `folder`; returns what to say of it.

    The sum is made in float32 and rounded once.

    Raises:
        UserError: for what is no adapter or cannot be loaded, or a folder with files that are not ours.
    """
    if attempt(find_adapter_config_file, "an adapter", adapter) is None:
        raise UserError(f"{adapter!r} is no adapter: it has no adapter_config.json. There is nothing to merge.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {str(folder)!r} is a file; give a folder.")
    target = Folder(folder, "merge")
    if folder.is_dir():
        target.refuse_foreign(sorted(item.name for item in folder.iterdir() if item.name != RECORD))
    config = load_config(adapter, what="an adapter")
    is_reward = is_classifier_config(config)
    base = adapter_config("an adapter", adapter).base_model_name_or_path
    tokenizer = _tokenizer(adapter, base)
    model: PreTrainedModel = (load_reward_model if is_reward else load_policy)(adapter)
    stored = load_config(base).dtype if dtype == "auto" else DTYPES[dtype]
    model.to(stored or torch.float32)
    if not is_reward:
        set_special_tokens(model, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    target.clear()
    target.claim(SAVING)
    save(model, folder / SAVING)
    tokenizer.save_pretrained(folder / SAVING)
    (folder / SAVING / "README.md").write_text(merged_card(f"`{adapter}`", base), encoding="utf-8")
    target.take(SAVING)
    target.settle_all()
    kind = "reward model" if is_reward else "language model"
    return f"{folder}: a {kind} in {str(model.dtype).removeprefix('torch.')}, {adapter} merged into {base} 已合併"


def _tokenizer(adapter: str, base: str) -> PreTrainedTokenizerBase:
    """The adapter's own, else its base's: peft saves none."""
    try:
        return load_tokenizer(adapter, needs_eos=False)
    except UserError:
        return load_tokenizer(base, needs_eos=False)
