"""An adapter and its base as one plain model, which every library loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
from rlhf_kit.models.weights import adapter_config, holds, is_classifier_config, located, pinned
from rlhf_kit.options import option
from rlhf_kit.processes import quiet
from rlhf_kit.stages.card import merged_card
from rlhf_kit.stages.output import SAVING
from rlhf_kit.storage import LOCK, RECORD, Folder, listed
from rlhf_kit.terminal import say


@dataclass
class MergeOptions:
    model_name_or_path: str = option(
        "", "Folder or hub id of an adapter. 轉接器的資料夾或 hub id", positional="ADAPTER", required=True
    )
    output_dir: Path | None = option(None, "Folder to write. 輸出資料夾", required=True)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Type of the weights; auto: as the base is saved. 權重的型別，預設與原模型相同"
    )
    overwrite_output_dir: bool = option(
        False, "Replace an earlier merge (only the files in its record). 取代先前合併的結果"
    )


def run(options: MergeOptions) -> None:
    """`rlhf-kit merge`. Raises UserError."""
    say(merge(options.model_name_or_path, options.output_dir, options.dtype, options.overwrite_output_dir))


def merge(adapter: str, output_dir: Path, dtype: str = "auto", overwrite_output_dir: bool = False) -> str:
    """Write the model that `adapter` makes of its base, and its tokenizer, into `output_dir`; returns a line about it.

    The sum is made in float32 and rounded once.

    Args:
        overwrite_output_dir: replace what an earlier merge wrote there, by its own record and nothing else.

    Raises:
        UserError: for what is no adapter or cannot be loaded, a folder with files that are not ours, or an earlier
            merge that is not to be replaced.
    """
    quiet()
    adapter = pinned("an adapter", adapter)
    if not holds("an adapter", adapter, "adapter_config.json"):
        raise UserError(f"{adapter!r} is not an adapter: it has no adapter_config.json. There is nothing to merge.")
    _refuse_own_folders(adapter, output_dir)
    target = Folder(output_dir, "merge")
    target.check("--output_dir")
    target.check_lock()
    _check_contents(target, overwrite_output_dir)
    config = load_config(adapter, what="an adapter")
    is_reward = is_classifier_config(config)
    base = adapter_config("an adapter", adapter).base_model_name_or_path
    tokenizer = _tokenizer(adapter, base)
    model: PreTrainedModel = (load_reward_model if is_reward else load_policy)(adapter)
    stored = load_config(base).dtype if dtype == "auto" else DTYPES[dtype]
    model.to(stored or torch.float32)
    if not is_reward:
        set_special_tokens(model, tokenizer)
    target.lock()
    try:
        _check_contents(target, overwrite_output_dir)  # again: loading takes a while
        target.clear()
        target.claim(SAVING)
        save(model, output_dir / SAVING)
        tokenizer.save_pretrained(output_dir / SAVING)
        (output_dir / SAVING / "README.md").write_text(merged_card(str(adapter), located(base)), encoding="utf-8")
        target.take(SAVING)
        target.settle_all()
    except Exception:
        target.remove(SAVING)  # half a model, and the room it takes
        raise
    finally:
        target.unlock()
    kind = "reward model" if is_reward else "language model"
    return f"{output_dir}: a {kind} in {str(model.dtype).removeprefix('torch.')}, {adapter} merged into {base} 已合併"


def _check_contents(target: Folder, may_replace: bool) -> None:
    """Raises UserError where others' files stand, or what an earlier merge has made. One cut off has made nothing."""
    there = sorted(item.name for item in target.path.iterdir()) if target.path.is_dir() else []
    there = [name for name in there if name not in (RECORD, LOCK)]
    target.refuse_foreign(there)
    made = [name for name in there if name != SAVING]
    if made and not may_replace:
        raise UserError(
            f"--output_dir {str(target.path)!r} contains an earlier merge ({listed(made)}). Replace it with "
            "--overwrite_output_dir, or give another folder."
        )


def _refuse_own_folders(adapter: str, output_dir: Path) -> None:
    """The adapter stays one on its base: were that replaced by what they make together, it would stand on itself."""
    name: str | None = adapter
    while name is not None:
        if Path(name).is_dir() and Path(name).resolve() == output_dir.resolve():
            raise UserError(
                f"--output_dir {str(output_dir)!r} holds what is merged, {adapter!r} or a model below it. Give "
                "another folder."
            )
        config = adapter_config("an adapter", name)
        name = None if config is None else config.base_model_name_or_path


def _tokenizer(adapter: str, base: str) -> PreTrainedTokenizerBase:
    """The adapter's own, else its base's: peft saves none."""
    try:
        return load_tokenizer(adapter, needs_eos=False)
    except UserError:
        return load_tokenizer(base, needs_eos=False)
