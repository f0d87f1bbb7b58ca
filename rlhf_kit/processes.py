"""A command as a process: its quiet start, and its rank among the processes launched with it."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import datasets
import huggingface_hub
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from rlhf_kit.errors import UserError
from rlhf_kit.launched import accelerated, is_main_process
from rlhf_kit.terminal import escape_logs

# True of every GPT-2 and of every run here, and nothing to act on: packed rows have no mask by design.
STALE_NEWS = (
    "We strongly recommend passing in an `attention_mask`",
    "`loss_type=None` was set",
    "mtime may not be",
    "There seems not to be a single sample in your epoch_iterator",
    "Warning: The following arguments do not match the ones in the `trainer_state.json`",  # those given hold
    "The tokenizer has new PAD/BOS/EOS tokens",  # the kit sets those of what generates; spans need none
)


def quiet() -> None:
    """No telemetry, no bars of the libraries' own but of what is downloaded, no warnings that name nothing a user can
    do; logs are escaped."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked data workers would warn about it
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing` is deprecated.*")  # peft and TRL ask it
    # Of an adapter on an adapter, whose folder holds no config.json; vocabularies are never resized here.
    warnings.filterwarnings("ignore", message="Could not find a config file in .* the vocabulary was not modified")
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()  # one bar a shard; a trainer's own bar is another
    for name in ("modeling_utils", "trainer", "trainer_utils"):
        transformers.utils.logging.get_logger(f"transformers.{name}").addFilter(_is_news)
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if sys.stderr.isatty() and is_main_process():  # transformers' off turns off the hub's too
        huggingface_hub.utils.enable_progress_bars()
    escape_logs(*transformers.utils.logging.get_logger("transformers").handlers)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(STALE_NEWS)


def processes() -> PartialState:
    """This process among those that `accelerate launch` started, and its device."""
    # Without being told of the CPU, each of several processes there would take itself for the only one.
    return PartialState(cpu=on_cpu())


def on_cpu() -> bool:
    """Whether the CPU computes: `accelerate launch` was told so, or there is nothing else. Raises UserError."""
    return is_asked("CPU") or not torch.accelerator.is_available()


def refuse_unlaunched(configuration: str | None) -> None:
    """Raises UserError for `accelerate` where no command line could start what it names: in Python, in a suite."""
    if configuration not in (None, accelerated()):
        raise UserError(
            f"accelerate={configuration!r} is for a command line, which starts processes (rlhf-kit ... --accelerate "
            f"{configuration}). Here leave it out; a script of your own starts with accelerate launch."
        )


def is_asked(name: str) -> bool:
    """Whether `accelerate launch` was asked for this, by ACCELERATE_USE_`name`. Raises UserError for no yes or no."""
    variable = f"ACCELERATE_USE_{name}"
    try:
        return parse_flag_from_env(variable)
    except ValueError as error:
        text = os.environ[variable]
        raise UserError(f"The environment has {variable}={text!r}; set it to true or false, or unset it.") from error
