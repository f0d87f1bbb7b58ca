"""The options of PPO. Names are TRL's where the meaning is TRL's; defaults name their source."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from transformers import TrainingArguments

from rlhf_kit.errors import UserError
from rlhf_kit.options import option
from rlhf_kit.options.bounds import range_faults
from rlhf_kit.training.launch import sharding_faults

BACKENDS = ("pool", "transformers", "vllm")  # of `generation.backends`, which nothing needs to read options
SERVER = ("vllm_url", "vllm_sync_dir", "vllm_timeout", "vllm_probe_bound")  # read with a vLLM server alone

# TRL 1.12 and earlier: names whose meaning is not kept, and what to write instead.
RENAMED = {
    "response_length": "max_completion_length",
    "num_mini_batches": "mini_batch_size (completions an optimizer step, over all processes)",
    "local_rollout_forward_batch_size": "per_device_eval_batch_size (completions a forward without gradients)",
    "stop_token": "nothing: a completion always stops at the end-of-text token",
    "stop_token_id": "nothing: a completion always stops at the end-of-text token",
    "sft_model_path": "model_name_or_path",
    "reward_model_path": "reward_funcs",
    "num_sample_generations": "log_completions, and eval_strategy with eval_steps",
    "whiten_rewards": "reward_scaling (by the running standard deviation), or nothing: a reward model is calibrated",
    "batch_size": "rollout_batch_size (prompts a rollout, over all processes)",
    "local_batch_size": "rollout_batch_size (prompts a rollout, over all processes)",
    "local_mini_batch_size": "mini_batch_size (completions an optimizer step, over all processes)",
    "micro_batch_size": "per_device_train_batch_size (completions a forward on a device)",
    "num_total_batches": "total_episodes (completions in all)",
    "world_size": "nothing: the launcher sets the number of processes",
    "model_adapter_name": "nothing: one adapter is trained, the run's own",
    "ref_adapter_name": "ref_model_name_or_path; without it the reference is the model with its adapter off",
    "ds3_gather_for_generation": "nothing: ZeRO-3 is refused; zero2 and fsdp2 need none",
    "steps": "total_episodes (completions in all)",
    "ppo_epochs": "num_ppo_epochs",
    "forward_batch_size": "per_device_train_batch_size (completions a forward on a device)",
    "backward_batch_size": "mini_batch_size (completions an optimizer step, over all processes)",
    "init_kl_coef": "kl_coef",
    "adap_kl_ctrl": "kl_target (adaptive when it is set)",
    "target": "kl_target",
    "horizon": "kl_horizon",
    "kl_penalty": "kl_estimator (k1 is TRL's 'kl')",
    "use_score_scaling": "reward_scaling",
    "use_score_norm": "nothing: the mean of the scores stays",
    "score_clip": "reward_clip",
    "early_stopping": "nothing: max_kl stops a run by its KL from the reference",
    "target_kl": "nothing: max_kl stops a run by its KL from the reference",
    "ratio_threshold": "nothing: the log-ratio is held to +-20 and gradients are clipped",
    "model_name": "model_name_or_path",
    "reward_model": "reward_funcs",
    "query_dataset": "dataset_name",
    "log_with": "report_to",
}

# Options of transformers' that PPO would not obey, or that would make it another algorithm.
REFUSED = {
    "data_seed": "`seed` draws the order of the prompts too; leave it out",
    "dataloader_drop_last": "a rollout continues into the next pass, so none is short; leave it out",
    "train_sampling_strategy": "shuffle_dataset says whether prompts are shuffled; leave it out",
    "auto_find_batch_size": "the batch sizes say what an optimizer step is; lower per_device_train_batch_size",
    "enable_jit_checkpoint": "it saves inside a rollout, where no run can resume; give save_steps",
    "label_smoothing_factor": "there are no labels; leave it out",
    "neftune_noise_alpha": "noise would look like a change of the policy; leave it out",
}


@dataclass
class PPOConfig(TrainingArguments):
    """How to run PPO. Batch sizes count over all processes unless the name says per device.

    A rollout of `rollout_batch_size` prompts is used `num_ppo_epochs` times, cut into mini-batches of
    `mini_batch_size` completions, each one optimizer step, forwarded `per_device_train_batch_size` at a time: by
    default all that fit in a quarter of the memory.
    Logging, saving and evaluating wait for the end of the rollout they fall in.
    """

    # Optimisation
    learning_rate: float = option(1e-5, "Learning rate of policy and shared value head (Ziegler et al. 2019, code).")
    value_learning_rate: float | None = option(None, "Learning rate of the value model; None: `learning_rate`.")
    value_warmup_rollouts: int = option(
        0, "First rollouts in which only the value function learns (PPO-max, arXiv:2307.04964)."
    )
    adam_epsilon: float = option(1e-5, "Adam's epsilon (Ziegler et al. 2019, code; transformers' default is 1e-8).")
    adam_beta2: float = option(0.95, "Adam's beta2 (InstructGPT, appendix C).")
    max_grad_norm: float = option(1.0, "Gradient clipping by global norm.")
    logging_steps: float = option(1, "Optimizer steps between logs, rounded up to rollouts.")

    # Sampling
    total_episodes: int | None = option(
        None,
        "Completions to sample in all; None: `num_train_epochs` passes over the data. `max_steps` goes before both.",
    )
    rollout_batch_size: int = option(256, "Prompts per rollout, over all processes.")
    dataset_num_proc: int | None = option(
        None, "Processes that tokenize; None: of large data one a processor, 8 at most."
    )
    max_completion_length: int = option(53, "Longest completion, in tokens.")
    temperature: float = option(1.0, "Softmax temperature, when sampling and when scoring alike.")
    generation_backend: str = option(
        "pool",
        "What samples: `pool`, the kit's own, where waiting prompts begin as others end; `transformers`, its "
        "`generate`, batch by batch, in float32 the same tokens; or `vllm`, a server.",
        choices=BACKENDS,
        short="rollout_backend",
    )
    generation_batch_size: int | None = option(
        None, "Completions sampled at once on a device, evaluation's too; None: as many as a rollout has."
    )
    vllm_url: str | None = option(None, "The vLLM server that samples, as http://localhost:8000.")
    vllm_sync_dir: str | None = option(
        None, "Folder through which it gets the policy: both see it by this path. What is written there is removed."
    )
    vllm_timeout: float = option(300.0, "Seconds that a call to it may take.")
    vllm_probe_bound: float | None = option(
        None,
        "Largest difference of its log-probs from the trainer's, in nats, after each hand-over of the policy; None: "
        "1e-4 in float32, else 0.2.",
    )
    importance_cap: float | None = option(
        None,
        "Weight each token's policy loss by min(p_trainer / p_sampler, this): truncated importance sampling, for a "
        "sampler that computes otherwise (Yao et al. 2025, fengyao.notion.site/off-policy-rl: 2); None: all count 1.",
    )

    # Rewards
    reward_weights: list[float] | None = option(None, "One weight per reward function, in order; None: 1.0 each.")
    reward_clip: float | None = option(10.0, "Scores are clipped to +- this (OpenRLHF's default); None: never.")
    reward_scaling: bool = option(
        False,
        "Divide scores by the running standard deviation of all scores so far, before `reward_clip` (Engstrom et al. "
        "2020, arXiv:2005.12729, section 3). Their mean stays.",
    )
    missing_eos_penalty: float | None = option(
        1.0,
        "Subtracted from the score of a completion that never ended, after scaling and clip (the 'EOS trick' of "
        "Huang et al. 2024, arXiv:2403.17031, as TRL has it); None: nothing.",
    )
    bootstrap_truncated: bool = option(
        False, "Continue a truncated completion with the value of its last state instead of 0."
    )
    kl_coef: float = option(0.05, "Weight of the KL penalty (Stiennon et al. 2020).")
    kl_estimator: str = option("k1", "KL in the reward: k1 (unbiased) or k3 (never negative, biased gradient).")
    kl_target: float | None = option(
        None, "Adapt `kl_coef` to hold this KL, in nats per completion (Ziegler et al.: 6); None: fixed."
    )
    kl_horizon: int = option(10000, "Completions over which the adaptive `kl_coef` reacts (Ziegler et al. 2019).")
    sharpening_coef: float = option(
        0.0,
        "Weight of each token's log-prob under the reference in its reward (Huang et al. 2024, arXiv:2412.01951): the "
        "policy moves to what the reference itself finds likely, as greedy answers are; 0.4 on the world.",
    )
    max_kl: float | None = option(None, "Stop when a rollout's KL passes this many nats per completion; None: never.")

    # The update
    num_ppo_epochs: int = option(4, "Passes over a rollout (Ziegler et al. 2019).")
    mini_batch_size: int = option(64, "Completions per optimizer step, over all processes.")
    gamma: float = option(1.0, "Discount (Ziegler et al. 2019: none).")
    lam: float = option(0.95, "GAE's lambda (Ziegler et al. 2019).")
    cliprange: float = option(0.2, "Clip range of the policy's probability ratio.")
    cliprange_value: float = option(0.2, "Clip range of the value around the old value.")
    vf_coef: float = option(0.1, "Weight of the value loss (Ziegler et al. 2019).")
    entropy_coef: float = option(0.0, "Weight of the entropy bonus, per token (Schulman et al. 2017, eq. 9).")
    ptx_coef: float = option(
        0.0,
        "Weight of next-token training on `ptx_dataset` (InstructGPT's gamma, section 3.5: 27.8): its cross entropy, "
        "a mean over all its tokens of the optimizer step, is added to PPO's loss.",
    )
    ptx_batch_size: int | None = option(
        None, "Texts of `ptx_dataset` per optimizer step, over all processes; None: `mini_batch_size`."
    )
    ptx_max_length: int | None = option(
        None, "Longest text of `ptx_dataset`, in tokens; cut there. None: 512, the context at most."
    )
    ema_decay: float | None = option(
        None,
        "Keep a moving average of the policy, saved in `ema/` beside it: the decay per optimizer step (InstructGPT, "
        "appendix C.4: 0.992 an iteration); None: none.",
    )
    whiten_advantages: bool = option(True, "Shift and scale advantages to mean 0, variance 1 over the whole rollout.")

    # Logging
    log_completions: bool = option(
        False,
        "Show some completions of each logged rollout and evaluation, and keep all in completions/*.parquet and where "
        "report_to says.",
    )
    num_completions_to_print: int = option(3, "Completions shown by `log_completions`.")

    # Machine
    per_device_train_batch_size: int | None = option(
        None, "Completions a forward on a device; None: as many of a mini-batch as fit in a quarter of the memory."
    )
    ddp_find_unused_parameters: bool | None = option(
        False, "Policy and value use every parameter in each forward: nothing to find."
    )

    # Data
    remove_unused_columns: bool = option(False, "Keep extra columns: they are passed to the reward functions.")
    shuffle_dataset: bool = option(True, "Shuffle the prompts again for each pass.")

    def __post_init__(self):
        if sharded := sharding_faults(self):
            raise UserError(f"PPO does not run under {'; nor under '.join(sharded)}.")
        if faults := self._faults():
            raise UserError("PPOConfig: " + "; ".join(faults) + ".")
        try:
            super().__post_init__()
        except (ValueError, TypeError) as error:  # its own ranges and kinds
            raise UserError(f"PPOConfig: {error}") from error

    def _faults(self) -> list[str]:
        faults = range_faults(self)
        if not faults and self.rollout_batch_size % self.mini_batch_size:
            faults.append(
                f"rollout_batch_size={self.rollout_batch_size} must be a multiple of "
                f"mini_batch_size={self.mini_batch_size}"
            )
        if self.generation_backend not in BACKENDS:
            faults.append(f"generation_backend={self.generation_backend!r} must be one of {', '.join(BACKENDS)}")
        faults += self._sampler_faults()
        if self.kl_estimator not in ("k1", "k3"):
            faults.append(f"kl_estimator={self.kl_estimator!r} must be 'k1' or 'k3'")
        weights = [] if self.reward_weights is None else self.reward_weights
        if not isinstance(weights, list | tuple) or not all(isinstance(x, int | float) for x in weights):
            faults.append(f"reward_weights={self.reward_weights!r} must be a list of numbers")
        elif not all(map(math.isfinite, weights)):
            faults.append(f"reward_weights={self.reward_weights} must be finite numbers")
        if self.kl_target is not None and self.kl_coef == 0:
            faults.append(f"kl_target={self.kl_target} scales kl_coef, and 0 stays 0: give a kl_coef above 0")
        if self.bootstrap_truncated and self.missing_eos_penalty is not None:
            faults.append(
                "bootstrap_truncated and missing_eos_penalty exclude each other; set missing_eos_penalty to null to "
                "bootstrap"
            )
        if self.gradient_accumulation_steps > 1:
            faults.append(
                "gradient_accumulation_steps follows from the batch sizes in PPO: "
                "leave it out and set mini_batch_size and per_device_train_batch_size"
            )
        changed = {item.name for item in fields(self) if getattr(self, item.name) != item.default}
        return faults + [f"{name}={getattr(self, name)}: {why}" for name, why in REFUSED.items() if name in changed]

    def _sampler_faults(self) -> list[str]:
        faults = []
        if self.importance_cap is not None and self.generation_backend == "transformers":
            faults.append(
                "importance_cap needs the sampler's log-probs, which generation_backend='transformers' has not"
            )
        if self.generation_backend != "vllm":
            defaults = {item.name: item.default for item in fields(self)}
            faults += [
                f"{name}={getattr(self, name)} is read with generation_backend='vllm' alone: leave it out"
                for name in SERVER
                if getattr(self, name) != defaults[name]
            ]
        elif not self.vllm_url or not self.vllm_sync_dir:
            faults.append(
                "generation_backend='vllm' needs vllm_url, the server, and vllm_sync_dir, a folder that both see"
            )
        elif not self.vllm_url.startswith(("http://", "https://")):
            faults.append(f"vllm_url={self.vllm_url!r} must begin with http:// or https://")
        return faults

    def micro_batches(self, processes: int) -> int:
        """Forwards per optimizer step on each process; 1 while `per_device_train_batch_size` is to be chosen."""
        if self.rollout_batch_size % processes:
            raise UserError(
                f"rollout_batch_size={self.rollout_batch_size} must be a multiple of the {processes} processes."
            )
        share, rest = divmod(self.mini_batch_size, processes)
        rows = self.per_device_train_batch_size or share
        if rest or share % rows and share > rows:
            times = f" times per_device_train_batch_size={rows}" if self.per_device_train_batch_size else ""
            raise UserError(
                f"PPOConfig: mini_batch_size={self.mini_batch_size} must be a multiple of the number of processes "
                f"({processes}){times}."
            )
        forwards = max(1, share // rows)
        texts = self.ptx_batch_size or self.mini_batch_size
        if self.ptx_coef and texts % (processes * forwards):
            raise UserError(
                f"PPOConfig: ptx_batch_size={texts} must be a multiple of {processes * forwards}, the forwards of an "
                "optimizer step over all processes: each takes the same number of texts."
            )
        return forwards

    def steps(self, prompts: int) -> int:
        """Optimizer steps of the whole run over so many prompts; a rollout is never cut."""
        if self.max_steps > 0:
            return self.max_steps
        episodes = self.total_episodes or math.ceil(self.num_train_epochs * prompts)
        return math.ceil(episodes / self.rollout_batch_size) * self.steps_per_rollout

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps a rollout."""
        return self.num_ppo_epochs * (self.rollout_batch_size // self.mini_batch_size)
