"""How rollouts fit transformers' Trainer: micro-batches, where a run may pause, and what a checkpoint contains.

config.json model.safetensors (or an adapter)   the policy, loadable by AutoModelForCausalLM or peft
value.safetensors                               the value function
ppo_state.json                                  KL coefficient, moments of the scores, how long a rollout is
ema/                                            the policy's moving average, a plain model too
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from rlhf_kit.errors import UserError
from rlhf_kit.memory import apart
from rlhf_kit.models.adapters import save
from rlhf_kit.models.precision import HeldCasts
from rlhf_kit.models.value import PolicyAndValue
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.experience import AdaptiveKL, Experience, RunningStd, kl_controller
from rlhf_kit.ppo.metrics import Averages, Tracked, show_completions, write_completions
from rlhf_kit.ppo.prompts import Prompts, prompt_order
from rlhf_kit.training import Trainer
from rlhf_kit.training.reports import report_table
from rlhf_kit.training.stopping import draws_again

logger = logging.getLogger(__name__)
ROLLOUT = ("num_ppo_epochs", "rollout_batch_size", "mini_batch_size")  # what a rollout's optimizer steps follow from
VALUE_FILE, STATE_FILE, EMA_FOLDER, EMA_FILE = "value.safetensors", "ppo_state.json", "ema", "ema/average.safetensors"


class RolloutLoader:
    """The micro-batches of the whole run, lazily: a rollout is collected when its first micro-batch is asked for.

    It starts at the rollout that the trainer's state has reached, so that a resumed run goes on where it stopped.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        args = trainer.args
        self.rollouts = -(-args.max_steps // args.steps_per_rollout)
        self.batch_size = args.per_device_train_batch_size
        self.dataset = trainer.train_dataset

    def __len__(self) -> int:
        return self.trainer.args.max_steps * self.trainer.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        trainer = self.trainer
        done, inside = divmod(trainer.state.global_step, trainer.args.steps_per_rollout)
        if inside:
            raise UserError(
                f"The checkpoint of step {trainer.state.global_step} was saved inside a rollout of "
                f"{trainer.args.steps_per_rollout} optimizer steps, which is gone. Resume from one that is a multiple."
            )
        for index in range(done, self.rollouts):
            yield from trainer.rollout_batches(index)
            if trainer.control.should_training_stop:
                return


class RolloutBoundary(TrainerCallback):
    """Logging, saving and evaluating wait for the end of the rollout they fall in.

    Between rollouts a run is its policy, value, optimizer and counters; inside one it is a whole rollout more. So a
    run that ends inside one (`max_steps`) logs and evaluates there, and its last checkpoint is of the rollout before.
    An epoch is a pass over the prompts, though the loader gives the whole run as one.
    """

    WAITING = {"should_log": "logging_strategy", "should_save": "save_strategy", "should_evaluate": "eval_strategy"}

    def __init__(self, trainer):
        self.trainer = trainer
        self.asked: set[str] = set()
        self.saved = self.evaluated = 0  # steps of the last checkpoint and evaluation

    def on_train_begin(self, args, state, control, **kwargs):
        self.saved = self.evaluated = state.global_step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.before_step()

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step / args.steps_per_rollout * args.rollout_batch_size / len(self.trainer.prompts)
        self.asked |= {name for name in self.WAITING if getattr(control, name)}
        if self._passes(args, state.global_step) > self._passes(args, state.global_step - 1):
            self.asked |= {name for name, kind in self.WAITING.items() if getattr(args, kind) == "epoch"}
            self.asked -= {"should_evaluate"} if args.eval_delay > state.epoch else set()
        at_end = state.global_step % args.steps_per_rollout == 0 or state.global_step >= args.max_steps
        for name in self.WAITING:
            setattr(control, name, at_end and name in self.asked)
        if at_end:
            self.asked.clear()
        self.trainer.step_ended(rollout_ended=at_end)
        return control

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated = state.global_step

    def on_epoch_end(self, args, state, control, **kwargs):
        """The end of the run, where transformers asks again for what a pass ends with."""
        control.should_save &= state.global_step > self.saved
        control.should_evaluate &= state.global_step > self.evaluated
        return control

    def _passes(self, args, step: int) -> int:
        """Whole passes over the prompts in the rollouts that have ended at `step`."""
        return step // args.steps_per_rollout * args.rollout_batch_size // len(self.trainer.prompts)

    def stop(self, args, state, control) -> None:
        """End the run here, between two rollouts: what was not logged is, and there is a checkpoint to go on from."""
        control.should_training_stop = control.should_log = True
        by_time = args.save_strategy in (SaveStrategy.STEPS, SaveStrategy.EPOCH)
        control.should_save = by_time and state.global_step > self.saved


class RolloutTrainer(Trainer):
    """transformers' Trainer over rollouts: what of PPO's trainer is no algorithm.

    A subclass has `prompts`, and gives `collect` (prompts -> experience, metrics) and `minibatches` (experience ->
    micro-batches). `options` are those of transformers' Trainer; `model` is a `PolicyAndValue`.
    """

    prompts: Prompts

    def __init__(self, **options):
        super().__init__(**options)
        args, policy = self.args, self.accelerator.unwrap_model(self.model).policy
        self.loss_is_scaled_for_ga = True
        args.ignore_data_skip = True  # RolloutLoader starts where the trainer's state says
        self.boundary = RolloutBoundary(self)
        self.add_callback(self.boundary)
        self.stop_reason: str | None = None  # why a run ended before its steps
        self.kl_controller = kl_controller(args)
        self.reward_std = RunningStd()
        self.ema = None if args.ema_decay is None else MovingAverage(policy, args.ema_decay)
        self.averages = Averages(self._total, args.device)
        self.tracked = Tracked(self._total, args.world_size)
        self.casts = HeldCasts()
        self._completions: list[dict] = []  # of the last rollout or evaluation
        self._update_began, self._scaled_by = 0.0, 1.0

    def collect(self, rows: list[dict], generator: torch.Generator) -> tuple[Experience, dict[str, float]]:
        raise NotImplementedError

    def minibatches(
        self, experience: Experience, generator: torch.Generator, index: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        raise NotImplementedError

    @property
    def _tracked(self) -> dict[str, list]:
        """What a checkpoint keeps of `tracked`: of rollouts that are not logged yet."""
        return self.tracked.values

    @_tracked.setter
    def _tracked(self, values: dict[str, list]) -> None:
        self.tracked.values = values

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            self.casts.release()

    def training_step(self, *args, **kwargs) -> Tensor:
        if self._plain_model() is not None:  # sharded weights are cast as they are gathered
            self.casts.hold()  # over the micro-batches of an optimizer step
        return super().training_step(*args, **kwargs)

    def get_train_dataloader(self) -> RolloutLoader:
        return RolloutLoader(self)

    def rollout_batches(self, index: int) -> Iterator[dict[str, Tensor]]:
        """Collect rollout number `index` and cut it into micro-batches; any number of processes draws the same."""
        args = self.args
        generator = torch.Generator().manual_seed(args.seed + 1_000_003 * index)
        share = args.rollout_batch_size // args.world_size
        torch.rand(args.process_index * share, args.max_completion_length, generator=generator)  # drawn by others
        first = index * args.rollout_batch_size + args.process_index * share
        order = prompt_order(len(self.prompts), range(first, first + share), args.seed, args.shuffle_dataset)
        before = copy.copy(self.reward_std), draws_again(args.device)
        with self.whole(), apart(self.rollout_is_peak):
            experience, metrics = self.collect([self.prompts[i] for i in order], generator)
        if self.sigterm is not None and self.sigterm.look(args, self.control):  # a resumed run collects it again
            self.reward_std, draw_again = before
            draw_again()
            return
        if args.max_kl is not None and metrics["kl"] > args.max_kl:
            self.stop_reason = f"the KL of {metrics['kl']:.2f} nats passed max_kl={args.max_kl:g}"
            logger.warning("Stopped after %d steps: %s.", self.state.global_step, self.stop_reason)
            self.boundary.stop(args, self.state, self.control)
            return
        self.kl_controller.update(metrics["kl"], args.rollout_batch_size)
        for name, value in metrics.items():
            self.tracked.add(name, value)
        self._update_began = time.perf_counter()
        yield from self.minibatches(experience, generator, index)

    @property
    def rollout_is_peak(self) -> bool:
        """Under LoRA on a CPU: merged and packed weights take more than the update, which has few gradients."""
        policy = self.accelerator.unwrap_model(self.model).policy
        return self.args.device.type == "cpu" and isinstance(policy, PeftModel)

    @property
    def warming_up(self) -> bool:
        """Only the value function learns."""
        return self.state.global_step < self.args.value_warmup_rollouts * self.args.steps_per_rollout

    def before_step(self) -> None:
        """Gradients are there, clipped. A warming-up policy has none: zeros would decay it and age its moments."""
        self._scaled_by = self._loss_scale()
        if self.warming_up:
            for name, parameter in self.accelerator.unwrap_model(self.model).named_parameters():
                if not name.startswith("value_"):
                    parameter.grad = None

    def _loss_scale(self) -> float:
        return 1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale()

    @property
    def step_was_skipped(self) -> bool:
        """fp16's gradients overflowed in the last optimizer step. A fused optimizer hides it, the scale does not."""
        return self.accelerator.optimizer_step_was_skipped or self._loss_scale() < self._scaled_by

    def step_ended(self, rollout_ended: bool) -> None:
        """After every optimizer step."""
        if self.ema is not None and not self.step_was_skipped:
            self.ema.update()
        if rollout_ended:
            self.tracked.add("seconds/update", time.perf_counter() - self._update_began)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.args.value_learning_rate is not None:
            decayed = set(self.get_decay_parameter_names(self.model))
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls(parameter_groups(self.model, decayed, self.args), **options)
        return super().create_optimizer(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | self.tracked.means()
            self.tell_completions("completions")
        super().log(logs, start_time)

    def tell_completions(self, name: str) -> None:
        """Those of the last rollout or evaluation: to a file, the terminal and the services."""
        if self._completions and self.is_world_process_zero():
            step = self.state.global_step
            write_completions(self._completions, self.args.output_dir, step, name)
            show_completions(self._completions, f"{name}, step {step}", self.args.num_completions_to_print)
            report_table(self, name, [{"step": step, **row} for row in self._completions])

    def _get_grad_norm(self, model, grad_norm=None):
        self.casts.release()
        return super()._get_grad_norm(model, grad_norm)

    @property
    def can_pause(self) -> bool:
        """Between two rollouts: inside one a run is a whole rollout more."""
        return self.state.global_step % self.args.steps_per_rollout == 0

    def _save_checkpoint(self, model, trial) -> None:
        """Between two rollouts, whoever asks: no run can go on from inside one."""
        if not self.can_pause:
            logger.warning("No checkpoint at step %d, which is inside a rollout.", self.state.global_step)
            return
        super()._save_checkpoint(model, trial)
        self.boundary.saved = self.state.global_step

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:  # called on every process
            return
        folder = Path(output_dir or self.args.output_dir)
        save_policy_and_value(self.accelerator.unwrap_model(self.model), self.processing_class, folder)
        save_state(folder, self)

    def _load_weights(self, folder: str) -> None:
        check_rollout(Path(folder), self.args)
        load_policy_and_value(self.accelerator.unwrap_model(self.model), Path(folder))
        load_state(Path(folder), self)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _total(self, x: Tensor) -> Tensor:
        return self.accelerator.reduce(x, "sum")


def parameter_groups(model: nn.Module, decayed: set[str], args: PPOConfig) -> list[dict]:
    """The optimizer's groups: value function (names that begin with `value_`) and policy, with weight decay or not."""
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith("value_"), name in decayed].append(parameter)
    rates = {False: args.learning_rate, True: args.value_learning_rate}
    return [
        {"params": group, "lr": rates[is_value], "weight_decay": args.weight_decay if decays else 0.0}
        for (is_value, decays), group in groups.items()
    ]


# --- checkpoints ----------------------------------------------------------------------------------------------------


def save_policy_and_value(module: PolicyAndValue, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save(module.policy, folder)
    tokenizer.save_pretrained(folder)
    value = {k: v.contiguous() for k, v in module.state_dict().items() if k.startswith("value_")}
    save_file(value, folder / VALUE_FILE)


def load_policy_and_value(module: PolicyAndValue, folder: Path) -> None:
    if isinstance(module.policy, PeftModel):
        set_peft_model_state_dict(module.policy, load_peft_weights(str(folder)))
    else:
        module.policy.load_state_dict(type(module.policy).from_pretrained(folder).state_dict())
    module.load_state_dict(load_file(folder / VALUE_FILE), strict=False)


def save_state(folder: Path, trainer: RolloutTrainer) -> None:
    state = {
        "kl_coef": trainer.kl_controller.coef,
        "scores": vars(trainer.reward_std),
        "rollout": {name: getattr(trainer.args, name) for name in ROLLOUT},
    }
    (folder / STATE_FILE).write_text(json.dumps(state))
    ema = trainer.ema
    if ema is not None:
        with ema.applied():
            save(ema.policy, folder / EMA_FOLDER)
        trainer.processing_class.save_pretrained(folder / EMA_FOLDER)
        save_file(ema.average, folder / EMA_FILE)  # float32, and the names of the policy at work: for resuming


def check_rollout(folder: Path, args: PPOConfig) -> None:
    """A checkpoint counts optimizer steps, which are other rollouts and prompts where a rollout has more of them.

    Raises UserError for such options.
    """
    saved = json.loads((folder / STATE_FILE).read_text()).get("rollout", {})
    if any(getattr(args, name) != value for name, value in saved.items()):
        saves = [f"{name}={value}" for name, value in saved.items()]
        raise UserError(
            f"'{folder}' was saved with {', '.join(saves[:-1])} and {saves[-1]}. Resume with the same, or start a "
            "new run from its model in another output_dir."
        )


def load_state(folder: Path, trainer: RolloutTrainer) -> None:
    state = json.loads((folder / STATE_FILE).read_text())
    if isinstance(trainer.kl_controller, AdaptiveKL):  # a fixed one is what this run was given
        trainer.kl_controller.coef = state["kl_coef"]
    vars(trainer.reward_std).update(state["scores"])
    if trainer.ema is not None:
        trainer.ema.load(load_file(folder / EMA_FILE))


class MovingAverage:
    """average = decay * average + (1 - decay) * policy after every optimizer step, of what is trained, in float32."""

    def __init__(self, policy: nn.Module, decay: float):
        self.policy, self.decay = policy, decay
        self.average = {name: p.detach().float().clone() for name, p in self._trained()}

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.policy.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def update(self) -> None:
        for name, parameter in self._trained():
            self.average[name].lerp_(parameter.float(), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the policy is its average."""
        kept = {name: p.detach().clone() for name, p in self._trained()}
        self._set(self.average)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self._trained():
            parameter.copy_(weights[name])

    def load(self, average: dict[str, Tensor]) -> None:
        """Go on from a saved average."""
        for name, weight in self.average.items():
            weight.copy_(average[name])
