"""The memory of a device, line by line, and when: while weights are updated, in PPO also while it samples."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_kit.planning.batches import Batch
from rlhf_kit.planning.machines import Launch, Machine
from rlhf_kit.planning.records import Roles, half_of
from rlhf_kit.stages.arguments import Settings

ALWAYS, UPDATE, ROLLOUT = "always", "update", "rollout"
ROOM = 0.95  # of a device's memory that may be used: an allocator cannot fill all of it
# Numbers of a weight's size that an optimizer keeps, by a part of its name; AdamW and all others two.
NUMBERS = {"8bit": 0.5, "adafactor": 0, "sgd": 0, "rmsprop": 1, "adagrad": 1, "lion": 1}


@dataclass(frozen=True)
class Line:
    """`when`: it is there. `key`: of its words in `showing`."""

    key: str
    bytes: float
    when: str
    note: str = ""


@dataclass(frozen=True)
class Memory:
    lines: tuple[Line, ...]
    device: float  # bytes of one

    def total(self, when: str) -> float:
        return sum(line.bytes for line in self.lines if line.when in (ALWAYS, when))

    @property
    def peak(self) -> float:
        return max(self.total(UPDATE), self.total(ROLLOUT))

    @property
    def fits(self) -> bool:
        return self.peak <= ROOM * self.device


def memory_of(settings: Settings, roles: Roles, batch: Batch, launch: Launch, machine: Machine) -> Memory:
    """Of one device of a run."""
    lines = [Line("process", machine.process, ALWAYS)]
    lines += _models(settings, roles, launch)
    lines += _update(settings, roles, batch, launch, machine)
    if settings.stage == "ppo":
        lines += _rollout(settings, roles, batch, launch, machine)
    if machine.is_cpu:
        update, rollout = (sum(line.bytes for line in lines if line.when == when) for when in (UPDATE, ROLLOUT))
        lines += [Line("heap", HEAP * update + rollout, UPDATE), Line("heap", HEAP * rollout, ROLLOUT)]
    return Memory(tuple(line for line in lines if line.bytes), machine.memory)


def _models(settings: Settings, roles: Roles, launch: Launch) -> list[Line]:
    """Weights, optimizer states and what stands beside."""
    half = half_of(settings)
    casts = settings.stage == "ppo" and settings.training.bf16
    lines = []
    for part in roles.trained:
        held = part.weight_bytes * launch.share("weights")
        if casts and part.trained < part.parameters:
            held += part.copied if settings.model.merge_adapter else part.cast
        lines.append(Line(part.name, held, ALWAYS, f"{part.parameters:,} parameters, {part.trained:,} trained"))
    trained = sum(part.trained_bytes for part in roles.trained)
    numbers = next((n for word, n in NUMBERS.items() if word in str(settings.training.optim)), 2)
    lines.append(Line("optimizer", numbers * trained * launch.share("optimizer"), ALWAYS))
    if launch.is_deepspeed and half:  # its float32 masters beside weights of 16 bit
        lines.append(Line("masters", trained * launch.share("optimizer"), ALWAYS))
    for part in roles.frozen:
        held = part.weight_bytes + (part.cast if casts else 0)
        lines.append(Line(part.name, held, ALWAYS, f"{part.parameters:,} parameters"))
    if settings.stage == "ppo" and settings.training.ema_decay is not None:
        lines.append(Line("average", roles.policy.trained_bytes, ALWAYS))
    return lines


def _update(settings: Settings, roles: Roles, batch: Batch, launch: Launch, machine: Machine) -> list[Line]:
    """Gradients and what the largest micro-batch keeps, at the higher of two moments of its backward.

    At its beginning all activations are there and of gradients only the head's, beside those of earlier micro-batches;
    at its end all gradients are, and no activation.
    """
    kept = roles.kept(batch.rows, batch.width)
    recomputes = settings.training.activation_checkpointing or settings.training.gradient_checkpointing
    total = kept.recomputed(roles.shape.layers) if recomputes else kept.total
    gradients = sum(part.trained_bytes for part in roles.trained)
    held = gradients * launch.share("gradients")
    logits = batch.predicted * roles.shape.vocabulary * batch.logit_bytes
    states = batch.predicted * roles.shape.hidden * 4
    head = roles.policy.head * 4 if roles.policy.trained == roles.policy.parameters else 0
    begins = total + states + max(logits + head, 2 * kept.largest)
    if batch.accumulates:
        begins += held
    ends = held + 2 * kept.stream
    is_begin = begins >= ends
    lines = [
        Line("gradients", held if batch.accumulates or not is_begin else min(head, held), UPDATE),
        Line("activations", total + states if is_begin else 2 * kept.stream, UPDATE, batch.note),
    ]
    if is_begin:
        lines.append(Line("logits", begins - sum(line.bytes for line in lines), UPDATE))
    if launch.is_ddp:
        lines.append(Line("buckets", gradients, ALWAYS, "DistributedDataParallel's copy of the gradients"))
    if "weights" in launch.shards:
        block = max(part.block for part in roles.trained)
        lines.append(Line("gathered", 2 * block / (2 if half_of(settings) else 1), UPDATE))
    return lines


def _rollout(settings: Settings, roles: Roles, batch: Batch, launch: Launch, machine: Machine) -> list[Line]:
    """The cache with all its columns, the logits of a token or of a scoring forward, and under sharding whole weights.

    What a vLLM server samples is in its memory, on another device; an evaluation samples the reference here.
    """
    half = half_of(settings)
    size = 4 if machine.is_cpu or not half else 2
    slots = batch.slots
    if settings.training.generation_backend == "vllm":
        slots = min(slots, settings.data.max_eval_samples or slots) if settings.data.eval_dataset_name else 0
    cache = roles.cached * slots * batch.longest * size
    drawn = slots * roles.shape.vocabulary * 4 * DRAWN
    gathered = sum(part.weight_bytes for part in roles.trained) if "weights" in launch.shards else 0
    rows = settings.training.per_device_eval_batch_size
    scored = rows * batch.completion * roles.shape.vocabulary * (2 if half else 4) * 2
    stored = batch.slots_in_all * batch.longest * 8 * STORED
    return [
        Line("cache", cache, ROLLOUT, f"{slots:,} rows of {batch.longest:,} tokens"),
        Line("whole", gathered, ROLLOUT),
        Line("drawing", max(drawn, scored), ROLLOUT),
        Line("experience", stored, ALWAYS),
    ]


# Of what comes and goes on a CPU: freed blocks that the next ones do not fill, which glibc keeps in training
# (`memory`), and what a kernel needs while it runs; an update fills nothing of what a rollout has left.
# Measured, see benchmarks/plan_vs_measured.py.
HEAP = 0.4
DRAWN = 4  # float32 numbers a token of the vocabulary: logits, log-probs, probabilities, their sums
STORED = 6  # 8-byte numbers a token of a rollout: ids, log-probs, values, advantages, returns, masks
