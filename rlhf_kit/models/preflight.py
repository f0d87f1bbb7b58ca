"""Before a stage trains: does the model, in the stage's rows, compute what it computes of each text alone?

Architectures differ in what they read besides the tokens before: padding, the neighbours in a packed row, a state
that no cache hands on. None is known by name here. Each is tried on two short texts of the run's own; the truth is the
plain forward of one text, without padding, mask, positions or cache.

Notation: T tokens of a text, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled

from rlhf_kit.data.packing import PackedCollator, row_of
from rlhf_kit.errors import UserError
from rlhf_kit.models.forward import context_length, labelled_logits, taken, unwrapped
from rlhf_kit.models.packed import take_packed, take_padded
from rlhf_kit.models.weights import not_finite

LENGTHS = (24, 13)  # tokens of the two texts
SAME = "its numbers are the same"
ROUNDING = 1e-3  # of the numbers' spread: what float32 may lose, a hundredth of what the smallest leak seen changes
logger = logging.getLogger(__name__)


def short_texts(model: nn.Module, rows: Iterable[Sequence[int]]) -> list[list[int]]:
    """Two short texts of different lengths from the first rows; a row that is too short is repeated."""
    texts = list(islice((row for row in rows if len(row)), 2))
    if not texts:
        raise UserError("There is nothing to train on: every row is empty.")
    limit = context_length(unwrapped(model).config) or sum(LENGTHS)
    lengths = [max(2, min(length, limit * length // sum(LENGTHS))) for length in LENGTHS]
    return [list(islice(cycle(row), length)) for row, length in zip((texts[0], texts[-1]), lengths, strict=True)]


@contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Within, `model` is as in evaluation and no gradient is kept; it and the random numbers stay as they were."""
    training = [module for module in model.modules() if module.training]
    inner = unwrapped(model)
    device = next(inner.parameters()).device
    # Flash attention computes in half precision only.
    half = "flash" in str(inner.config._attn_implementation) and inner.dtype == torch.float32
    precision = torch.autocast(device.type, torch.bfloat16) if half else nullcontext()
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []), precision:
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def alone(model: nn.Module, text: Sequence[int]) -> Tensor:
    """Logits of a text by itself. -> (T, V) float32."""
    ids = torch.tensor([text], device=next(model.parameters()).device)
    return model(input_ids=ids, **taken(model, use_cache=False)).logits[0].float()


@dataclass(frozen=True)
class Batch:
    """Texts as a stage feeds them. `widths`: the tokens of each row of `inputs`, whose texts follow one another."""

    texts: list[list[int]]
    widths: list[int]
    inputs: dict[str, Any]

    def logits(self, model: nn.Module) -> list[Tensor]:
        """Of each text: (T, V)."""
        inputs = {name: value for name, value in self.on(model).items() if name != "labels"}
        logits = model(**inputs, **taken(model, use_cache=False)).logits
        rows = logits if len(logits) == 1 else [row[:width] for row, width in zip(logits, self.widths, strict=True)]
        sizes = [len(text) for text in self.texts]
        return list(torch.cat([*rows]).float()[: sum(sizes)].split(sizes))

    def on(self, model: nn.Module) -> dict[str, Any]:
        """`inputs` on the device of `model`."""
        device = next(model.parameters()).device
        return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in self.inputs.items()}


def gap(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest difference, in units of the truth's spread."""
    worst = torch.stack([(a - b).abs().max() for a, b in zip(found, truth, strict=True)]).max().item()  # NaN stays
    return worst / _spread(truth) if worst else 0.0


def _spread(numbers: Sequence[Tensor]) -> float:
    flat = torch.cat([x.flatten() for x in numbers])
    return flat.std().item() + ROUNDING * flat.abs().mean().item()


def tolerance(model: nn.Module) -> float:
    """The gap that rounding may make in the precision that `model` computes in."""
    tf32 = unwrapped(model).device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    return 0.15 if computes_in_half(model) else 0.02 if tf32 else ROUNDING


def computes_in_half(model: nn.Module) -> bool:
    """In bf16 or fp16, by its weights or under autocast."""
    inner = unwrapped(model)
    return torch.is_autocast_enabled(inner.device.type) or inner.dtype in (torch.bfloat16, torch.float16)


def tried(model: nn.Module, compare: Callable[[], float], what: str = "its logits are") -> str | None:
    """What is wrong where `compare` finds a gap or fails; None when it is what rounding makes."""
    with trial(model):
        try:
            outcome = compare()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever an architecture's forward raises
            return f"its forward ends in {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if math.isnan(outcome):
            return f"{what} NaN or infinite"
        return None if outcome <= tolerance(model) else f"{what} off by {outcome:.2g} of their spread"


def fault(model: nn.Module, batch: Batch) -> str | None:
    """What is wrong with how `model` reads a batch; None when each text has the logits that it has alone."""
    if "position_ids" in batch.inputs and not taken(model, position_ids=None):
        return "its forward takes no position_ids"
    return tried(model, lambda: gap(batch.logits(model), [alone(model, text) for text in batch.texts]))


def agreed(decide: Callable[[], Any]) -> Any:
    """What the main process finds, on all: they must go on alike, and some may not hold the weights yet (FSDP).

    None under ZeRO-3, where no process holds them before training begins.
    """
    if is_deepspeed_zero3_enabled():
        return None
    state = PartialState()
    decision = [decide() if state.is_main_process else None]
    return broadcast_object_list(decision)[0] if state.num_processes > 1 else decision[0]


def why_not_packed(
    models: Sequence[nn.Module], read: Callable[[], list[Tensor]], truth: Callable[[], list[Tensor]]
) -> str | None:
    """What stands against reading all rows as one, without padding; None, and from then on `models` have the attention
    that does, where `read` with it gives what `truth` gives with their own."""

    def compare() -> float:
        for model in models:
            take_padded(model)
        expected = truth()
        for model in models:
            take_packed(model)
        return gap(read(), expected)

    if all([take_packed(model) for model in models]):  # of all of them, on every process
        outcome = agreed(lambda: tried(models[0], compare) or SAME) or "nothing can be tried here"
    else:
        outcome = "its attention is not of transformers' interface"
    for model in models:
        (take_packed if outcome == SAME else take_padded)(model)
    return None if outcome == SAME else outcome


# --- what stages ask ------------------------------------------------------------------------------------------------


def check_trainable(model: nn.Module) -> None:
    """Raises UserError where no parameter would learn."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"{_name(model)}: every parameter is frozen (requires_grad is False), nothing would be trained. Unfreeze "
            "some, or train adapters (peft_config, --use_peft). peft freezes an adapter that it loads without "
            "is_trainable=True, and the base of one, which stays frozen when it is merged."
        )


def check_texts(model: nn.Module, texts: list[list[int]]) -> None:
    """Raises UserError for a model that reads what stands behind a token: later tokens, or padding on the right; and
    for one whose weights are no numbers."""
    fault = agreed(lambda: not_finite(model))
    if fault:
        raise UserError(f"{_name(model)}: {fault}")

    def decide() -> str | None:
        return tried(model, lambda: gap(_beginnings(model, texts), [alone(model, text) for text in texts]))

    fault = agreed(decide)
    if fault:
        raise UserError(
            f"{_name(model)} is not a causal language model: with other tokens after a text {fault}. "
            "(Some models have `is_decoder` in their config.json.)"
        )
    check_padding(model, pretraining_batch(texts, "apart"))


def check_padding(model: nn.Module, batch: Batch, advice: str = "") -> None:
    """Raises UserError for a model that reads the padding of `batch`, rows of one text each."""
    message = agreed(lambda: fault(model, batch))
    if message:
        raise UserError(
            f"{_name(model)} cannot be trained on texts of different lengths: in a batch of them {message}.{advice}"
        )


def arrangement(model: nn.Module, texts: list[list[int]]) -> tuple[str, str | None]:
    """How documents may share rows (`PackedCollator`): the first arrangement that changes no document's logits, and
    what is wrong with "packed" where it is not that."""

    def decide() -> tuple[str, str | None]:
        packed = fault(model, pretraining_batch(texts, "packed"))
        if packed is None:
            return "packed", None
        flattened = fault(model, pretraining_batch(texts, "flattened"))
        return "apart" if flattened else "flattened", packed

    return agreed(decide) or ("packed", None)


def reads_labelled(model: nn.Module, batch: Batch) -> bool:
    """Whether `labelled_logits` of `batch`, whose texts are labelled but for their first tokens, are those that the
    texts have alone; of one long row where `model` can read that, else of the rows as they are."""

    def read() -> list[Tensor]:
        return [labelled_logits(model, batch.on(model))[0].float()]

    def truth() -> list[Tensor]:
        return [torch.cat([alone(model, text)[:-1] for text in batch.texts])]

    why = why_not_packed([model], read, truth)
    if why is None:
        return True
    outcome = agreed(lambda: tried(model, lambda: gap(read(), truth())) or SAME) or "nothing can be tried here"
    logger.warning(
        "%s reads rows with padding: without, %s.%s", _name(model), why,
        "" if outcome == SAME else f" Its LM head computes on all tokens: on the labelled ones alone, {outcome}.",
    )  # fmt: skip
    return outcome == SAME


def is_likelihood(trainer: Trainer) -> bool:
    """Whether the loss is that of the labelled tokens alone: no smoothing, no function of the user's, no router's."""
    config = unwrapped(trainer.model).config.get_text_config()
    plain = trainer.label_smoother is None and trainer.compute_loss_func is None
    return plain and not getattr(config, "output_router_logits", False)


def check_loss(trainer: Trainer, batch: Batch) -> None:
    """Raises UserError where a trainer's loss is not the mean negative log-likelihood that the texts have alone.

    It is tried as one part of a step of two: a model that does not divide by the tokens of the whole step, though it
    takes any argument, is left to the trainer to average. Every process takes part. Not tried: other losses, and a
    router's part of the loss.
    """
    model = trainer.model
    if not is_likelihood(trainer) or is_deepspeed_zero3_enabled():
        return
    tokens = sum(len(text) - 1 for text in batch.texts)

    def compare() -> float:
        truth = [alone(model, text) for text in batch.texts]
        targets = [torch.tensor(text[1:], device=x.device) for text, x in zip(batch.texts, truth, strict=True)]
        nats = sum(F.cross_entropy(x[:-1], ids, reduction="sum") for x, ids in zip(truth, targets, strict=True))
        mean = (nats / tokens).item()
        loss = trainer.compute_loss(model, batch.on(model), num_items_in_batch=torch.tensor(2 * tokens)).item()
        share = mean / 2 * (trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1)
        if trainer.model_accepts_loss_kwargs and abs(loss - mean) < abs(loss - share):
            trainer.model_accepts_loss_kwargs, share = False, mean
        return min(abs(loss - share), abs(loss - mean)) / _spread(truth)

    fault = tried(model, compare, "it is")
    fault = agreed(lambda: fault)
    if fault:
        raise UserError(
            f"{_name(model)} computes another loss than that of predicting each text's next tokens: {fault}."
        )


def pretraining_batch(texts: list[list[int]], how: str) -> Batch:
    """Documents in a long row and one of them in another, or a document a row. Padding has id 0."""
    rows = [[text] for text in texts] if how == "apart" else [texts * 2, texts[-1:]]
    inputs = PackedCollator(0, how)([row_of([(text, 1) for text in row]) for row in rows])
    return Batch([text for row in rows for text in row], [sum(map(len, row)) for row in rows], inputs)


def _name(model: nn.Module) -> str:
    return type(unwrapped(model)).__name__


def _beginnings(model: nn.Module, texts: list[list[int]]) -> list[Tensor]:
    """The logits of each text, read with the other one behind it."""
    return [alone(model, text + other)[: len(text)] for text, other in zip(texts, reversed(texts), strict=True)]
