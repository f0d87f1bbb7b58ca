"""What every stage loads: its data, its tokenizer, its model, its adapter."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from rlhf_kit.data.loading import select
from rlhf_kit.errors import UserError
from rlhf_kit.models.adapter_checks import check_config
from rlhf_kit.models.adapters import trainable
from rlhf_kit.models.checkpoints import load_policy, load_tokenizer, new_model, set_special_tokens
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.weights import is_here
from rlhf_kit.stages import plan
from rlhf_kit.stages.arguments import ModelArguments, Settings
from rlhf_kit.stages.publishing import check_push, open_repository
from rlhf_kit.stages.resume import Provenance
from rlhf_kit.stages.revisions import check_revision, pin
from rlhf_kit.training.launch import refuse_launch
from rlhf_kit.training.reports import refuse_reports
from rlhf_kit.training.schedule import schedule_faults

LORA_OPTIONS = {name for name in vars(ModelArguments()) if name.startswith("lora_")}
LORA_OPTIONS |= {"use_rslora", "use_dora", "merge_adapter"}  # nothing without --use_peft


def check_settings(settings: Settings) -> None:
    """Options that only make sense together, all of them, before anything is read."""
    model, args = settings.model, settings.training
    refuse_launch(args)
    refuse_reports(args)
    faults = [f"--{fault}." for fault in schedule_faults(args)]
    if model.config_overrides is not None:
        plan.parse_overrides(model.config_overrides)
        if not model.tokenizer_name_or_path and not getattr(args, "train_tokenizer", None):
            faults.append("--config_overrides makes a new model, which needs a vocabulary: --tokenizer_name_or_path.")
        if model.use_peft:
            faults.append("--use_peft adapts a trained model; a new one (--config_overrides) has nothing to adapt.")
    if not model.use_peft:
        unread = {name for name in settings.given & LORA_OPTIONS if getattr(model, name) is not False}
        faults += [f"--{name} needs --use_peft." for name in sorted(unread)]
    if str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no" and not settings.data.eval_dataset_name:
        faults.append("--eval_strategy needs something to evaluate on: give --eval_dataset_name.")
    faults += [*check_revision(settings), *check_push(settings)]
    if faults:
        raise UserError(
            faults[0] if len(faults) == 1 else "\n".join(["several problems:", *(f"  - {f}" for f in faults)])
        )
    open_repository(settings)
    pin(settings)
    checkpoint = args.resume_from_checkpoint
    if checkpoint or not settings.run.dry_run:
        settings.provenance = Provenance(settings, Path(checkpoint) if checkpoint else None)
    if model.use_peft:
        check_adapter(settings)


def check_adapter(settings: Settings) -> None:
    """Refuse LoRA's names that the model does not have before its weights are read."""
    config = plan.known_config(settings, None, plan.Notes(settings.run.dry_run))
    if config is None:  # of a dry run that cannot reach it
        return
    auto_class = AutoModelForSequenceClassification if settings.stage == "reward" else AutoModelForCausalLM
    try:
        model = new_model(auto_class, config, "", "meta", trust_remote_code=settings.model.trust_remote_code)
    except UserError:  # a model of another kind, or none: told where it is loaded
        return
    check_config(model, peft_config(settings.model))


def refuse_new_model(settings: Settings) -> None:
    """Reward and PPO start from a trained model."""
    if settings.model.config_overrides is not None:
        raise UserError(
            f"--config_overrides makes a new, untrained model; {settings.stage} starts from a trained one. "
            "Leave it out, and name a model made by pretrain or sft."
        )


def read_rows(source: str, kinds: tuple[str, ...], split: str, load: Callable, notes: plan.Notes) -> Dataset | None:
    """The rows of a source, validated; None with a note when a dry run cannot reach the hub."""
    loaded = notes.reach("data", source, load, source, kinds, split=split, tell=notes.tell)
    return None if loaded is None else loaded[0]


def load_data(
    settings: Settings, kinds: tuple[str, ...], load: Callable, on_bad_row: str = "error"
) -> tuple[Dataset | None, Dataset | None, plan.Notes]:
    """Training and evaluation rows, validated; None where there is none.

    In a dry run a hub source that cannot be reached is None too, and the notes say why.

    Args:
        on_bad_row: of the training data. What is measured is measured on all rows, or not at all.
    """
    data, notes = settings.data, plan.Notes(settings.run.dry_run)
    splits = []
    learning = partial(load, on_bad_row=on_bad_row)
    for name, source, split, limit, read in (
        ("training data", data.dataset_name, data.dataset_train_split, data.max_train_samples, learning),
        ("evaluation data", data.eval_dataset_name, data.dataset_test_split, data.max_eval_samples, load),
    ):
        rows = read_rows(source, kinds, split, read, notes) if source else None
        if rows is not None and limit is not None:
            rows = select(rows, range(min(limit, len(rows))))
        if rows is not None and settings.provenance is not None:
            settings.provenance.add(name, rows)
        splits.append(rows)
    return splits[0], splits[1], notes


def tokenizer_of(settings: Settings, notes: plan.Notes) -> PreTrainedTokenizerBase | None:
    """The tokenizer named, else the model's; None with a note when a dry run cannot reach the hub."""
    model = settings.model
    name = model.tokenizer_name_or_path or model.model_name_or_path
    needs_eos = settings.stage not in ("mlm", "reward")
    return notes.reach("tokenizer", name, load_tokenizer, name, model.trust_remote_code, needs_eos)


def tokenizer_or_new(
    settings: Settings, train_data: Dataset | None, notes: plan.Notes, make: Callable[..., PreTrainedTokenizerBase]
) -> PreTrainedTokenizerBase | None:
    """As `tokenizer_of`, or with --train_tokenizer a new one, `make(texts, size)` of the training text."""
    size = settings.training.train_tokenizer
    if size is None:
        return tokenizer_of(settings, notes)
    if settings.model.tokenizer_name_or_path or settings.model.config_overrides is None:
        raise UserError(
            "--train_tokenizer makes a new vocabulary: it needs --config_overrides (a model from scratch) and "
            "without --tokenizer_name_or_path."
        )
    saved = settings.training.resume_from_checkpoint  # one trained anew may number its tokens otherwise
    if not saved and train_data is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        if not saved:
            make(train_data["text"], size).save_pretrained(folder)
        return load_tokenizer(saved or folder, needs_eos=settings.stage != "mlm")


def refuse_no_text(settings: Settings, tokenizer: PreTrainedTokenizerBase | None, read: dict[str, tuple]) -> None:
    """Raises UserError for data, by its option, that were read and gave no rows of tokens: (data, rows)."""
    for option, (data, rows) in read.items():
        if tokenizer is not None and data is not None and not rows:
            raise UserError(
                f"--{option} {getattr(settings.data, option)!r} contains no text: every document is empty."
            )


def tell_packing(settings: Settings, notes: plan.Notes, rows: int, length: int, tokens: int) -> dict[str, float]:
    """Say, and return for `run.json`, what share of the room of packed rows holds no token."""
    waste = 1 - tokens / (rows * length)
    notes.tell(
        f"{settings.data.dataset_name}: packed into {rows:,} rows of {length:,} tokens, {waste:.1%} of that is padding"
    )
    return {"packing_waste": waste}


def load_model(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, load: Callable[..., PreTrainedModel] = load_policy
) -> PreTrainedModel:
    """The language model to train, a causal one unless `load` says otherwise; it knows the tokenizer's endings.

    In a dry run it is without weights: they stand in its files, and none is read.
    """
    set_seed(settings.training.seed)  # a new model draws its weights
    model_args = settings.model
    overrides = model_args.config_overrides
    model = load(
        model_args.model_name_or_path,
        config_overrides=None if overrides is None else plan.parse_overrides(overrides),
        tokenizer=tokenizer,
        dtype=model_args.dtype,
        trust_remote_code=model_args.trust_remote_code,
        attn_implementation=model_args.attn_implementation,
        device_map="meta" if settings.run.dry_run else None,
    )
    set_special_tokens(model, tokenizer)
    if context_length(model.config):
        tokenizer.model_max_length = context_length(model.config)
    return model


def check_model(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase | None,
    load: Callable[[Settings, PreTrainedTokenizerBase], PreTrainedModel] = load_model,
) -> PreTrainedModel | PeftModel | None:
    """What a dry run trains: the model as its files have it, without weights, its adapter put on; None where the files
    would have to be fetched or are yet to be made. Raises UserError as the run would."""
    model = settings.model
    if tokenizer is None or (model.config_overrides is None and not is_here("a model", model.model_name_or_path)):
        return None
    return trainable(load(settings, tokenizer), peft_config(settings.model))


def peft_config(model: ModelArguments) -> LoraConfig | None:
    """The `--lora_*` options as peft's record; None without `--use_peft`. `adapters.wrap` infers targets and task."""
    if not model.use_peft:
        return None
    return LoraConfig(
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        target_modules=model.lora_target_modules,
        modules_to_save=model.lora_modules_to_save,
        use_rslora=model.use_rslora,
        use_dora=model.use_dora,
    )
