"""What RLOO and GRPO share: TRL's trainer with the kit's prompts, rewards, positions, reference and checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from rlhf_kit import ops
from rlhf_kit.data.chat import decode_completion, encode_prompt
from rlhf_kit.data.packing import IGNORED
from rlhf_kit.data.prompts import handed_on
from rlhf_kit.errors import UserError
from rlhf_kit.methods.checks import check_logprobs
from rlhf_kit.methods.config import Refusals, refuse_options
from rlhf_kit.methods.positions import follow_mask, positions_of
from rlhf_kit.models import preflight
from rlhf_kit.models.adapters import refuse_adapted_head, trainable
from rlhf_kit.models.checkpoints import end_ids, load_config, load_policy, load_tokenizer, set_special_tokens
from rlhf_kit.models.dropout import disable_dropout
from rlhf_kit.models.forward import context_length, labelled_logits, spread, taken
from rlhf_kit.models.fused import fuse_activations
from rlhf_kit.models.roles import check_readers, reference_of, refuse_shared_weights
from rlhf_kit.models.weights import short_name, with_origin
from rlhf_kit.ppo.prompts import Prompts, encode_prompts, longest_row, prompt_order
from rlhf_kit.ppo.rewards import RewardFunc, Rewards, check_functions, read_rewards
from rlhf_kit.training.launch import usable
from rlhf_kit.training.on_trl import OnTRL


class OnlineMixin(OnTRL):
    """Stands before TRL's trainer among the bases."""

    config_class: ClassVar[type]
    refused: ClassVar[Refusals]
    conditional: ClassVar[dict[str, tuple[str, Sequence]]]

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardFunc | list[RewardFunc],
        args: TrainingArguments | None = None,
        train_dataset: Dataset | Prompts | list[dict] | None = None,
        eval_dataset: Dataset | Prompts | list[dict] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        peft_config: LoraConfig | None = None,
        *,
        ref_model: str | PreTrainedModel | None = None,
        reward_ensemble: str | None = None,
        reward_ensemble_std_coef: float | None = None,
        max_prompt_length: int | None = None,
        **options: Any,
    ):
        args = usable(args or self.config_class(f"{short_name(model)}-{self._name}"))
        self.refuse(args, 0.0 if peft_config is None else peft_config.lora_dropout, ref_model)
        model, name = with_origin("a causal language model", model)
        set_seed(args.seed)  # before adapters draw their weights
        tokenizer = processing_class or load_tokenizer(name, args.trust_remote_code)
        config = load_config(model, args.trust_remote_code) if isinstance(model, str) else model.config
        reward_funcs = read_rewards(reward_funcs, reward_ensemble, reward_ensemble_std_coef)
        how = {"max_prompt_length": max_prompt_length, "workers": args.dataset_num_proc}
        longest = tokenizer, args.max_completion_length, context_length(config)
        self.sets = [encode_prompts(train_dataset, *longest, **how)]
        if eval_dataset is not None:
            args.check_eval_batches()
            self.sets.append(encode_prompts(eval_dataset, *longest, "eval_dataset", **how))
        for prompts in self.sets:
            check_functions(reward_funcs, prompts[0])
        policy = load_policy(model, trust_remote_code=args.trust_remote_code) if isinstance(model, str) else model
        set_special_tokens(policy, tokenizer)
        refuse_shared_weights(policy, ref_model, reward_funcs)
        reference = self._reference(policy, ref_model, peft_config, tokenizer, args)
        disable_dropout(policy)
        fuse_activations(policy)
        policy = trainable(policy, peft_config)
        refuse_adapted_head(policy, self._name)
        weights = args.reward_weights, tokenizer, args.per_device_eval_batch_size
        ensemble = {"ensemble": reward_ensemble, "std_coef": reward_ensemble_std_coef}
        self.rewards = Rewards(reward_funcs, reward_processing_classes, *weights, **ensemble)
        for prompts in self.sets:
            self.rewards.check(prompts, args.max_completion_length, trainer_state=None)
        beta, args.beta = args.beta, 0.0  # TRL would load its reference anew, by the policy's name
        try:
            super().__init__(
                model=policy,
                reward_funcs=[Part(self, at) for at in range(len(self.rewards.names))],
                args=args,
                train_dataset=self._places(0),
                eval_dataset=None if eval_dataset is None else self._places(1),
                processing_class=tokenizer,
                **options,
            )
        finally:
            args.beta = beta
        self.beta, self.ref_model = beta, None if reference is None else reference.to(args.device)
        if isinstance(policy, PeftModel) and "ref" in policy.peft_config:
            policy.delete_adapter("ref")  # TRL's copy of an adapter
        self.data_collator = self._rows_at
        self.eos_token_ids = end_ids(policy, tokenizer)
        self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids
        self.rewards.to(args.device)
        follow_mask(self.model)
        self._preflight()

    @classmethod
    def refuse(cls, args: TrainingArguments, lora_dropout: float = 0.0, ref_model: object = None) -> None:
        """Raise UserError for options that contradict this trainer, all of them at once."""
        refuse_options(args, cls.refused, cls.conditional, lora_dropout)
        if ref_model is not None and not args.beta:
            raise UserError(f"{cls._name}: with beta=0 nothing reads the reference; leave it out, or give a beta.")

    def _reference(
        self,
        policy: PreTrainedModel | PeftModel,
        ref_model: str | PreTrainedModel | None,
        lora: LoraConfig | None,
        tokenizer: PreTrainedTokenizerBase,
        args: TrainingArguments,
    ) -> Reference | None:
        """None where there is no penalty, or where it is the policy with its adapters off."""
        model = reference_of(policy, ref_model, lora) if args.beta else None
        if model is None:
            return None
        if ref_model is not None:
            longest = longest_row(self.sets, args.max_completion_length)
            check_readers(tokenizer, longest, model, "shared", None, None)
        disable_dropout(model)
        fuse_activations(model)
        return Reference(model, args.temperature)

    def _preflight(self) -> None:
        """Refuse a model that computes something else in rows that are padded on the left than of each text alone."""
        texts = preflight.short_texts(self.model, (row["prompt_ids"] for row in self.sets[0][:2]))
        preflight.check_texts(self.model, texts)
        check_logprobs(self.model, texts, left=True, temperature=self.args.temperature)
        if self.ref_model is not None:
            check_logprobs(self.ref_model.policy, texts, True, self.args.temperature, head=self.ref_model)

    # -- prompts -------------------------------------------------------------------------------------------------

    def _places(self, number: int) -> Dataset:
        """What TRL's loaders hold of a set of prompts: where each stands."""
        rows = range(len(self.sets[number]))
        return Dataset.from_dict({"prompt_set": [number] * len(rows), "prompt_row": rows})

    def _rows_at(self, places: list[dict]) -> list[dict]:
        return [place | {"prompt": self.sets[place["prompt_set"]][place["prompt_row"]]["prompt"]} for place in places]

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        args = self.args
        return GroupSampler(
            len(self.sets[0]),
            self.num_generations,
            args.generation_batch_size // self.num_generations,
            self.num_iterations * args.steps_per_generation,
            args.seed,
            self.shuffle_dataset,
        )

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        """The kit's tokens: TRL's would lack what a text begins with, and split special tokens that are typed."""
        ids: dict[str, list[int]] = {}
        for prompt in prompts:
            if repr(prompt) not in ids:
                ids[repr(prompt)] = encode_prompt(self.processing_class, prompt)
        return [ids[repr(prompt)] for prompt in prompts], None, {}

    def score(self, at: int, places: list[tuple[int, int]], completion_ids: list[list[int]]) -> list[float]:
        """What reward number `at` thinks of completions to the prompts at these places: as PPO scores them."""
        rows = [self.sets[number][row] for number, row in places]
        ends = {*self.eos_token_ids}
        texts = [
            decode_completion(self.processing_class, ids[:-1] if ids[-1] in ends else ids) for ids in completion_ids
        ]
        columns = {name: [row[name] for row in rows] for name in handed_on(rows[0])}
        prompts = [row["prompt"] for row in rows]
        with torch.no_grad(), self.accelerator.autocast():
            scores = self.rewards.part(at, prompts, texts, completion_ids, columns, trainer_state=self.state)
        return scores.tolist()

    # -- checkpoints and evaluation ------------------------------------------------------------------------------

    @property
    def can_pause(self) -> bool:
        """Between two generations: inside one a run is its completions more."""
        return self.state.global_step % self.args.steps_between_pauses == 0

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.can_pause:  # no run can go on from inside
            super()._save_checkpoint(model, trial)

    def rows_of(self, dataset: Dataset | list) -> Dataset:
        """The places of prompts, which an evaluation samples for and scores. -> eval_reward, eval_kl, ..."""
        self.args.check_eval_batches()
        context = context_length(self.accelerator.unwrap_model(self.model).config)
        longest = self.processing_class, self.args.max_completion_length, context
        self.sets.append(encode_prompts(dataset, *longest, "eval_dataset"))
        return self._places(len(self.sets) - 1)


class Part:
    """One of the kit's rewards as TRL calls a reward function."""

    def __init__(self, trainer: OnlineMixin, at: int):
        self.trainer, self.at = trainer, at
        self.__name__ = trainer.rewards.names[at]

    def __call__(
        self, completion_ids: list[list[int]], prompt_set: list[int], prompt_row: list[int], **_: Any
    ) -> list[float]:
        return self.trainer.score(self.at, [*zip(prompt_set, prompt_row, strict=True)], completion_ids)


class Reference(nn.Module):
    """A frozen model that TRL asks for log-probs as it asks the policy; the kit computes them."""

    def __init__(self, model: nn.Module, temperature: float):
        super().__init__()
        self.policy, self.temperature = model.eval().requires_grad_(False), temperature

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> SimpleNamespace:
        """`log_probs` (B, T - 1) of the labelled tokens, 0 elsewhere."""
        rows = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        rows |= taken(self.policy, position_ids=positions_of(attention_mask))
        logprobs = ops.token_logprobs(*labelled_logits(self.policy, rows), self.temperature)
        return SimpleNamespace(log_probs=spread(logprobs, labels[:, 1:] != IGNORED))


class GroupSampler(Sampler):
    """Each prompt `group` times side by side, `size` prompts a generation, each of those `repeats` times.

    A pass takes up the endless sequence of prompts (`prompt_order`) where the one before it ended, by the seed and its
    number alone: a resumed run draws what the unbroken one does. TRL's draws the first order again.
    """

    def __init__(self, prompts: int, group: int, size: int, repeats: int, seed: int, shuffle: bool):
        self.prompts, self.group, self.size, self.repeats = prompts, group, size, repeats
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0
        self.generations = max(1, prompts // size)  # of a pass

    def set_epoch(self, epoch: int) -> None:
        """The pass to come."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.generations * self.size * self.repeats * self.group

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.generations
        for number in range(first, first + self.generations):
            places = range(number * self.size, (number + 1) * self.size)
            order = prompt_order(self.prompts, places, self.seed, self.shuffle)
            for _ in range(self.repeats):
                for row in order:
                    yield from [row] * self.group
