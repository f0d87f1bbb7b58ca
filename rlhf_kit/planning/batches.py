"""The largest micro-batch of a run, and how many rows and tokens it reads and writes in all."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from rlhf_kit.models.activations import SHARE, row_bytes
from rlhf_kit.models.forward import context_length
from rlhf_kit.planning.machines import Machine
from rlhf_kit.stages.arguments import Settings
from rlhf_kit.stages.plan import Reading

PAIR = 2  # answers of a row, where the data are not known
UNKNOWN_CONTEXT = 1024


@dataclass(frozen=True)
class Batch:
    """Of one device. `rows` texts of `width` tokens are forwarded at once, `predicted` tokens of them reach the head,
    where each number of the vocabulary takes `logit_bytes` with its gradient; `accumulates`: over several forwards.

    PPO: `slots` rows of at most `longest` tokens are sampled at once, of `slots_in_all`, `completion` tokens each.
    """

    rows: int
    width: int
    predicted: int
    logit_bytes: float
    accumulates: bool
    note: str
    slots: int = 0
    slots_in_all: int = 0
    longest: int = 0
    completion: int = 0


@dataclass(frozen=True)
class Amount:
    """Of a whole run: None where the data are not known. `texts`: of a pass; `mean`: tokens of one."""

    rows: int | None
    texts: int | None
    mean: float | None
    epochs: float
    steps: int | None

    @property
    def tokens(self) -> float | None:
        """Of a pass."""
        return None if self.texts is None or self.mean is None else self.texts * self.mean


def batch_of(
    settings: Settings, reading: Reading, config: PretrainedConfig, processes: int, machine: Machine
) -> Batch:
    """The micro-batch of the longest rows."""
    args = settings.training
    half = bool(args.bf16 or args.fp16)
    bound = bound_of(settings, config)
    if settings.stage == "ppo":
        return _rollout(settings, reading, config, processes, machine, bound)
    lists = reading.rows or [[bound] * (PAIR if settings.stage == "reward" else 1)]
    most = sorted(lists, key=sum, reverse=True)[: args.per_device_train_batch_size]
    most += [most[-1]] * (args.per_device_train_batch_size - len(most) if reading.rows is None else 0)
    rows, width = sum(map(len, most)), max(map(max, most))
    predicted = rows * width
    if reading.predicted is not None:
        predicted = sum(sorted(reading.predicted, reverse=True)[: len(most)])
    if settings.stage == "reward":
        predicted = 0
    each = _logit_bytes(settings.stage, half, machine)
    return Batch(rows, width, predicted, each, args.gradient_accumulation_steps > 1, f"{rows:,} x {width:,} tokens")


def _logit_bytes(stage: str, half: bool, machine: Machine) -> float:
    """SFT on a CPU and PPO: logits and their gradient. SFT on a GPU: TRL's head goes tile by tile. Elsewhere
    transformers' loss: logits, their float32 copy, log-probs and the gradients of both."""
    if stage == "sft":
        return (4 if half else 8) if machine.is_cpu else 0
    if stage == "ppo":
        return 4 if half else 8
    return 16


def _rollout(
    settings: Settings, reading: Reading, config: PretrainedConfig, processes: int, machine: Machine, bound: int
) -> Batch:
    args = settings.training
    share = max(1, args.rollout_batch_size // processes)
    prompt = max((row[0] for row in reading.rows), default=1) if reading.rows else bound - args.max_completion_length
    longest = max(1, prompt) + args.max_completion_length
    rows = args.per_device_train_batch_size or chosen_rows(settings, config, longest, processes, machine)
    rows = min(rows, max(1, args.mini_batch_size // processes))
    half, accumulates = bool(args.bf16 or args.fp16), rows * processes < args.mini_batch_size
    slots = min(args.generation_batch_size or share, share)
    each = _logit_bytes("ppo", half, machine) + (12 if args.entropy_coef else 0)
    predicted = rows * args.max_completion_length
    note = f"{rows:,} x {longest:,} tokens"
    return Batch(rows, longest, predicted, each, accumulates, note, slots, share, longest, args.max_completion_length)


def chosen_rows(settings: Settings, config: PretrainedConfig, longest: int, processes: int, machine: Machine) -> int:
    """As `ppo.prompts.rows_a_forward`, on the machine that is planned for."""
    args = settings.training
    half = bool(args.bf16 or args.fp16)
    rows = max(1, args.mini_batch_size // processes)
    each = row_bytes(config, longest, args.max_completion_length, half)
    most = 8 if each is None else SHARE * machine.memory / (processes if machine.is_cpu else 1) / each
    parts = next((n for n in range(1, rows) if rows % n == 0 and rows / n <= most), rows)
    return rows // parts


def bound_of(settings: Settings, config: PretrainedConfig) -> int:
    """Tokens that a row of the run has at most, prompt and completion together."""
    args = settings.training
    context = context_length(config) or UNKNOWN_CONTEXT
    if settings.stage == "ppo":
        prompt = settings.extra.max_prompt_length
        return min(context, prompt + args.max_completion_length if prompt else context)
    asked = getattr(args, "block_size", None) if settings.stage == "pretrain" else args.max_length
    if settings.stage in ("pretrain", "mlm"):
        return min(asked or (1024 if settings.stage == "pretrain" else 512), context)
    return min(asked or context, context)


def amount_of(
    settings: Settings, reading: Reading, config: PretrainedConfig, given: tuple[int | None, int | None], devices: int
) -> Amount:
    """Rows and tokens of a pass, passes, and optimizer steps.

    Args:
        given: rows, and tokens of one, where the data cannot be read.
    """
    args = settings.training
    rows, texts, mean = given[0], None, given[1]
    per_row = PAIR if settings.stage == "reward" else 1
    if reading.rows:
        rows, texts = len(reading.rows), sum(map(len, reading.rows))
        mean = sum(map(sum, reading.rows)) / texts
    elif rows is not None:
        if settings.data.max_train_samples:
            rows = min(rows, settings.data.max_train_samples)
        bound = bound_of(settings, config) - _completion(settings)
        if settings.stage == "pretrain" or getattr(args, "packing", False):  # into rows of the bound
            rows, mean = math.ceil(rows * (mean or bound) / bound), float(bound)
        if settings.stage == "mlm" and mean:  # a long text is in pieces
            pieces = math.ceil(mean / bound)
            rows, mean = rows * pieces, mean / pieces
        texts, mean = rows * per_row, min(mean or bound, float(bound))
    if settings.stage == "ppo":
        episodes = args.total_episodes or (None if rows is None else math.ceil(args.num_train_epochs * rows))
        if args.max_steps > 0:
            episodes = args.max_steps * args.mini_batch_size / args.num_ppo_epochs
        if mean is None:
            mean = float(bound_of(settings, config) - _completion(settings))
        steps = None if rows is None and args.total_episodes is None and args.max_steps <= 0 else args.steps(rows or 0)
        return Amount(
            rows, None if episodes is None else math.ceil(episodes), mean + _completion(settings), 1.0, steps
        )
    steps = args.max_steps if args.max_steps > 0 else None
    a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * devices
    epochs = args.num_train_epochs
    if steps is None and rows is not None:
        steps = math.ceil(math.ceil(rows / a_step) * epochs)
    elif steps is not None and rows is not None:
        epochs = steps * a_step / rows
    return Amount(rows, texts, mean, epochs, steps)


def _completion(settings: Settings) -> int:
    return settings.training.max_completion_length if settings.stage == "ppo" else 0
