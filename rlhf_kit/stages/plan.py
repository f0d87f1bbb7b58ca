"""What `--dry-run` shows: the run as it would be, computed from the configuration and the data alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase, TrainingArguments

from rlhf_kit.data.hub import OUTPUTS
from rlhf_kit.data.suffixes import is_file_name
from rlhf_kit.errors import HubUnreachableError, UserError, did_you_mean
from rlhf_kit.launched import is_main_process
from rlhf_kit.models.activations import SHARE
from rlhf_kit.models.checkpoints import load_config, new_config, new_model
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.weights import TRUSTS_CODE
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.terminal.console import Console

logger = logging.getLogger(__name__)
Found = TypeVar("Found")


class Notes:
    """What a run says of its sources; a dry run shows it in its plan, with what it had to go on without."""

    def __init__(self, dry_run: bool):
        self.dry_run = dry_run
        self.told: list[str] = []
        self.unchecked: dict[str, str] = {}  # by the name of a source

    def tell(self, notice: str) -> None:
        """Log what is to be known of the data, and keep it for the plan."""
        self.told.append(notice)
        logger.warning("%s", notice)

    def reach(self, what: str, name: str, read: Callable[..., Found], /, *args: Any, **options: Any) -> Found | None:
        """`read(*args, **options)`, of the source `name`. None in a dry run that cannot ask the hub for it, or where
        an earlier stage is to make it: a model under `runs/`, where recipes write. Other faults are a dry run's too.
        """
        if name in self.unchecked:  # the hub is not asked twice
            return None
        try:
            return read(*args, **options)
        except UserError as error:
            if self.dry_run and isinstance(error, HubUnreachableError):
                self.unchecked[name] = f"{what} {name!r}: {error}"
            elif self.dry_run and _is_to_be_made(name):
                self.unchecked[name] = f"{what} {name!r}: not there yet; an earlier stage makes it"
            else:
                raise
        return None


def _is_to_be_made(name: str) -> bool:
    """Whether a folder that is not there is an output of the recipes, and no misspelt one."""
    path = Path(name)
    there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    is_output = path.parts[:1] == (OUTPUTS,) and not is_file_name(path)
    return is_output and not path.exists() and not did_you_mean(path.name, there)


def count_parameters(config: PretrainedConfig) -> int:
    """Parameters of the model a configuration describes; nothing is allocated."""
    it_makes, trusts_code = f"The config.json of {config.name_or_path!r} makes", TRUSTS_CODE.get()
    model = new_model(AutoModelForCausalLM, config, it_makes, "meta", trust_remote_code=trusts_code)
    return sum(parameter.numel() for parameter in model.parameters())


def optimizer_steps(rows: int, args: TrainingArguments) -> int:
    """Optimizer steps of a run over `rows` rows (transformers' arithmetic: the last short batch counts)."""
    if args.max_steps > 0:
        return args.max_steps
    processes = max(1, args.world_size)
    batches = math.ceil(rows / (args.per_device_train_batch_size * max(1, args.n_gpu) * processes))
    return math.ceil(max(1, math.ceil(batches / args.gradient_accumulation_steps)) * args.num_train_epochs)


def training_memory(parameters: int, trainable: int, weight_bytes: int = 4) -> float:
    """GiB of weights, gradients and Adam's two moments, without activations."""
    return (parameters * weight_bytes + trainable * (weight_bytes + 2 * weight_bytes)) / 2**30


def lora_parameters(config: PretrainedConfig, settings: Settings) -> int:
    """About: r * (in + out) for the three kinds of weight GPT-2 adapts (c_attn, two c_proj, c_fc)."""
    width = config.hidden_size
    inner = getattr(config, "n_inner", None) or getattr(config, "intermediate_size", None) or 4 * width
    layer = (width + 3 * width) + (width + width) + 2 * (width + inner)
    return settings.model.lora_r * layer * config.num_hidden_layers


@dataclass
class Reading:
    """What a run would read, as its dry run finds it; the data are None where they could not be reached."""

    notes: Notes
    tokenizer: PreTrainedTokenizerBase | None
    rows: Sequence[list[int]] | None = None  # tokens of each text of each row; PPO's are prompts
    predicted: Sequence[int] | None = None  # tokens of each row that the LM head is to predict; None: all
    completion: int = 0  # tokens that are written behind each text
    steps: int | None = None  # where the stage counts them itself
    copies: tuple[bool, bool] = (False, False)  # whether the model stands by once more frozen, once more trained
    frozen: int = 0  # parameters of further models that only score
    rows_a_forward: int | None = None  # where the kit chooses them, and knows

    @property
    def tokens(self) -> int | None:
        """Of a pass over the data, at most."""
        if self.rows is None:
            return None
        return sum(sum(row) + len(row) * self.completion for row in self.rows)


def show_plan(settings: Settings, reading: Reading) -> None:
    """Print the plan of a run; its notes say why something could not be read."""
    notes, tokenizer, tokens, steps = reading.notes, reading.tokenizer, reading.tokens, reading.steps
    rows, rows_a_forward = None if reading.rows is None else len(reading.rows), reading.rows_a_forward
    args = settings.training
    config = known_config(settings, tokenizer, notes)
    table = Table(title=f"Plan of {settings.stage}: nothing is trained or written", show_header=False)
    table.add_row("model", _model_line(settings, config))
    table.add_row("data", str(settings.data.dataset_name) + ("" if rows is None else f": {rows:,} rows"))
    if tokens is not None:
        table.add_row("tokens an epoch", f"about {tokens:,}")
    if steps is None and (rows is not None or args.max_steps > 0):
        steps = optimizer_steps(rows or 0, args)
    if steps is not None:
        table.add_row("optimizer steps", f"{steps:,}")
    if rows_a_forward is not None:
        table.add_row("rows a forward", f"{rows_a_forward:,} on a device, which fit in {SHARE:.0%} of its memory")
    if config is not None:
        table.add_row("memory", _memory_line(settings, config, reading.copies, reading.frozen))
    precision = "bf16 autocast" if args.bf16 else "fp16 autocast" if args.fp16 else "float32"
    table.add_row("device, precision", f"{args.device}, {precision}")
    table.add_row("output", str(args.output_dir))
    for notice in dict.fromkeys(notes.told):
        table.add_row("notice", notice)
    for unchecked in notes.unchecked.values():
        table.add_row("not checked", unchecked)
    if is_main_process():
        Console().print(table)


def _memory_line(settings: Settings, config: PretrainedConfig, copies: tuple[bool, bool], frozen: int) -> str:
    weight_bytes = 2 if settings.model.dtype in ("bfloat16", "float16") else 4
    parameters = count_parameters(config)
    trainable = lora_parameters(config, settings) if settings.model.use_peft else parameters
    reference, value_trunk = copies
    total = parameters * (1 + reference + value_trunk) + frozen
    gibibytes = training_memory(total, trainable * (1 + value_trunk), weight_bytes)
    return (
        f"{gibibytes:.2f} GiB + activations: weights of all models ({total:,} x {weight_bytes} bytes), and of what is "
        f"trained ({trainable * (1 + value_trunk):,}) gradients and Adam's two moments"
    )


def _model_line(settings: Settings, config: PretrainedConfig | None) -> str:
    name = str(settings.model.model_name_or_path)
    if config is None:
        return name
    line = f"{name}: {config.model_type}, {count_parameters(config):,} parameters"
    if settings.model.config_overrides is not None:
        line += ", from scratch"
    if settings.model.use_peft:
        line += f", LoRA r={settings.model.lora_r} (about {lora_parameters(config, settings):,} trained)"
    return line


def known_config(
    settings: Settings, tokenizer: PreTrainedTokenizerBase | None, notes: Notes
) -> PretrainedConfig | None:
    """The configuration of the model a run would use; None with a note when a dry run cannot reach the hub."""
    model = settings.model
    name = model.model_name_or_path
    if model.config_overrides is not None:
        overrides = parse_overrides(model.config_overrides)
        return notes.reach("model", name, new_config, name, overrides, tokenizer, model.trust_remote_code)
    return notes.reach("model", name, load_config, name, model.trust_remote_code)


def length_limit(settings: Settings, tokenizer: PreTrainedTokenizerBase | None, notes: list[str]) -> int | None:
    """Tokens a row may have: `max_length`, the model's context at most."""
    config = known_config(settings, tokenizer, notes)
    limits = (settings.training.max_length, context_length(config) if config is not None else None)
    return min((limit for limit in limits if limit), default=None)


def parse_overrides(text: str) -> dict[str, int | float | bool | str]:
    """`n_layer=4,n_embd=256` as a dict with typed values. Raises UserError for a piece that is no key=value."""
    values, wrong = {}, []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (part.strip() for part in piece.partition("="))
        if not (key and equals and value):
            wrong.append(piece)
            continue
        values[key] = _number_or_word(value)
    if wrong:
        raise UserError(
            f"--config_overrides: {', '.join(map(repr, wrong))} should read key=value, as in n_layer=4,n_embd=256."
        )
    return values


def _number_or_word(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
