"""Fine-tuning on questions with `Trainer`: in full, by LoRA, or with a part of the model frozen."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, TaskType
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from rlhf_kit.errors import UserError
from rlhf_kit.eval.extractive.models import check_length, reads_types
from rlhf_kit.eval.extractive.questions import Question
from rlhf_kit.eval.extractive.windows import Windows, make_windows
from rlhf_kit.models import adapters, preflight
from rlhf_kit.models.weights import head_modules
from rlhf_kit.options import option
from rlhf_kit.training import Trainer
from rlhf_kit.training.engines import EngineLine, asked_engines
from rlhf_kit.training.launch import refuse_launch
from rlhf_kit.training.progress import show_progress


@dataclass
class ExtractiveConfig(TrainingArguments):
    """How to fine-tune: the defaults are those of BERT's run_squad.py."""

    learning_rate: float = option(5e-5, "Peak learning rate.")
    num_train_epochs: float = option(3.0, "Passes over the data.")
    per_device_train_batch_size: int = option(32, "Windows a forward.")
    warmup_steps: float = option(0.1, "Warm-up: steps, or a share of all when below 1.")
    weight_decay: float = option(0.01, "Weight decay (not on norms and biases).")
    adam_epsilon: float = option(1e-6, "Adam's epsilon.")
    save_strategy: str = option("no", "When to save checkpoints.")
    report_to: str = option("none", "Where metrics go besides the log.")
    train_sampling_strategy: str = option(
        "group_by_length", "Put windows of similar length into a batch: less padding."
    )
    max_length: int = option(384, "Tokens of a window.")
    overlap: int | None = option(None, "Tokens that a window shares with the previous one.")
    step: int | None = option(None, "Tokens from one window to the next [128]; give this or overlap.")
    max_query_length: int = option(64, "Longest question, in tokens; longer ones are cut.")
    freeze: str | None = option(
        None,
        "What to freeze: embeddings; encoder (all but embeddings and head); or, for example, 4-layers (embeddings "
        "and the first four layers).",
    )


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    args: ExtractiveConfig,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    optimizers: tuple = (None, None),
    peft_config: LoraConfig | None = None,
) -> Trainer:
    """Train on the first answer of each question; returns the trainer, whose `model` answers (`predict.predict`).

    Windows without the answer learn to point at [CLS] (Devlin et al. 2019, BERT, section 4.3). `trainer.windows` tells
    what was cut and widened.

    Args:
        optimizers: (optimizer, learning rate scheduler) as `Trainer` takes them; None: AdamW, linear decay.
        peft_config: LoRA; the head is trained in full and saved with the adapter.

    Raises:
        UserError: what `make_windows` and `freeze` raise; windows too long for the model; no window to learn from.
    """
    if pieces := asked_engines(args):
        raise UserError(
            f"Fine-tuning for a measurement does not run under {' or '.join(pieces)}: each process then measures its "
            "share of the questions with the whole model. What does: one process a GPU (--accelerate ddp)."
        )
    refuse_launch(args)
    check_length(model, args.max_length)
    windows = make_windows(
        questions, tokenizer, args.max_length, overlap=args.overlap, step=args.step,
        max_query_length=args.max_query_length, train=True,
    )  # fmt: skip
    if not len(windows):
        raise UserError("There is no question to learn from: no answer lies within the tokens of a window.")
    if args.freeze is not None:
        if peft_config is not None:
            raise UserError("LoRA trains adapters in every layer, and the head: leave out freeze, or LoRA.")
        freeze(model, args.freeze)
    if peft_config is not None:
        model = _with_adapter(model, peft_config)
    collator, examples = _Collator(tokenizer.pad_token_id or 0, reads_types(model)), _Examples(windows)
    if args.per_device_train_batch_size > 1:
        _check_padding(model, collator, examples)
    trainer = Trainer(
        model,
        args,
        data_collator=collator,
        train_dataset=examples,
        processing_class=tokenizer,
        callbacks=list(callbacks),
        optimizers=optimizers,
    )
    trainer.add_callback(EngineLine(trainer))
    show_progress(trainer)
    trainer.windows = windows
    trainer.train()
    # Trainer leaves its autocast around the forward: what is measured has the model's own precision.
    trainer.model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return trainer


class _Examples(Dataset):
    """A window an example, as `Trainer` wants them; `input_ids` are lists, by which it groups like lengths."""

    def __init__(self, windows: Windows):
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, row: int) -> dict[str, list[int] | int]:
        windows = self.windows
        tokens = slice(int(windows.first[row]), int(windows.first[row + 1]))
        example = {
            "input_ids": windows.input_ids[tokens].tolist(),
            "start_positions": int(windows.starts[row]),
            "end_positions": int(windows.ends[row]),
        }
        if windows.token_type_ids is not None:
            example["token_type_ids"] = windows.token_type_ids[tokens].tolist()
        return example


@dataclass(frozen=True)
class _Collator:
    """Pads on the right to the longest of the batch; the mask comes from lengths."""

    pad: int
    types: bool

    def __call__(self, examples: Sequence[dict]) -> dict[str, Tensor]:
        longest = max(len(example["input_ids"]) for example in examples)

        def padded(rows: list[list[int]], fill: int) -> Tensor:
            return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

        ids = [example["input_ids"] for example in examples]
        batch = {
            "input_ids": padded(ids, self.pad),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "start_positions": torch.tensor([example["start_positions"] for example in examples]),
            "end_positions": torch.tensor([example["end_positions"] for example in examples]),
        }
        if self.types and "token_type_ids" in examples[0]:
            batch["token_type_ids"] = padded([example["token_type_ids"] for example in examples], 0)
        return batch


def _check_padding(model: nn.Module, collator: _Collator, examples: _Examples) -> None:
    """Raises UserError for a model whose spans change with the padding behind a window."""
    first, last = ({**examples[row]} for row in (0, len(examples) - 1))
    half = {name: row[: len(row) // 2] if isinstance(row, list) else 0 for name, row in last.items()}
    device = next(model.parameters()).device

    def spans(rows: list[dict]) -> list[Tensor]:
        inputs = {name: x.to(device) for name, x in collator(rows).items() if not name.endswith("_positions")}
        logits = model(**inputs)
        both = torch.stack([logits.start_logits, logits.end_logits], -1).float()
        return [spans[: len(row["input_ids"])] for spans, row in zip(both, rows, strict=True)]

    def compare() -> float:
        return preflight.gap(spans([first, half]), [*spans([first]), *spans([half])])

    outcome = preflight.agreed(lambda: preflight.tried(model, compare, "its spans are"))
    if outcome:
        raise UserError(
            f"{type(model).__name__} cannot be trained on windows of different lengths: in a batch of them {outcome}. "
            "A batch of one window has no padding: give --batch_size 1 (per_device_train_batch_size)."
        )


def _with_adapter(model: PreTrainedModel, config: LoraConfig) -> nn.Module:
    config = copy.copy(config)
    config.task_type = TaskType.QUESTION_ANS
    config.modules_to_save = sorted({*(config.modules_to_save or []), *head_modules(model)})
    wrapped = adapters.wrap(model, config)
    wrapped.forward = wrapped.get_base_model().forward  # peft's own drops `token_type_ids` (0.21)
    return wrapped


def freeze(model: PreTrainedModel, what: str) -> list[str]:
    """Take parameters from training; returns their names. The head is always trained.

    Args:
        what: "embeddings"; "encoder", all of the trunk but them, so that they alone learn, with the head (Artetxe et
            al. 2020, arXiv:1910.11856); or such as "4-layers", the embeddings and the first four layers.

    Raises:
        UserError: for anything else, or a model that has no such parts.
    """
    trunk = model.base_model
    embeddings = {f"{name}." for name, _ in trunk.named_children() if "embedding" in name}
    embeddings |= {f"{_name_of(trunk, trunk.get_input_embeddings())}."}
    stacks = {name: module for name, module in trunk.named_modules() if isinstance(module, nn.ModuleList)}
    match = re.fullmatch(r"(\d+)-layers?", what)
    if what not in ("embeddings", "encoder") and not match:
        raise UserError(f"freeze is {what!r}; give embeddings, encoder, or a number of layers such as 4-layers.")
    if trunk is model or not stacks:
        raise UserError(f"{type(model).__name__} has no stack of layers that could be frozen; leave out freeze.")
    layers, stack = max(stacks.items(), key=lambda named: len(named[1]))
    if match and not 1 <= int(match[1]) <= len(stack):
        raise UserError(f"freeze is {what!r}; the model has {len(stack)} layers.")
    first = {f"{layers}.{number}." for number in range(int(match[1]))} if match else set()
    names = []
    for name, parameter in trunk.named_parameters():
        is_embedding = name.startswith(tuple(embeddings))
        if (not is_embedding) if what == "encoder" else is_embedding or name.startswith(tuple(first)):
            parameter.requires_grad_(False)
            names.append(f"{model.base_model_prefix}.{name}")
    return names


def _name_of(trunk: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in trunk.named_modules() if module is wanted)
