"""What transformers' Trainer leaves undone in all of the kit's trainers.

* The first NaN or infinity stops the run, before it reaches the weights. (transformers logs the mean of the losses
  before in its place, and trains on.)
* A checkpoint is whole or known not to be, and older ones go only when it is.
* A resumed run is the unbroken one: the order of the data, what was counted since the last log, the end. What it is
  given anew, a learning rate say, holds from there on. (transformers goes on with the optimizer's old one.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers.trainer_utils import set_seed

from rlhf_kit.errors import NotFiniteError, UserError
from rlhf_kit.memory import kept_memory
from rlhf_kit.ops import first_not_finite
from rlhf_kit.terminal.interrupts import Terminated
from rlhf_kit.training.checkpoints import begin, damage, last_whole, rotate, seal
from rlhf_kit.training.checks import ADVICE, Watch
from rlhf_kit.training.launch import refuse_data_parallel
from rlhf_kit.training.order import keep_as_tensor
from rlhf_kit.training.schedule import refuse_unusable
from rlhf_kit.training.shards import Twin, WholeOptimizer, is_sharded
from rlhf_kit.training.stopping import StopAtSigterm

logger = logging.getLogger(__name__)

# What trainers count between two logs, or over the run, and keep nowhere else: transformers', TRL's, and ours.
COUNTED = (
    *("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_total_train_tokens", "_metrics"),
    *("_measures", "_tracked", "_work"),
)


class TrainerMixin:
    """Stands before a `transformers.Trainer` among the bases.

    `provenance`: what the run trains with, kept in each checkpoint; a recipe sets it, and has then looked at the
    checkpoint it resumes from.
    """

    def __init__(self, *args: Any, **options: Any):
        self.watch = Watch()
        self.provenance: dict[str, Any] | None = None
        self._continued: dict[str, Any] | None = None  # what the checkpoint had counted, until it is put back
        self._counts_all = True  # `_total_loss_scalar` is of all steps, those before the checkpoint too
        self._epoch_rng: Tensor | None = None  # the generator's state when the order of this epoch was drawn
        self._twin: Twin | None = None  # of a model that FSDP cuts into pieces
        self.sigterm: StopAtSigterm | None = None
        self._work: dict[str, dict[str, float]] | None = None  # what the models compute, where somebody counts
        for argument in (*args, *options.values()):
            if isinstance(argument, transformers.TrainingArguments):
                refuse_unusable(argument)
        super().__init__(*args, **options)
        refuse_data_parallel(self.args)

    # -- weights in pieces -----------------------------------------------------------------------------------

    @contextmanager
    def whole(self, give_back: bool = False) -> Iterator[None]:
        """Within, `self.model` has all of its weights on every process, and saves and loads as if it were alone.

        Without FSDP it does so anyway. All processes enter together.

        Args:
            give_back: each process takes its pieces of what the weights have become.
        """
        sharded = self.model
        if not (self.is_fsdp_enabled and is_sharded(sharded)):
            yield
            return
        self._twin.fill(sharded)
        self.model, self.is_fsdp_enabled = self._twin.model, False
        try:
            yield
            if give_back:
                self._twin.give_back(sharded)
        finally:
            self.model, self.is_fsdp_enabled = sharded, True
            self._twin.empty()

    @contextmanager
    def _whole_optimizer(self, saving: bool) -> Iterator[None]:
        """Within, `self.optimizer` saves and loads the state that one process would have."""
        if not (self.is_fsdp_enabled and is_sharded(self.model)):
            yield
            return
        sharded = self.optimizer
        self.optimizer = WholeOptimizer(self.model, sharded.optimizer)
        if saving:
            self.optimizer.gather()
        self.is_fsdp_enabled = False
        try:
            yield
        finally:
            self.optimizer, self.is_fsdp_enabled = sharded, True

    def save_model(self, *args: Any, **options: Any) -> None:
        with self.whole():
            super().save_model(*args, **options)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with self._whole_optimizer(saving=True):
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self.whole(give_back=True):
            self._load_weights(resume_from_checkpoint)

    def _load_weights(self, folder: str) -> None:
        """The weights of a checkpoint into `self.model`."""
        super()._load_from_checkpoint(folder, self.model)

    def _load_best_model(self) -> None:
        with self.whole(give_back=True):
            super()._load_best_model()

    # -- numbers that are none -------------------------------------------------------------------------------

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        loss = super().training_step(*args, **options)
        self.watch.look("The loss", loss)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        if self._plain_model() is None:
            return super()._clip_grad_norm(model)
        norm = self._total_norm(model)
        nn.utils.clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor | float:
        if grad_norm is None and self._plain_model() is not None:  # it was not clipped
            grad_norm = self._total_norm(model)
        norm = super()._get_grad_norm(model, grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not self._scaler_skips():
            self.watch.look("The gradient", torch.as_tensor(norm))
        self.watch.check(f"in optimizer step {self.state.global_step + 1}", self._plain_model())
        return norm

    def _total_norm(self, model: nn.Module) -> Tensor:
        """Of all gradients, as accelerate's `clip_grad_norm_` finds it; where it is none, those that are none are
        named: clipping by it would make all of them NaN."""
        self.accelerator.unscale_gradients()
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if not norm.isfinite() and not self._scaler_skips():
            for name, parameter in self._plain_model().named_parameters():
                if parameter.grad is not None:
                    self.watch.look(f"The gradient of {name}", parameter.grad)
        return norm

    def _plain_model(self) -> nn.Module | None:
        """The model whose weights and gradients are whole on this process; None where they are in pieces."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return None
        return self.accelerator.unwrap_model(self.model)

    def _scaler_skips(self) -> bool:
        """Whether fp16's loss scale may be what made a gradient overflow: it halves the scale and skips the step.

        At a scale of 1 nothing was scaled up, and the gradient itself is none.
        """
        scaler = getattr(self.accelerator, "scaler", None)
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1

    def check_weights(self) -> None:
        """Raise before weights that are none would be saved. Raises NotFiniteError."""
        model = self._plain_model()
        name = None if model is None else first_not_finite(model.named_parameters())
        if name is not None:
            raise NotFiniteError(
                f"The weights {name} became NaN or infinite in optimizer step {self.state.global_step}. {ADVICE}"
            )

    def get_train_dataloader(self) -> DataLoader:
        return keep_as_tensor(super().get_train_dataloader())

    # -- writing a checkpoint --------------------------------------------------------------------------------

    @property
    def can_pause(self) -> bool:
        """Whether a run can go on from a checkpoint that is written now, between two optimizer steps."""
        return True

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_weights()
        folder = Path(self._get_output_dir(trial))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            begin(checkpoint, self.provenance)
        self.accelerator.wait_for_everyone()  # what was in it is gone before any process writes
        with self._removing_none():  # older ones stay until it is whole
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(checkpoint)
            rotate(folder, self.args.save_total_limit, self.state.best_model_checkpoint)

    @contextmanager
    def _removing_none(self) -> Iterator[None]:
        """Within, transformers removes no checkpoint."""
        kept, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = kept

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        counted = {name: _plain(getattr(self, name)) for name in COUNTED if hasattr(self, name)}
        state = {"counted": counted, "epoch_rng": self._epoch_rng}
        torch.save(state, self._counted_file(output_dir))

    def _counted_file(self, checkpoint: str) -> Path:
        rank = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        return Path(checkpoint) / f"counted{rank}.pt"

    # -- going on from one -----------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any) -> Any:
        """As transformers'; `True` is the last checkpoint that is whole, a damaged one is refused by name."""
        if resume_from_checkpoint and self.provenance is None:
            resume_from_checkpoint = self._whole(resume_from_checkpoint)
        if resume_from_checkpoint:
            self.args.eval_on_start = False  # it was evaluated at the start
            self._continued = self._counted(Path(resume_from_checkpoint))
        if self.is_fsdp_enabled and self._twin is None:
            self._twin = Twin(self.model, self.args.device)
        with kept_memory(self.args.device.type == "cpu"):
            return super().train(resume_from_checkpoint or None, *args, **options)

    def _counted(self, checkpoint: Path) -> dict[str, Any]:
        """What this process had counted; where there were more processes or fewer, what all of them had."""
        own, files = self._counted_file(str(checkpoint)), sorted(checkpoint.glob("counted*.pt"))
        if not files or own in files and len(files) == max(1, self.args.world_size):
            return torch.load(own, weights_only=True) if files else {}
        first, *others = (torch.load(path, weights_only=True) for path in files)
        parts = [part["counted"] for part in (first, *others)]
        counted = dict(parts[0])
        if "_tr_loss" in counted:  # a mean over the processes when it is logged
            counted["_tr_loss"] = torch.stack([part["_tr_loss"] for part in parts]).mean(0)
        if "_measures" in counted:  # of each process's rows
            rows = [row for part in parts for row in part["_measures"]]
            counted["_measures"] = rows if self.args.process_index == 0 else []
        if counted.get("_work") is not None:  # of each process
            counted["_work"] = _added([part["_work"] for part in parts], self.args.process_index == 0)
        if "_tracked" in counted:  # means over the processes when they are logged
            counted["_tracked"] = {
                name: [
                    sum(values) / len(parts)
                    for values in zip(*(part["_tracked"][name] for part in parts), strict=True)
                ]
                for name in counted["_tracked"]
            }
        return first | {"counted": counted}

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As transformers'; a process that the run did not have draws anew, neither what was drawn nor the others'."""
        several = self.args.world_size > 1
        if checkpoint and not Path(checkpoint, f"rng_state{f'_{self.args.process_index}' * several}.pth").is_file():
            set_seed(self.args.seed + self.state.global_step)
        super()._load_rng_state(checkpoint)

    def _whole(self, wanted: str | bool) -> str:
        if wanted is not True:
            fault = damage(Path(wanted)) if Path(wanted).is_dir() else "there is no such folder"
            if fault:
                raise UserError(f"resume_from_checkpoint={wanted!r}: {fault}.")
            return wanted
        checkpoint, wrong = last_whole(Path(self.args.output_dir))
        listing = "; ".join(f"{path.name}: {fault}" for path, fault in wrong.items())
        if checkpoint is None:
            raise UserError(f"{self.args.output_dir!r} has no complete checkpoint to resume from. {listing}".strip())
        if listing:
            logger.warning("%s. Resuming from %s.", listing, checkpoint.name)
        return str(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As transformers', but for tied weights: a checkpoint holds them once."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _init_training_state(self, max_steps: int, *args: Any, **options: Any) -> tuple[int, int]:
        place = super()._init_training_state(max_steps, *args, **options)
        self.state.compute_steps(self.args, max_steps)  # how often to log, save and evaluate: as given now
        if self.state.global_step > max_steps:
            raise UserError(
                f"The checkpoint has taken {self.state.global_step} optimizer steps already, and this run has only "
                f"{max_steps}. Ask for more, or start a new run from its weights with another output_dir."
            )
        return place

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The moments of the checkpoint; rates, betas, decay and schedule as this run was given them."""
        groups, scheduler = self.optimizer.param_groups, self.lr_scheduler
        settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        rates = list(getattr(scheduler, "base_lrs", ()))
        try:
            with self._whole_optimizer(saving=False):
                super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            raise UserError(f"The optimizer of {checkpoint} is not that of this model: {error}") from error
        if checkpoint is None or self.is_deepspeed_enabled:
            return
        groups = self.optimizer.param_groups
        follows = isinstance(scheduler, LambdaLR)  # others keep the rate in their state
        for group, options in zip(groups, settings, strict=True):
            group.update({k: v for k, v in options.items() if k != "lr" and (follows or k != "initial_lr")})
        if not follows:
            return
        before = [group["lr"] for group in groups]
        scheduler.base_lrs = rates
        factors = (factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas)
        now = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
        for group, rate in zip(groups, now, strict=True):
            group["lr"] = rate
        scheduler._last_lr = now
        if before != now:
            logger.warning("The learning rate resumes at %.4g; the checkpoint ended at %.4g.", now[0], before[0])

    def _run_epoch(self, **options: Any) -> None:
        self._put_back()
        if self.state.global_step >= self.state.max_steps:
            return  # the checkpoint was the run's last
        continued = options["resume_from_checkpoint"] and options["epoch"] == options["epochs_trained"]
        if continued and options["steps_trained_in_current_epoch"] and self._epoch_rng is not None:
            torch.set_rng_state(self._epoch_rng)
        else:
            if continued:  # an epoch begins at the checkpoint: the order is drawn from the state that it holds
                self._load_rng_state(options["resume_from_checkpoint"])
            self._epoch_rng = torch.get_rng_state()
        super()._run_epoch(**options)

    def _finalize_training(self, *args: Any, **options: Any) -> Any:
        if self.sigterm is not None and self.sigterm.is_stopping:  # it has no end: a resumed run has
            if self.state.global_step > self.sigterm.saved:  # the best alone are saved, and this was none
                self._save_checkpoint(self.model_wrapped, None)
                self.callback_handler.on_save(self.args, self.state, self.control)
            raise Terminated
        self._put_back()
        with self._removing_none():  # it would remove the last, where one is left and another was the best
            return super()._finalize_training(*args, **options)

    def _put_back(self) -> None:
        """Go on counting where the checkpoint stood."""
        if self._continued is None:
            return
        self._counts_all = "counted" in self._continued
        if "_work" not in self._continued.get("counted", {}):  # of an earlier version: what went before is not known
            self._work = None
        for name, value in self._continued.get("counted", {}).items():
            if hasattr(self, name):
                setattr(self, name, _put_back(getattr(self, name), value, self.args.device))
        self._epoch_rng = self._continued.get("epoch_rng")
        self._continued = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "train_loss" in logs and self._counts_all:  # transformers' is the mean since the checkpoint
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)


def _added(parts: list[dict[str, dict[str, float]]], whole: bool) -> dict[str, dict[str, float]]:
    """The sums of all parts, or zeros."""
    return {
        name: {what: sum(part[name][what] for part in parts) if whole else 0.0 for what in counts}
        for name, counts in parts[0].items()
    }


def _plain(value: Any) -> Any:
    """What torch loads without running code: dicts and lists of numbers and tensors."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _put_back(now: Any, saved: Any, device: torch.device) -> Any:
    """`saved` as the kind of thing that `now` is; a dict keeps its default factory."""
    if isinstance(saved, dict):
        now = now if isinstance(now, dict) else {}
        now.update({key: _put_back(now.get(key), item, device) for key, item in saved.items()})
        return now
    if isinstance(saved, list):
        return [_put_back(None, item, device) for item in saved]
    return saved.to(device) if isinstance(saved, Tensor) else saved


class Trainer(TrainerMixin, transformers.Trainer):
    """transformers' Trainer, with what the kit adds."""
