"""What a checkpoint of PPO holds: a plain policy, and in files of their own the value function and the state.

config.json model.safetensors (or an adapter)   the policy, loadable by AutoModelForCausalLM or peft
value.safetensors                               the value function
ppo_state.json                                  KL coefficient, moments of the scores, how long a rollout is
ema/                                            the policy's moving average, a plain model too
"""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from rlhf_kit.errors import UserError
from rlhf_kit.models.adapters import save
from rlhf_kit.models.value import PolicyAndValue
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.ema import MovingAverage
from rlhf_kit.ppo.kl import AdaptiveKL, FixedKL
from rlhf_kit.ppo.rewards import RunningStd

ROLLOUT = ("num_ppo_epochs", "rollout_batch_size", "mini_batch_size")  # what a rollout's optimizer steps follow from
VALUE_FILE, STATE_FILE, EMA_FOLDER, EMA_FILE = "value.safetensors", "ppo_state.json", "ema", "ema/average.safetensors"


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


def save_state(
    folder: Path,
    args: PPOConfig,
    controller: FixedKL,
    moments: RunningStd,
    ema: MovingAverage | None,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    state = {
        "kl_coef": controller.coef,
        "scores": vars(moments),
        "rollout": {name: getattr(args, name) for name in ROLLOUT},
    }
    (folder / STATE_FILE).write_text(json.dumps(state))
    if ema is not None:
        with ema.applied():
            save(ema.policy, folder / EMA_FOLDER)
        tokenizer.save_pretrained(folder / EMA_FOLDER)
        save_file(ema.average, folder / EMA_FILE)  # float32, and the names of the policy at work: for resuming


def check_rollout(folder: Path, args: PPOConfig) -> None:
    """A checkpoint counts optimizer steps, which are other rollouts and prompts where a rollout has more of them.

    Raises UserError for such options.
    """
    saved = json.loads((folder / STATE_FILE).read_text()).get("rollout", {})
    if any(getattr(args, name) != value for name, value in saved.items()):
        saves = [f"{name}={value}" for name, value in saved.items()]
        raise UserError(
            f"'{folder}' was saved with {', '.join(saves[:-1])} and {saves[-1]}. Resume with the same, or start anew "
            "from its model in another output_dir."
        )


def load_state(folder: Path, controller: FixedKL, moments: RunningStd, ema: MovingAverage | None) -> None:
    state = json.loads((folder / STATE_FILE).read_text())
    if isinstance(controller, AdaptiveKL):  # a fixed one is what this run was given
        controller.coef = state["kl_coef"]
    vars(moments).update(state["scores"])
    if ema is not None:
        ema.load(load_file(folder / EMA_FILE))
