"""PPO for language models in one process or many, on transformers' own Trainer.

The algorithm is that of Ziegler et al. 2019 (arXiv:1909.08593) as InstructGPT (arXiv:2203.02155) uses it:

    collect       roll out -> scores -> reference -> values -> rewards -> advantages
    compute_loss  new log-probs and values -> policy loss -> value loss

and differs from their code in this: the loss is normalised by the tokens of the whole mini-batch over all processes,
the end token is an action like any other, and a completion that was cut off is not taken for one that ended.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from rlhf_kit import ops
from rlhf_kit.data.prompts import handed_on
from rlhf_kit.errors import UserError
from rlhf_kit.generation.backends import BACKENDS, check_backend
from rlhf_kit.generation.reading import check_sampling, packs
from rlhf_kit.generation.sampling import Rollout
from rlhf_kit.models.adapters import has_base, trainable
from rlhf_kit.models.checkpoints import end_ids, load_config, load_policy, load_tokenizer, set_special_tokens
from rlhf_kit.models.dropout import disable_dropout
from rlhf_kit.models.forward import context_length, unwrapped
from rlhf_kit.models.fused import fuse_activations
from rlhf_kit.models.heads import check_scores
from rlhf_kit.models.precision import cast_frozen
from rlhf_kit.models.preflight import check_texts, short_texts
from rlhf_kit.models.prepacked import prepacked
from rlhf_kit.models.roles import load_value_model, reference_of, refuse_shared_weights, value_source, with_value
from rlhf_kit.models.value import PolicyAndValue, adapters_off, completion_logprobs
from rlhf_kit.models.weights import is_here, short_name, with_origin
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.experience import LEARNT, Experience, TokenReadings, advantages, losses, shaped_scores
from rlhf_kit.ppo.loop import RolloutTrainer
from rlhf_kit.ppo.metrics import (
    LOGGED,
    Evaluation,
    Stopwatch,
    check_share,
    completions_table,
    rollout_metrics,
    sampler_metrics,
    timed,
)
from rlhf_kit.ppo.prompts import (
    PretrainingTexts,
    Prompts,
    encode_prompts,
    longest_row,
    next_token_mask,
    rows_a_forward,
    text_length,
)
from rlhf_kit.ppo.rewards import RewardFunc, Rewards, check_functions, read_rewards
from rlhf_kit.ppo.server import rollout_server
from rlhf_kit.training.launch import usable


class PPOTrainer(RolloutTrainer):
    """Train a causal LM against rewards, kept near the policy it starts from.

    Args:
        model: hub id, folder, or model.
        reward_funcs: one or a list of hub ids, folders, sequence-classification models with one label, or Python
            functions by GRPO's contract, themselves or as "package.module:function" (see `rlhf_kit.ppo.rewards`).
        train_dataset: rows with a `prompt` as a file has them, a data set or a list; all columns go to the functions.
        peft_config: LoRA; the reference is then the model with its adapters switched off.
        ref_model: the policy to stay near; None for a frozen copy of `model` as handed over.
        value_model: "shared", "separate", "reward", or a model, its hub id or folder.
        ptx_dataset: rows with `text`, mixed in as next-token training (`ptx_coef`).
        reward_ensemble: "mean", "min" or "mean-std": all reward models, given by name, are one reward.
        reward_ensemble_std_coef: how much of their standard deviation "mean-std" takes off; None for 1.0.
        max_prompt_length: prompts of more tokens are left out; None: one that does not fit the context is refused.
        keep_base: in bf16, leave the float32 weights under LoRA in place beside their copy, to merge adapters into
            them or sample outside autocast after training. False, for a run that only saves: round them.
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
        ptx_dataset: Dataset | None = None,
        reward_ensemble: str | None = None,
        reward_ensemble_std_coef: float | None = None,
        max_prompt_length: int | None = None,
        keep_base: bool = True,
    ):
        args = copy.copy(usable(args or PPOConfig(f"{short_name(model)}-PPO")))
        model, name = with_origin("a causal language model", model)
        set_seed(args.seed)
        tokenizer = processing_class or load_tokenizer(name)
        config = load_config(model) if isinstance(model, str) else model.config
        reward_funcs = read_rewards(reward_funcs, reward_ensemble, reward_ensemble_std_coef, value_model)
        data = (train_dataset, eval_dataset, ptx_dataset)
        self._read_data(args, tokenizer, context_length(config), max_prompt_length, *data)
        prompt_sets = [*filter(None, (self.prompts, self.eval_prompts))]
        for prompts in prompt_sets:
            check_functions(reward_funcs, prompts[0])
        longest = longest_row(prompt_sets, args.max_completion_length)
        self.server = rollout_server(args, config, longest)
        value_model = load_value_model(value_model)
        policy = load_policy(model) if isinstance(model, str) else model
        set_special_tokens(policy, tokenizer)

        # Whatever copies the policy must do so before adapters and training touch it.
        refuse_shared_weights(policy, ref_model, reward_funcs)
        self.ref_model = reference_of(policy, ref_model, peft_config)  # None: the policy with its adapters off
        policy = trainable(policy, peft_config)
        self.rewards = Rewards(
            reward_funcs,
            reward_processing_classes,
            args.reward_weights,
            tokenizer,
            args.per_device_eval_batch_size,
            ensemble=reward_ensemble,
            std_coef=reward_ensemble_std_coef,
        )
        for prompts in prompt_sets:
            self.rewards.check(prompts, args.max_completion_length, trainer_state=None)
        reference = None if ref_model is None else self.ref_model
        roles = {"ref_model": reference, "rewards": self.rewards.readers}
        module = with_value(policy, value_model, peft_config, tokenizer, longest, **roles)
        self._freeze_roles(module)

        if args.per_device_train_batch_size is None:
            args.per_device_train_batch_size = rows_a_forward(args, config, longest, self.ptx)
        args.gradient_accumulation_steps = args.micro_batches(args.world_size)
        args.max_steps = args.steps(len(self.prompts))
        super().__init__(
            model=module,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._place_roles(module, keep_base)
        self.eos_ids = end_ids(policy, tokenizer)
        self.stopwatch = Stopwatch()
        self.evaluation = Evaluation(self)

    def _freeze_roles(self, module: PolicyAndValue) -> None:
        """Nothing draws dropout, and the reference learns nothing."""
        for part in filter(None, [module, self.ref_model]):
            disable_dropout(part)
            fuse_activations(part)
        if self.ref_model is not None:
            self.ref_model.eval().requires_grad_(False)

    def _place_roles(self, module: PolicyAndValue, keep_base: bool) -> None:
        """The models beside the policy on its device; what is not trained in the precision of the run."""
        frozen = [*self.rewards.models, *filter(None, [self.ref_model])]
        for model in frozen:
            model.to(self.args.device)
        self.compact, self.pack = self._rows_to_read(module)
        if self.accelerator.mixed_precision == "bf16":
            if not self.is_fsdp_enabled:  # which casts weights as it gathers them
                cast_frozen(module, torch.bfloat16, keep=keep_base or not has_base(module.policy))
            for model in frozen:
                cast_frozen(model, torch.bfloat16, keep=False)

    def _rows_to_read(self, module: PolicyAndValue) -> tuple[bool, bool]:
        """(whether sampling reads rows anew, whether training packs them): tried on two short texts of the run's own.

        Raises UserError for a model that no kind of rows makes right.
        """
        prompts = [row["prompt_ids"] for row in self.prompts[:2]]
        for model in self.rewards.models:
            check_scores(model, prompts)
        if self.ptx is not None:
            check_texts(module.policy, short_texts(module.policy, self.ptx.rows))
        compact = check_sampling(module.policy, prompts, module.value_trunk)
        if self.ref_model is not None and type(self.ref_model) is not type(unwrapped(module.policy)):
            compact = check_sampling(self.ref_model, prompts) or compact
        for model in filter(None, (module.policy, self.ref_model)):
            check_backend(self.args.generation_backend, model)
        pack = packs(module.policy, prompts, module.value_trunk)
        if self.ref_model is not None and pack:
            pack = packs(self.ref_model, prompts)
        return compact, pack

    def _read_data(self, args, tokenizer, context: int | None, most: int | None, train, evaluated, ptx) -> None:
        """Prompts and texts as tokens, once it is sure that all of them fit the context."""
        how = {"max_prompt_length": most, "workers": args.dataset_num_proc}
        given = tokenizer, args.max_completion_length, context
        self.prompts = encode_prompts(train, *given, **how)
        self.eval_prompts = None
        if evaluated is not None:
            self.eval_prompts = encode_prompts(evaluated, *given, "eval_dataset", **how)
            check_share(self.eval_prompts, args.world_size)
        if (ptx is None) != (args.ptx_coef == 0):
            raise UserError(f"ptx_coef={args.ptx_coef} and ptx_dataset go together: give both or neither.")
        self.ptx = None
        if ptx is not None:
            self.ptx = PretrainingTexts(
                ptx, tokenizer, text_length(args.ptx_max_length, context), args.dataset_num_proc
            )

    # --- one rollout --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(
        self, rows: list[dict], generator: torch.Generator, training: bool = True
    ) -> tuple[Experience, dict[str, float]]:
        """Everything of a rollout that needs no gradient. B prompts -> experience, metrics over all processes."""
        args = self.args
        self.stopwatch.start()
        self.model.eval()

        with prepacked(self.accelerator.unwrap_model(self.model).policy):  # nothing changes it before the update
            # Sample a completion to each prompt, and score it.
            rollout = self.sample(rows, generator)
            raw_scores, parts = self.score(rows, rollout)
            scores = self.shape_scores(raw_scores, rollout, training)

            # The policy as it will be trained, its values, and the reference.
            policy = self.read_tokens(rollout)
            ref_logprobs = self.reference_logprobs(rollout)

        # Rewards: one a token; and from them advantages.
        gains, returns = advantages(
            rollout,
            scores,
            policy.logprobs,
            ref_logprobs,
            policy.values,
            kl_coef=self.kl_controller.coef,
            kl_estimator=args.kl_estimator,
            sharpening_coef=args.sharpening_coef,
            gamma=args.gamma,
            lam=args.lam,
            bootstrap_truncated=args.bootstrap_truncated,
            whiten=args.whiten_advantages,
            reduce=self._total,
        )
        if args.importance_cap is not None and rollout.logprobs is not None:  # a factor of a token's policy loss
            gains = gains * ops.importance_weights(policy.logprobs, rollout.logprobs, args.importance_cap)
        experience = Experience(rollout, scores, policy.logprobs, policy.values[:, :-1], gains, returns)
        if args.log_completions:
            self._completions = completions_table(self.processing_class, rows, rollout, scores, parts)
        return experience, self._watched(experience, parts, ref_logprobs, policy.entropy)

    def _watched(
        self, experience: Experience, parts: dict[str, Tensor], ref_logprobs: Tensor, entropy: Tensor
    ) -> dict[str, float]:
        """A rollout in numbers, its seconds among them. Raises UserError for what is not finite."""
        mask = experience.rollout.completion_mask
        self.watch.look("The policy's log-probs", experience.logprobs, mask)
        self.watch.look("The reference's log-probs", ref_logprobs, mask)
        self.watch.look("The values", experience.values, mask)
        self.watch.check("in a rollout")
        metrics = rollout_metrics(experience, parts, ref_logprobs, entropy, self.averages)
        metrics["kl_coef"] = self.kl_controller.coef
        if self.args.reward_scaling:
            metrics["reward/scale"] = self.reward_std.std
        if self.rewards.disagreement is not None:
            metrics["reward/ensemble_std"] = self.averages.mean(self.rewards.disagreement)
        metrics |= sampler_metrics(experience, self.args.importance_cap, self.averages)
        if self.server is not None:
            metrics["rollout/probe_gap"] = self.server.gap
        seconds = self.stopwatch.read()
        tokens = metrics["completions/length"] * len(experience.scores) * self.args.world_size
        metrics["rollout/tokens_per_second"] = tokens / seconds["rollout"]
        return metrics | {f"seconds/{name}": value for name, value in seconds.items()}

    @timed("rollout")
    def sample(self, rows: list[dict], generator: torch.Generator | None = None, reference: bool = False) -> Rollout:
        """One completion for each row's `prompt_ids`, from the policy as it is, or from the reference."""
        module = self.accelerator.unwrap_model(self.model)
        exact = not reference and self._sampler_is_exact(module)
        sampled_from = self.reference() if reference else nullcontext(module.policy)
        with self.accelerator.autocast(), sampled_from as policy, prepacked(policy, merge=True):
            backend = BACKENDS[self.args.generation_backend] if reference or self.server is None else self.server
            rollout = backend(
                policy,
                [row["prompt_ids"] for row in rows],
                eos_ids=self.eos_ids,
                pad_id=self.processing_class.pad_token_id,
                max_completion_length=self.args.max_completion_length,
                temperature=self.args.temperature,
                generator=generator,
                batch_size=self.args.generation_batch_size or self.args.rollout_batch_size // self.args.world_size,
                value_head=module.value_head if exact else None,
                compact=self.compact,
            )
        rollout.pack = self.pack
        return rollout

    def _sampler_is_exact(self, module: PolicyAndValue) -> bool:
        """Whether the sampler's log-probs and values are those of the training forward.

        In float32 they are, to rounding; bf16 rounds differently with a cache. V of the last state is not sampled.
        """
        in_float32 = self.accelerator.mixed_precision == "no" and module.policy.dtype == torch.float32
        return in_float32 and module.value_trunk is None and not self.args.bootstrap_truncated

    @timed("score")
    def score(self, rows: list[dict], rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """What the rewards think. -> (B,) on the device, and each reward's own (B,)."""
        ids, texts = rollout.completions(), rollout.texts(self.processing_class)
        prompts = [row["prompt"] for row in rows]
        columns = {name: [row[name] for row in rows] for name in handed_on(rows[0])}
        with self.accelerator.autocast():
            scores, parts = self.rewards(prompts, texts, ids, columns, trainer_state=self.state)
        return scores.to(self.args.device), parts

    @timed("score")
    def shape_scores(self, scores: Tensor, rollout: Rollout, training: bool) -> Tensor:
        """As `shaped_scores`; those of training count for the std that they are scaled by. (B,) -> (B,)."""
        args, std = self.args, 1.0
        if args.reward_scaling and training:
            self.reward_std.update(scores, self._total)
            std = self.reward_std.std
        return shaped_scores(
            scores,
            rollout.terminated,
            std=std,
            clip=args.reward_clip,
            missing_eos_penalty=args.missing_eos_penalty,
        )

    @timed("reference")
    def read_tokens(self, rollout: Rollout) -> TokenReadings:
        """What the policy and its value function say of each token."""
        if rollout.values is not None:
            return TokenReadings(rollout.logprobs, F.pad(rollout.values, (0, 1)), rollout.entropy)
        module = self.accelerator.unwrap_model(self.model)

        def forward(part: Rollout) -> TokenReadings:
            output = module(**part.model_inputs(), temperature=self.args.temperature, with_entropy=True)
            return TokenReadings(output["logprobs"], output["values"], output["entropy"])

        return TokenReadings(*self._by_length(rollout, forward))

    @contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        """The reference policy: a model of its own, or the policy with its adapters off."""
        policy = self.accelerator.unwrap_model(self.model).policy
        with adapters_off(policy) if self.ref_model is None else nullcontext():
            yield self.ref_model or policy

    @timed("reference")
    def reference_logprobs(self, rollout: Rollout) -> Tensor:
        """Log-probs (B, R) of the reference policy."""
        with self.reference() as reference:

            def forward(part: Rollout) -> tuple[Tensor]:
                return (completion_logprobs(reference, part.model_inputs(), self.args.temperature),)

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

    def minibatches(
        self, experience: Experience, generator: torch.Generator, index: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """Micro-batches of all epochs over rollout `index`, `micro_batches` of them to an optimizer step.

        Each epoch shuffles anew; rows of a like length share a forward, which the token-normalised loss cannot tell.
        """
        args, rollout = self.args, experience.rollout
        size, step = args.mini_batch_size // args.world_size, index * args.steps_per_rollout
        for _ in range(args.num_ppo_epochs):
            for rows in torch.randperm(len(rollout.completion_lengths), generator=generator).split(size):
                rows = rows.to(args.device)
                num_tokens = self._total(rollout.completion_lengths[rows].sum().float())
                parts = rollout.select(rows).by_length(args.per_device_train_batch_size)
                batches = [{**experience.batch(rows[part]), "num_tokens": num_tokens} for part in parts]
                yield from batches if self.ptx is None else self._with_texts(batches, step)
                step += 1

    def _with_texts(self, batches: list[dict[str, Tensor]], step: int) -> list[dict[str, Tensor]]:
        """Each micro-batch with its share of the pretraining texts of optimizer step `step`."""
        texts = list(self.ptx.batches(step, self.args))
        tokens = self._total(sum((part["ptx_lengths"] - 1).sum() for part in texts).float())
        return [{**batch, **part, "ptx_tokens": tokens} for batch, part in zip(batches, texts, strict=True)]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Clipped policy loss plus `vf_coef` times clipped value loss, per token of the whole mini-batch."""
        args, mask = self.args, inputs["completion_mask"]
        learnt = {"num_tokens", "ptx_tokens", *LEARNT}
        output = model(
            **{name: value for name, value in inputs.items() if name not in learnt},
            temperature=args.temperature,
            with_entropy=args.entropy_coef > 0,
            value_detached=self.warming_up,
        )
        sums = losses(output, inputs, args.cliprange, args.cliprange_value)

        # DDP averages gradients over processes: undo it, the token count is already that of all of them.
        means = {name: total * args.world_size / inputs["num_tokens"] for name, total in sums.items()}
        loss = means["policy"] - args.entropy_coef * means.get("entropy", 0.0)
        if "ptx_logprobs" in output:
            texts = next_token_mask(inputs["ptx_lengths"], inputs["ptx_ids"].shape[1])
            means["ptx"] = -ops.masked_sum(output["ptx_logprobs"], texts) * args.world_size / inputs["ptx_tokens"]
            loss = loss + args.ptx_coef * means["ptx"]
        loss = loss * (0.0 if self.warming_up else 1.0) + args.vf_coef * means["value"]

        self.watch.look("The new log-probs of the policy", output["logprobs"], mask)
        self.watch.look("The new values", output["values"][:, :-1], mask)
        for name, value in means.items():  # micro-batches add up to a mini-batch; a log is the mean over those
            self.tracked.add(LOGGED[name], value * args.gradient_accumulation_steps)
        return (loss, output) if return_outputs else loss

    # --- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset: Dataset | None = None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """Sample the evaluation prompts with a fixed seed. -> reward, KL, length, win rate and more, prefixed."""
        prompts = self.eval_prompts
        if eval_dataset is not None:
            context = context_length(self.accelerator.unwrap_model(self.model).config)
            longest = self.args.max_completion_length
            prompts = encode_prompts(eval_dataset, self.processing_class, longest, context, "eval_dataset")
        with self.whole():
            report = self.evaluation(prompts or [], cached=eval_dataset is None)
        logs = {f"{metric_key_prefix}_{name}": value for name, value in report.items()}
        self.log(logs)
        self.tell_completions(f"{metric_key_prefix}_completions")
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs


def check_models(
    policy: PreTrainedModel | PeftModel | None,
    reward_funcs: list[RewardFunc],
    prompts: Sequence[Prompts],
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
    *,
    ref_model: str | None = None,
    value_model: str | nn.Module | None = "shared",
    peft_config: LoraConfig | None = None,
    reward_ensemble: str | None = None,
    reward_ensemble_std_coef: float | None = None,
) -> None:
    """Raise UserError where a `PPOTrainer` of these models would before its first rollout; no weight is read.

    A model that would have to be fetched from the hub is left out of the check.

    Args:
        policy: without weights (`load_policy(..., device_map="meta")`), its adapter put on; None: not on this machine.
        reward_funcs: functions, and hub ids or folders of models.
        prompts: as `encode_prompts` gives them, of training and of evaluation.
        value_model: a word of `VALUE_MODELS`, a folder, or a model without weights; None: not on this machine.
    """
    if value_model == "reward":  # counted whether they are here or not
        value_source(value_model, [func for func in reward_funcs if isinstance(func, str)])
    ensemble = (reward_ensemble, reward_ensemble_std_coef)
    rewards = Rewards.looked_at(reward_funcs, args.reward_weights, tokenizer, *ensemble)
    for rows in prompts:
        rewards.check(rows, args.max_completion_length, trainer_state=None)
    reference = None
    if ref_model is not None and is_here("a reference", ref_model):
        reference = load_policy(ref_model, device_map="meta")
    value = None if value_model is None else load_value_model(value_model, device_map="meta")
    if policy is not None and value is not None and (value != "reward" or rewards.models):
        longest = longest_row(prompts, args.max_completion_length)
        roles = {"ref_model": reference, "rewards": rewards.readers}
        with_value(policy, value, peft_config, tokenizer, longest, **roles)
