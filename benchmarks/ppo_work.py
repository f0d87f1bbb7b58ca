"""One piece of PPO work, and the trainers that can do it; `ppo_vs_trl.py` runs each in a process of its own.

All get the same random GPT-2, the same random prompts, the same tiny reward model and the same batch sizes. The id
that ends a text (and pads) has a logit of about -100 in that model, so that nobody samples it: every completion has
the full length, and no trainer had to be told not to stop.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from harness import Clock
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    set_seed,
)

EPOCHS = 4
NEW_TOKENS = 48
SHORTEST, LONGEST = 16, 32  # of the prompts
LEARNING_RATE = 1e-6
FORWARD = 16  # completions a forward without gradients, where that is not the whole rollout
COMMON = dict(
    learning_rate=LEARNING_RATE, bf16=True, optim="adamw_torch_fused", gradient_checkpointing=False,
    save_strategy="no", report_to="none", disable_tqdm=True, temperature=1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    heads: int
    vocabulary: int
    rollout: int  # completions; a mini-batch is the whole rollout: one optimizer step an epoch
    micro: int

    @property
    def steps(self) -> int:
        return EPOCHS


SHAPES = {
    "small": Shape(12, 768, 12, 50_257, rollout=16, micro=4),
    "tiny": Shape(4, 256, 4, 4_000, rollout=64, micro=8),
}


# --- the same for all -------------------------------------------------------------------------------------------


def tokenizer_of(shape: Shape) -> PreTrainedTokenizerFast:
    """Words w0, w1, ... that need no space between them, so that text and ids are each other's whoever joins them."""
    words = {f"w{i}": i for i in range(shape.vocabulary - 1)} | {"</s>": shape.vocabulary - 1}
    backend = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"w\d+"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="</s>", eos_token="</s>", pad_token="</s>", padding_side="left"
    )


def config_of(shape: Shape, **more) -> GPT2Config:
    end = shape.vocabulary - 1
    size = {"n_layer": shape.layers, "n_embd": shape.width, "n_head": shape.heads}
    return GPT2Config(
        vocab_size=shape.vocabulary, bos_token_id=end, eos_token_id=end, pad_token_id=end, **{**size, **more}
    )


def policy_of(shape: Shape) -> GPT2LMHeadModel:
    """Random weights, and no way to the end token: its embedding points away from where every last state points."""
    set_seed(0)
    model = GPT2LMHeadModel(config_of(shape))
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = 10.0
        model.transformer.wte.weight[:, 0] = 0.0
        model.transformer.wte.weight[-1, 0] = -10.0
    return model


def reward_model_of(shape: Shape) -> GPT2ForSequenceClassification:
    """One layer of 64: its cost is nothing beside the policy's."""
    set_seed(1)
    return GPT2ForSequenceClassification(config_of(shape, n_layer=1, n_embd=64, n_head=1, num_labels=1))


def value_model_of(shape: Shape) -> GPT2ForSequenceClassification:
    set_seed(2)
    return GPT2ForSequenceClassification(config_of(shape, num_labels=1))


def prompts_of(shape: Shape) -> list[list[int]]:
    """Far more than any run takes: TRL 1.12 steps on every micro-batch of the last batch of a pass over its data."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (64 * shape.rollout,), generator=generator).tolist()
    return [torch.randint(0, shape.vocabulary - 1, (n,), generator=generator).tolist() for n in lengths]


def text_prompts(shape: Shape) -> Dataset:
    return Dataset.from_dict({"prompt": ["".join(f"w{i}" for i in ids) for ids in prompts_of(shape)]})


def lora(task: str):
    from peft import LoraConfig  # noqa: PLC0415

    targets = ["c_attn", "c_proj", "c_fc"]
    return LoraConfig(r=16, lora_alpha=32, target_modules=targets, fan_in_fan_out=True, task_type=task)


# --- what is measured -------------------------------------------------------------------------------------------


def synchronize() -> None:
    """Wait for what an accelerator was given to do."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


class Meter(TrainerCallback):
    """The time at which each rollout is done with, the optimizer steps until then, and the dtypes that were used."""

    def __init__(self, updates_a_rollout: int):
        self.updates_a_rollout = updates_a_rollout  # on_step_end calls
        self.updates, self.steps = 0, 0
        self.clock, self.steps_until = Clock(), []
        self.dtypes: dict[str, set[str]] = {"without gradients": set(), "with gradients": set()}
        register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, *_) -> None:
        self.steps += 1

    def on_step_end(self, args, state, control, **kwargs):
        self.updates += 1
        if self.updates % self.updates_a_rollout == 0:
            synchronize()
            self.clock.mark()
            self.steps_until.append(self.steps)
            self.handle.remove()  # the dtypes are seen in the warm-up

    def watch(self, policy) -> None:
        def hook(module, inputs, output):
            when = "with gradients" if torch.is_grad_enabled() else "without gradients"
            self.dtypes[when].add(str(output.dtype).removeprefix("torch."))

        self.handle = policy.transformer.h[0].mlp.c_fc.register_forward_hook(hook)

    def report(self, trainer) -> dict:
        return self.clock.report() | {
            "steps": [after - before for before, after in itertools.pairwise(self.steps_until)],
            "mixed_precision": str(trainer.accelerator.mixed_precision),
            "dtypes": {when: sorted(found) for when, found in self.dtypes.items()},
        }


# --- the systems ------------------------------------------------------------------------------------------------


def ppo_of(
    shape: Shape,
    rollouts: int,
    folder: Path,
    value: str = "shared",
    with_lora: bool = False,
    mini_batches: int = 1,
    **options,
) -> tuple[Trainer, Meter]:
    """Our trainer before its first step.

    Args:
        mini_batches: of a rollout.
        options: of its config, where they are not those of this work.
    """
    from rlhf_kit.ppo import PPOConfig, PPOTrainer  # noqa: PLC0415

    sizes = dict(
        total_episodes=shape.rollout * rollouts, rollout_batch_size=shape.rollout,
        mini_batch_size=shape.rollout // mini_batches, per_device_train_batch_size=shape.micro,
        per_device_eval_batch_size=FORWARD, num_ppo_epochs=EPOCHS, max_completion_length=NEW_TOKENS,
        missing_eos_penalty=None, use_cpu=True,
    )  # fmt: skip
    args = PPOConfig(str(folder / "out"), **COMMON, **sizes | options)
    meter, policy = Meter(args.steps_per_rollout), policy_of(shape)
    meter.watch(policy)
    trainer = PPOTrainer(
        policy, reward_model_of(shape), args, text_prompts(shape), processing_class=tokenizer_of(shape),
        callbacks=[meter], peft_config=lora("CAUSAL_LM") if with_lora else None, value_model=value,
        keep_base=False,  # as `rlhf-kit ppo` has it, which loads the policy itself
    )  # fmt: skip
    return trainer, meter


def ours(shape: Shape, rollouts: int, folder: Path, **options) -> dict:
    trainer, meter = ppo_of(shape, rollouts, folder, **options)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "seconds/collect" in row]
    phases = {name: [row[name] for row in logged[1:]] for name in logged[-1] if name.startswith("seconds/")}
    length = logged[-1]["completions/length"]
    return meter.report(trainer) | {"phases": phases, "completion_tokens": length}


def trl_112(
    shape: Shape, rollouts: int, folder: Path, with_lora: bool = False, all_bf16: bool = False, **options
) -> dict:
    """TRL 1.12.0's PPO. bf16 reaches it through ACCELERATE_MIXED_PRECISION alone, and then its training forward only.

    Args:
        with_lora: policy and value model alike.
        all_bf16: sampling and the forwards without gradients in bf16 as well, which its options cannot say.
        options: of its config, where they are not those of this work.
    """
    from peft import get_peft_model  # noqa: PLC0415
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: PLC0415

    sizes = dict(
        total_episodes=shape.rollout * rollouts, num_mini_batches=1, per_device_train_batch_size=shape.micro,
        gradient_accumulation_steps=shape.rollout // shape.micro, local_rollout_forward_batch_size=shape.rollout,
        num_ppo_epochs=EPOCHS, response_length=NEW_TOKENS, num_sample_generations=0, logging_steps=1,
        eval_strategy="no", use_cpu=True,
    )  # fmt: skip
    args = PPOConfig(str(folder / "out"), **COMMON, **sizes | options)
    meter, policy, value = Meter(1), policy_of(shape), value_model_of(shape)
    meter.watch(policy)
    if with_lora:
        value = get_peft_model(value, lora("SEQ_CLS"))
    prompts = Dataset.from_dict({"input_ids": prompts_of(shape)})
    trainer = PPOTrainer(
        args, tokenizer_of(shape), policy, None, reward_model_of(shape), prompts, value, callbacks=[meter],
        peft_config=lora("CAUSAL_LM") if with_lora else None,
    )  # fmt: skip
    trainable = sum(p.numel() for p in value.parameters() if p.requires_grad)
    if all_bf16:
        _everything_in_bf16(trainer)
    trainer.train()
    return meter.report(trainer) | {"value_parameters_trained": trainable}


def _everything_in_bf16(trainer) -> None:
    """Autocast around what TRL 1.12 calls outside of its prepared forward, each call a context of its own.

    One context around `train` would keep autocast's cast weights over the optimizer steps: nothing would be learnt.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    frozen = [trainer.ref_model or model.policy, model.critic_backbone, model.value_model.score]
    frozen += [trainer.reward_model.transformer, trainer.reward_model.score]
    for owner, name in [(model.policy, "generate"), *((module, "forward") for module in frozen)]:
        setattr(owner, name, torch.autocast("cpu", torch.bfloat16)(getattr(owner, name)))


def rloo(shape: Shape, rollouts: int, folder: Path, callbacks: Sequence[TrainerCallback] = (), **options) -> dict:
    """TRL's RLOO: as many completions (4 a prompt) and optimizer steps; no value function, so less to do.

    `options`: of its config, where they are not those of this work.
    """
    from trl import RLOOConfig, RLOOTrainer  # noqa: PLC0415

    parts = shape.rollout // shape.micro
    sizes = dict(
        max_steps=shape.steps * rollouts, per_device_train_batch_size=shape.micro, gradient_accumulation_steps=parts,
        steps_per_generation=parts, num_iterations=EPOCHS, num_generations=4, max_completion_length=NEW_TOKENS,
        beta=0.05, disable_dropout=True, logging_steps=shape.steps, use_cpu=True,
    )  # fmt: skip
    args = RLOOConfig(str(folder / "out"), **COMMON, **sizes | options)
    policy_of(shape).save_pretrained(folder / "policy")  # it loads its reference from where the policy came from
    policy = GPT2LMHeadModel.from_pretrained(folder / "policy")
    meter = Meter(shape.steps)
    meter.watch(policy)
    trainer = RLOOTrainer(
        policy, reward_model_of(shape), args, text_prompts(shape), processing_class=tokenizer_of(shape),
        reward_processing_classes=tokenizer_of(shape), callbacks=[meter, *callbacks],
    )  # fmt: skip
    trainer.train()
    length = trainer.state.log_history[-2]["completions/mean_length"]
    return meter.report(trainer) | {"completion_tokens": length}


SYSTEMS = {  # name on the command line -> what it is, how to run it
    "ours-shared": ("rlhf_kit PPO, shared value", ours, {}),
    "ours-shared-minis": ("rlhf_kit PPO, shared value, 4 mini-batches an epoch", ours, {"mini_batches": 4}),
    "ours-separate": ("rlhf_kit PPO, separate value", ours, {"value": "separate"}),
    "ours-lora": ("rlhf_kit PPO, LoRA, shared value", ours, {"with_lora": True}),
    "trl112": ("TRL 1.12 PPO", trl_112, {}),
    "trl112-bf16": ("TRL 1.12 PPO, patched to bf16 throughout", trl_112, {"all_bf16": True}),
    "trl112-lora": ("TRL 1.12 PPO, LoRA", trl_112, {"with_lora": True}),
    "trl112-lora-bf16": ("TRL 1.12 PPO, LoRA, patched to bf16", trl_112, {"with_lora": True, "all_bf16": True}),
    "rloo": ("TRL 1.16 RLOO (no value function)", rloo, {}),
}


@contextmanager
def silenced():
    """Standard output belongs to the parent's table."""
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)


def work(name: str, shape: Shape, rollouts: int) -> dict:
    """Run one system for a warm-up rollout and `rollouts` timed ones."""
    _, system, options = SYSTEMS[name]
    with silenced(), tempfile.TemporaryDirectory() as folder:
        return system(shape, rollouts + 1, Path(folder), **options)
