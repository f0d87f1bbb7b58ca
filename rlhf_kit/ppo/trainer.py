"""PPO for language models in one process or many, on transformers' own Trainer.

The algorithm is that of Ziegler et al. 2019 (arXiv:1909.08593) as InstructGPT (arXiv:2203.02155) uses it:

    collect       roll out -> scores -> reference -> values -> rewards -> advantages
    compute_loss  new log-probs and values -> policy loss -> value loss

and differs from their code in this: the loss is normalised by the tokens of the whole mini-batch over all processes,
the end token is an action like any other, and a completion that was cut off is not taken for one that ended.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, set_seed

from rlhf_kit import ops
from rlhf_kit.data.chat import decode_completion, encode_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.models.adapters import save, wrap
from rlhf_kit.models.checkpoints import context_length, load_policy, load_tokenizer
from rlhf_kit.models.dropout import disable_dropout
from rlhf_kit.models.value import VALUE_MODELS, adapters_off, build_policy_and_value, completion_logits
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.kl import AdaptiveKL, FixedKL
from rlhf_kit.ppo.loop import RolloutBoundary, RolloutLoader, prompt_order
from rlhf_kit.ppo.rewards import RewardFunc, Rewards
from rlhf_kit.ppo.rollout import Rollout, sample

VALUE_FILE, STATE_FILE = "value.safetensors", "ppo_state.json"
KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": ops.kl_k1, "k3": ops.kl_k3}


@dataclass
class Experience:
    """A rollout and what is learnt from it. All (B, R) float32."""

    rollout: Rollout
    logprobs: Tensor  # log pi_old(token), the policy that sampled
    values: Tensor  # V_old(state before the token)
    advantages: Tensor
    returns: Tensor

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """A micro-batch as `compute_loss` reads it."""
        rollout = self.rollout.select(rows)
        width = rollout.completion_ids.shape[1]
        learnt = {name: getattr(self, name)[rows, :width] for name in ("logprobs", "values", "advantages", "returns")}
        tokens = {"completion_ids": rollout.completion_ids, "completion_mask": rollout.completion_mask}
        return rollout.model_inputs() | tokens | learnt


class PPOTrainer(Trainer):
    """Train a causal LM against rewards, kept near the policy it starts from.

    Args:
        model: hub id, folder, or model.
        reward_funcs: one or a list of hub ids, folders, sequence-classification models with one label, or Python
            functions by GRPO's contract (see `rlhf_kit.ppo.rewards`).
        train_dataset: rows with a `prompt` (text or messages); further columns go to the reward functions.
        peft_config: LoRA; the reference is then the model with its adapters switched off.
        ref_model: the policy to stay near; None for a frozen copy of `model` as handed over.
        value_model: "shared", "separate", "reward", or a model.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardFunc | list[RewardFunc],
        args: PPOConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: LoraConfig | None = None,
        *,
        ref_model: str | PreTrainedModel | None = None,
        value_model: str | PreTrainedModel = "shared",
    ):
        name = model if isinstance(model, str) else model.config._name_or_path
        args = copy.copy(args or PPOConfig(f"{name.rstrip('/').split('/')[-1]}-PPO"))
        set_seed(args.seed)
        tokenizer = processing_class or load_tokenizer(name)
        policy = load_policy(model) if isinstance(model, str) else model

        # Whatever copies the policy must do so before adapters and training touch it.
        if isinstance(ref_model, str):
            ref_model = load_policy(ref_model)
        elif ref_model is None and peft_config is None:
            ref_model = copy.deepcopy(policy)
        self.ref_model = ref_model  # None: the policy with its adapters off
        if peft_config is not None:
            policy = wrap(policy, peft_config)
        self.rewards = Rewards(
            reward_funcs, reward_processing_classes, args.reward_weights, tokenizer, args.per_device_eval_batch_size
        )
        module = build_policy_and_value(policy, *self._value_source(value_model), peft_config)
        disable_dropout(module)
        if self.ref_model is not None:
            disable_dropout(self.ref_model.eval().requires_grad_(False))

        if train_dataset is None or len(train_dataset) == 0:
            raise UserError("train_dataset has no rows; PPO needs prompts.")
        self.prompts = _encode(train_dataset, tokenizer, args, policy)
        self.eval_prompts = None if eval_dataset is None else _encode(eval_dataset, tokenizer, args, policy)
        args.gradient_accumulation_steps = args.micro_batches(args.world_size)
        episodes = args.total_episodes or math.ceil(args.num_train_epochs * len(self.prompts))
        if args.max_steps <= 0:
            args.max_steps = math.ceil(episodes / args.rollout_batch_size) * args.steps_per_rollout
        if args.rollout_batch_size % args.world_size:
            raise UserError(
                f"rollout_batch_size={args.rollout_batch_size} must be a multiple of the {args.world_size} processes."
            )
        super().__init__(
            model=module,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.loss_is_scaled_for_ga = True
        self.args.ignore_data_skip = True  # RolloutLoader starts where the trainer's state says
        self.add_callback(RolloutBoundary(self))
        self.rewards.to(self.args.device)
        if self.ref_model is not None:
            self.ref_model.to(self.args.device)
        self.kl_controller = FixedKL(args.kl_coef)
        if args.kl_target is not None:
            self.kl_controller = AdaptiveKL(args.kl_coef, args.kl_target, args.kl_horizon)
        ends = policy.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        self.eos_ids = sorted({i for i in [*ends, tokenizer.eos_token_id] if i is not None})
        self._metrics: dict[str, list[float]] = defaultdict(list)

    def _value_source(self, value_model):
        if value_model == "reward" and len(self.rewards.models) != 1:
            raise UserError(
                f"value_model='reward' needs exactly one reward model; reward_funcs has {len(self.rewards.models)}. "
                "Choose 'shared' or 'separate'."
            )
        if isinstance(value_model, str) and value_model not in VALUE_MODELS:
            raise UserError(f"value_model {value_model!r} is not one of {', '.join(VALUE_MODELS)}, nor a model.")
        return value_model, (self.rewards.models[0] if value_model == "reward" else None)

    # --- one rollout --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self, rows: list[dict], generator: torch.Generator) -> tuple[Experience, dict[str, float]]:
        """Everything of a rollout that needs no gradient. B prompts -> experience, metrics over all processes."""
        args, clock = self.args, time.perf_counter()
        self.model.eval()

        # 1. Roll out.
        rollout = self.sample(rows, generator)
        mask, seconds_rollout = rollout.completion_mask, time.perf_counter() - clock

        # 2. Scores: one a completion. What never ended gets a fixed one, so that it cannot buy its way out.
        raw_scores, parts = self.score(rows, rollout)
        scores = raw_scores if args.reward_clip is None else raw_scores.clamp(-args.reward_clip, args.reward_clip)
        if args.missing_eos_penalty is not None:
            scores = torch.where(rollout.terminated, scores, -args.missing_eos_penalty)

        # 3. Reference, and the policy as it will be trained (not as it was sampled: bf16 and caches differ).
        logprobs, values, entropy = self.score_tokens(rollout)
        ref_logprobs = self.reference_logprobs(rollout)

        # 4. Rewards: one a token.
        kl = KL_ESTIMATORS[args.kl_estimator](logprobs, ref_logprobs)
        rewards = ops.token_rewards(scores, kl, mask, self.kl_controller.coef)

        # 5. Advantages. V after the last token is 0 where the completion ended.
        last_values = values.gather(1, rollout.completion_lengths[:, None]).squeeze(1)
        bootstrap = torch.where(rollout.terminated, 0.0, last_values) if args.bootstrap_truncated else None
        values = values[:, :-1]
        advantages, returns = ops.gae(rewards, values, mask, args.gamma, args.lam, bootstrap)
        if args.whiten_advantages:
            advantages = ops.whiten(advantages, mask, self._total)

        per_token = {
            "kl_per_token": ops.kl_k1(logprobs, ref_logprobs),
            "kl_k3_per_token": ops.kl_k3(logprobs, ref_logprobs),
            "entropy": entropy,
            "value/mean": values,
            "value/return": returns,
        }
        residual = self._token_mean((returns - values) ** 2, mask)
        spread = self._token_mean(returns**2, mask) - self._token_mean(returns, mask) ** 2
        metrics = {
            "reward": self._mean(scores),
            "reward_std": self._std(scores),
            **({f"rewards/{name}": self._mean(part) for name, part in parts.items()}),
            "kl": self._mean((ops.kl_k1(logprobs, ref_logprobs) * mask).sum(1)),
            "kl_coef": self.kl_controller.coef,
            **{name: self._token_mean(x, mask) for name, x in per_token.items()},
            "value/explained_variance": 1 - residual / max(spread, 1e-8),
            "completions/length": self._mean(rollout.completion_lengths),
            "completions/terminated": self._mean(rollout.terminated),
            "seconds/rollout": seconds_rollout,
            "seconds/collect": time.perf_counter() - clock,
        }
        return Experience(rollout, logprobs, values, advantages, returns), metrics

    def sample(self, rows: list[dict], generator: torch.Generator | None = None, temperature=None) -> Rollout:
        """One completion for each row's `prompt_ids`, from the policy as it is."""
        with self.accelerator.autocast():
            return sample(
                self.accelerator.unwrap_model(self.model).policy,
                [row["prompt_ids"] for row in rows],
                eos_ids=self.eos_ids,
                pad_id=self.processing_class.pad_token_id,
                max_completion_length=self.args.max_completion_length,
                temperature=self.args.temperature if temperature is None else temperature,
                generator=generator,
                batch_size=self.args.generation_batch_size,
            )

    def score(self, rows: list[dict], rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """What the rewards think. -> (B,) on the device, and each reward's own (B,)."""
        ids = rollout.completions()
        texts = [decode_completion(self.processing_class, tokens) for tokens in ids]
        columns = {key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "prompt_ids")}
        with self.accelerator.autocast():
            scores, parts = self.rewards(
                [row["prompt"] for row in rows], texts, ids, columns, trainer_state=self.state
            )
        return scores.to(self.args.device), parts

    def score_tokens(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs (B, R), values (B, R + 1) and entropy (B, R) of the policy and its value function."""
        module = self.accelerator.unwrap_model(self.model)

        def forward(part: Rollout) -> tuple[Tensor, ...]:
            output = module(
                **part.model_inputs(),
                completion_ids=part.completion_ids,
                temperature=self.args.temperature,
                with_entropy=True,
            )
            return output["logprobs"], output["values"], output["entropy"]

        return self._by_length(rollout, forward)

    def reference_logprobs(self, rollout: Rollout) -> Tensor:
        """Log-probs (B, R) of the reference policy."""
        policy = self.accelerator.unwrap_model(self.model).policy
        reference = self.ref_model or policy

        def forward(part: Rollout) -> tuple[Tensor]:
            logits = completion_logits(reference, part.model_inputs(), part.completion_ids.shape[1] + 1)
            return (ops.token_logprobs(logits, part.completion_ids, self.args.temperature),)

        with adapters_off(policy) if self.ref_model is None else nullcontext():
            return self._by_length(rollout, forward)[0]

    def _by_length(self, rollout: Rollout, forward: Callable[[Rollout], tuple[Tensor, ...]]) -> list[Tensor]:
        """`forward` on rows of a like length at a time, its outputs (b, r) put in place in (B, R) or (B, R + 1)."""
        rows, width = rollout.completion_ids.shape
        results: list[Tensor] = []
        for part in rollout.by_length(self.args.per_device_eval_batch_size):
            piece = rollout.select(part)
            with torch.no_grad(), self.accelerator.autocast():
                outputs = forward(piece)
            extra = [output.shape[1] - piece.completion_ids.shape[1] for output in outputs]
            results = results or [outputs[0].new_zeros(rows, width + more) for more in extra]
            for result, output in zip(results, outputs, strict=True):
                result[part, : output.shape[1]] = output
        return results

    # --- the update ---------------------------------------------------------------------------------------------

    def minibatches(self, experience: Experience, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        """Micro-batches of all epochs over a rollout, `micro_batches` of them to an optimizer step.

        Each epoch shuffles anew; rows of a like length share a forward, which the token-normalised loss cannot tell.
        """
        args, rollout = self.args, experience.rollout
        size = args.mini_batch_size // args.world_size
        for _ in range(args.num_ppo_epochs):
            for rows in torch.randperm(len(rollout.completion_lengths), generator=generator).split(size):
                rows = rows.to(args.device)
                num_tokens = self._total(rollout.completion_lengths[rows].sum().float())
                for part in rollout.select(rows).by_length(args.per_device_train_batch_size):
                    yield {**experience.batch(rows[part]), "num_tokens": num_tokens}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Clipped policy loss plus `vf_coef` times clipped value loss, per token of the whole mini-batch."""
        args, mask = self.args, inputs["completion_mask"]
        names = ("input_ids", "attention_mask", "position_ids", "completion_ids")
        output = model(**{name: inputs[name] for name in names}, temperature=args.temperature)
        values = output["values"][:, :-1]

        policy_losses, ratio, clipped = ops.ppo_policy_loss(
            output["logprobs"], inputs["logprobs"], inputs["advantages"], args.cliprange
        )
        value_losses, value_clipped = ops.ppo_value_loss(
            values, inputs["values"], inputs["returns"], args.cliprange_value
        )
        # DDP averages gradients over processes: undo it, the token count is already that of all of them.
        scale = args.world_size / inputs["num_tokens"]
        policy_loss = ops.masked_sum(policy_losses, mask) * scale
        value_loss = ops.masked_sum(value_losses, mask) * scale
        loss = policy_loss + args.vf_coef * value_loss

        with torch.no_grad():
            self._track("loss/policy", policy_loss * args.gradient_accumulation_steps)
            self._track("loss/value", value_loss * args.gradient_accumulation_steps)
            self._track("policy/ratio", ops.masked_mean(ratio, mask))
            self._track("policy/clip_fraction", ops.masked_mean(clipped.float(), mask))
            self._track("policy/approx_kl", ops.masked_mean(ops.kl_k3(inputs["logprobs"], output["logprobs"]), mask))
            self._track("value/clip_fraction", ops.masked_mean(value_clipped.float(), mask))
        return (loss, output) if return_outputs else loss

    # --- Trainer's hooks ------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> RolloutLoader:
        return RolloutLoader(self)

    def rollout_batches(self, index: int) -> Iterator[dict[str, Tensor]]:
        """Collect rollout number `index` and cut it into micro-batches; the draw depends on seed and index alone."""
        args = self.args
        generator = torch.Generator().manual_seed(args.seed + 100_003 * args.process_index + 1_000_003 * index)
        share = args.rollout_batch_size // args.world_size
        first = index * args.rollout_batch_size + args.process_index * share
        order = prompt_order(len(self.prompts), range(first, first + share), args.seed, args.shuffle_dataset)
        experience, metrics = self.collect([self.prompts[i] for i in order], generator)
        self.kl_controller.update(metrics["kl"], args.rollout_batch_size)
        for name, value in metrics.items():
            self._track(name, value)
        yield from self.minibatches(experience, generator)

    def evaluate(self, eval_dataset: Dataset | None = None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """Sample the evaluation prompts with a fixed seed. -> reward, KL, length and terminated share, prefixed."""
        prompts = self.eval_prompts
        if eval_dataset is not None:
            policy = self.accelerator.unwrap_model(self.model).policy
            prompts = _encode(eval_dataset, self.processing_class, self.args, policy)
        if not prompts:
            raise UserError("There is nothing to evaluate on; give an eval_dataset.")
        share = -(-len(prompts) // self.args.world_size)  # the last process may repeat prompts: all must take part
        mine = [prompts[(self.args.process_index * share + i) % len(prompts)] for i in range(share)]
        generator = torch.Generator().manual_seed(self.args.seed + 100_003 * self.args.process_index)
        _, metrics = self.collect(mine, generator)
        names = ["reward", "reward_std", "kl", "kl_per_token", "entropy"]
        logs = {f"{metric_key_prefix}_{name}": metrics[name] for name in names}
        logs |= {f"{metric_key_prefix}_{k}": v for k, v in metrics.items() if k.startswith("rewards/")}
        logs[f"{metric_key_prefix}_length"] = metrics["completions/length"]
        logs[f"{metric_key_prefix}_terminated"] = metrics["completions/terminated"]
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.args.value_learning_rate is not None:
            decayed = set(self.get_decay_parameter_names(self.model))
            groups = defaultdict(list)
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups[name.startswith("value_"), name in decayed].append(parameter)
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rates = {False: self.args.learning_rate, True: self.args.value_learning_rate}
            self.optimizer = cls(
                [
                    {"params": group, "lr": rates[is_value], "weight_decay": self.args.weight_decay if decays else 0.0}
                    for (is_value, decays), group in groups.items()
                ],
                **options,
            )
        return super().create_optimizer(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | {name: float(torch.tensor(values).mean()) for name, values in self._metrics.items()}
            self._metrics.clear()
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The policy as a plain model or adapter folder; value function and KL coefficient in files of their own."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        module = self.accelerator.unwrap_model(self.model)
        save(module.policy, folder)
        self.processing_class.save_pretrained(folder)
        value = {k: v.contiguous() for k, v in module.state_dict().items() if k.startswith("value_")}
        save_file(value, folder / VALUE_FILE)
        (folder / STATE_FILE).write_text(json.dumps({"kl_coef": self.kl_controller.coef}))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        folder = Path(resume_from_checkpoint)
        module = self.accelerator.unwrap_model(self.model)
        if isinstance(module.policy, PeftModel):
            set_peft_model_state_dict(module.policy, load_peft_weights(str(folder)))
        else:
            module.policy.load_state_dict(type(module.policy).from_pretrained(folder).state_dict())
        module.load_state_dict(load_file(folder / VALUE_FILE), strict=False)
        self.kl_controller.coef = json.loads((folder / STATE_FILE).read_text())["kl_coef"]

    # --- over processes -------------------------------------------------------------------------------------------

    def _total(self, x: Tensor) -> Tensor:
        return self.accelerator.reduce(x, "sum")

    def _mean(self, x: Tensor) -> float:
        """Mean over completions that have a number."""
        x = x.to(self.args.device).float()
        total, count = self._total(torch.stack([x.nansum(), (~x.isnan()).sum().float()]))
        return float(total / count)

    def _std(self, x: Tensor) -> float:
        return max(self._mean(x * x) - self._mean(x) ** 2, 0.0) ** 0.5

    def _token_mean(self, x: Tensor, mask: Tensor) -> float:
        total, count = self._total(torch.stack([ops.masked_sum(x, mask), mask.sum().float()]))
        return float(total / count)

    def _track(self, name: str, value: Tensor | float) -> None:
        self._metrics[name].append(value.detach() if isinstance(value, Tensor) else value)


def _encode(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: PPOConfig, policy) -> list[dict]:
    """Rows with their `prompt_ids`, once it is sure that each prompt leaves room for a completion."""
    rows = [{**row, "prompt_ids": encode_prompt(tokenizer, row["prompt"])} for row in dataset]
    limit = context_length(policy.config)
    room = None if limit is None else limit - args.max_completion_length
    lengths = [len(row["prompt_ids"]) for row in rows]
    long = [] if room is None else [(row, tokens) for row, tokens in enumerate(lengths) if tokens > room]
    if long:
        row, tokens = max(long, key=lambda item: item[1])
        raise UserError(
            f"{len(long)} of {len(rows)} prompts are too long: row {row} has {tokens} tokens, and the context of "
            f"{limit} leaves {room} beside max_completion_length={args.max_completion_length}. "
            "Shorten or drop these prompts, or lower max_completion_length."
        )
    return rows
