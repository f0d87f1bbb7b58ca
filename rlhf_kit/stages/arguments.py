"""The options that every stage has, and the settings of a stage that they and its own become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_kit.options import option
from rlhf_kit.options.declared import Source, declared_fields
from rlhf_kit.options.reading import build, read, read_values


@dataclass
class ModelArguments:
    model_name_or_path: str | None = option(
        None, "Model to start from: hub id or folder; with config_overrides a model type such as gpt2.", required=True
    )
    model_revision: str | None = option(
        None,
        "Branch, tag or commit of the hub's model. Models and data may also be given as owner/name@revision. "
        "Default: the latest.",
    )
    tokenizer_name_or_path: str | None = option(None, "Tokenizer: hub id or folder. Default: the model's own.")
    config_overrides: str | None = option(
        None, "Build the model from scratch: n_layer=4,n_embd=256,n_head=4 over the named architecture."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Type of the weights. auto: float32, the type to train in."
    )
    attn_implementation: str | None = option(
        None, "Attention kernel: eager, sdpa or flash_attention_2. Default: the model's."
    )
    trust_remote_code: bool = option(False, "Run code that comes with a hub model.")
    use_peft: bool = option(False, "Train a LoRA adapter instead of all weights.")
    lora_r: int = option(16, "LoRA rank.")
    lora_alpha: int = option(32, "LoRA scale: updates are multiplied by alpha / r.")
    lora_dropout: float = option(0.0, "Dropout on the adapter's input. PPO needs 0: its ratios must start at 1.")
    lora_target_modules: list[str] | None = option(None, "Modules to adapt. Default for GPT-2: c_attn c_proj c_fc.")
    lora_modules_to_save: list[str] | None = option(None, "Modules trained in full and saved with the adapter.")
    use_rslora: bool = option(False, "Scale by alpha / sqrt(r) (rank-stabilised LoRA).")
    use_dora: bool = option(False, "Train magnitude and direction apart (DoRA).")
    merge_adapter: bool = option(False, "Save the model with the adapter merged in, not the adapter alone.")


@dataclass
class DataArguments:
    dataset_name: str | None = option(
        None, "Training data: hub id, .jsonl/.json/.parquet/.csv file, folder, or world.", required=True
    )
    dataset_train_split: str = option("train", "Split to train on.")
    eval_dataset_name: str | None = option(None, "Evaluation data: any source. Default: no evaluation.")
    dataset_test_split: str = option("test", "Split to evaluate on.")
    max_train_samples: int | None = option(None, "Train on the first N rows only.")
    max_eval_samples: int | None = option(None, "Evaluate on the first N rows only.")


@dataclass
class RunArguments:
    overwrite_output_dir: bool = option(
        False, "Delete the run in output_dir (only the files in its record) and start over."
    )
    dry_run: bool = option(False, "Check config and data, print the plan, train nothing, write nothing.")
    accelerate: str | None = option(
        None,
        "Run on several devices, by the name of a configuration (cpu, cpu-2, single-gpu, ddp, fsdp2, fsdp2-offload, "
        "zero2, zero3) or by a YAML of accelerate's. Default: this process alone.",
    )
    stop_within: float = option(
        100.0, "Seconds after SIGTERM in which a run may finish its step and save, before it ends at once."
    )


SECRET = ("hub_token",)  # recorded nowhere


@dataclass
class Settings:
    """A recipe's arguments, one record a concern. `given`: the names set by YAML or command line."""

    stage: str
    model: ModelArguments
    data: DataArguments
    run: RunArguments
    training: Any
    extra: Any = None
    given: frozenset[str] = frozenset()
    argv: tuple[str, ...] = ()
    publishes: bool = False  # whether the model goes to the hub when all is done
    provenance: Any = None  # what the run trains with (recipes.resume.Provenance)
    closing: ExitStack = field(default_factory=ExitStack)  # what the run does at its end, whatever that is


def given_values(settings: Settings) -> dict[str, Any]:
    """What the user gave, by name; everything else is a default."""
    records = [settings.model, settings.data, settings.run, settings.training, settings.extra]
    return {
        name: getattr(next(record for record in records if hasattr(record, name)), name)
        for name in sorted(settings.given)
    }


def parse(
    stage: str,
    training_class: type,
    options: Sequence[str] | Mapping[str, Any],
    extra_class: type | None = None,
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    renamed: dict[str, str] | None = None,
) -> Settings:
    """Read a command line (and its `--config` YAML), or options by name, into the stage's records.

    `complete` adds what depends on the machine to the values a user gave; `renamed`: old names and what to write
    instead. Raises UserError with all problems.
    """
    classes = {"model": ModelArguments, "data": DataArguments, "run": RunArguments, "training": training_class}
    if extra_class is not None:
        classes["extra"] = extra_class
    source = Source(declared_fields(classes.values()), True)
    if isinstance(options, Mapping):
        argv, values = (), read_values(stage, options, source)
    else:
        argv, values = tuple(options), read(stage, options, source, renamed)
    names = frozenset(values)
    if complete is not None:
        values = complete(values)
    return Settings(stage=stage, given=names, argv=argv, **build(stage, classes, values))
