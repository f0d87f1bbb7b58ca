"""A policy handed to a vLLM server by files that both see: weights read in place, or an adapter of a new name."""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_kit.errors import UserError
from rlhf_kit.generation.vllm.client import Server, VLLMError
from rlhf_kit.models.adapters import save
from rlhf_kit.models.merging import merged
from rlhf_kit.storage import follow_umask

HEAD_FILE = "output_embeddings.safetensors"
MOST_IN_A_FILE = "1000GB"  # shards have an index, and what it does not name is not read
logger = logging.getLogger(__name__)


class Weights:
    """The policy's weights on their way to a server.

    Each hand-over is a folder of its own, complete before the server is told of it; the last two are kept, all are
    removed when the run ends. A run that is killed leaves its `rlhf_kit_...` folder behind.

    Args:
        folder: by the same path on both machines.
    """

    def __init__(self, server: Server, folder: str | Path):
        self.server = server
        self.model, _ = server.model()  # what completions are asked of
        self.base = self.model
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._home = tempfile.TemporaryDirectory(prefix="rlhf_kit_", dir=folder)
        except OSError as error:
            raise UserError(
                f"vllm_sync_dir={str(folder)!r} cannot be written into ({error.strerror}); give a folder that this "
                "run can write and the server can read, by the same path."
            ) from error
        self.home = Path(self._home.name).absolute()
        self.home.chmod(0o755)  # the server may be another user's
        self.written: list[Path] = []
        self._adapters_taken: bool | None = None

    def hand_over(self, policy: PreTrainedModel | PeftModel) -> None:
        """From now on the server samples from `policy` as it is."""
        if isinstance(policy, PeftModel) and self.takes_adapters:
            self._put_adapter(self._write(policy, whole=False))
        else:
            self._replace(self._write(policy, whole=True))
        for old in self.written[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        self.written = self.written[-2:]

    @property
    def takes_adapters(self) -> bool:
        if self._adapters_taken is None:
            self._adapters_taken = self.server.takes_adapters()
            if not self._adapters_taken:
                logger.warning(
                    "The vLLM server takes no adapters while it runs: whole weights, the adapter merged, are handed "
                    "over. With --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True adapters alone would be."
                )
        return self._adapters_taken

    def last_head(self) -> Tensor | None:
        """The tied output embeddings as they were handed over the time before; None where they were not."""
        path = self.written[0] / HEAD_FILE
        if len(self.written) < 2 or not path.exists():
            return None
        with safe_open(path, "pt") as file:
            return file.get_tensor(next(iter(file.keys())))

    def _write(self, policy: PreTrainedModel | PeftModel, whole: bool) -> Path:
        """A folder that is there whole or not at all."""
        number = 1 + (int(self.written[-1].name.rpartition("-")[2]) if self.written else 0)
        unfinished, folder = self.home / "unfinished", self.home / f"{self.home.name}-{number}"
        shutil.rmtree(unfinished, ignore_errors=True)
        write(policy, unfinished, whole)
        follow_umask(unfinished.iterdir())
        unfinished.rename(folder)
        self.written.append(folder)
        return folder

    def _replace(self, folder: Path) -> None:
        """The server's own weights become those in `folder`, while nothing is sampled and no prefix is kept."""
        ask = self.server.ask
        ask("POST", "/pause?mode=wait")
        try:
            ask("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
            self._forget_prefixes()
        finally:
            ask("POST", "/resume")

    def _forget_prefixes(self) -> None:
        answer: Any = self.server.ask("POST", "/reset_prefix_cache")
        if isinstance(answer, dict) and answer.get("success") is False:
            raise VLLMError(
                self.server.url,
                "stale cache",
                "It did not forget the prefixes that it read with the last weights: is another client sampling? A "
                "server is one run's alone.",
            )

    def _put_adapter(self, folder: Path) -> None:
        """An adapter of a new name, under which no prefix is kept; the last one goes."""
        last, self.model = self.model, folder.name
        self.server.ask("POST", "/v1/load_lora_adapter", {"lora_name": folder.name, "lora_path": str(folder)})
        if last != self.base:
            self.server.ask("POST", "/v1/unload_lora_adapter", {"lora_name": last})


def write(policy: PreTrainedModel | PeftModel, folder: Path, whole: bool) -> None:
    """An adapter with its configuration, or with `whole` a plain model in one file.

    Output embeddings that are tied to the input's come in a file of their own. A server that loads a model ties them
    itself; one that reads weights in place may go on with the old ones (vLLM 0.32 with GPT-2; vllm#32718) unless a
    file has them by their own name.
    """
    folder.mkdir()
    if not whole:
        return save(policy, folder)
    plain = merged(copy.deepcopy(policy)) if isinstance(policy, PeftModel) else policy
    plain.save_pretrained(folder, max_shard_size=MOST_IN_A_FILE)
    head = plain.get_output_embeddings()
    name = next((f"{name}.weight" for name, module in plain.named_modules() if module is head), "")
    with safe_open(folder / "model.safetensors", "pt") as file:
        is_there = name in file.keys()  # noqa: SIM118, no mapping
    if head is not None and not is_there:
        save_file({name: head.weight.detach().cpu().contiguous()}, folder / HEAD_FILE)
