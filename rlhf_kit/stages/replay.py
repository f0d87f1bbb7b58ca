"""What a PPO run that has ended says of any answer: by its run.json, its reward models and its value function.

A run's folder has `run.json` (the options that were given; all others are at their defaults), `ppo_state.json` (the KL
coefficient and the scale of the scores, as they last were) and `value.safetensors`. A checkpoint and a moving average
(`ema/`) stand in the folder of their run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from safetensors.torch import load_file

from rlhf_kit.chat.speakers import Speaker
from rlhf_kit.chat.tokens import Change, Value, answer, change
from rlhf_kit.data.messages import Message
from rlhf_kit.errors import UserError
from rlhf_kit.generation.sampling import Rollout
from rlhf_kit.inputs import read_json
from rlhf_kit.models.checkpoints import load_policy, load_reward_model
from rlhf_kit.models.dropout import disable_dropout
from rlhf_kit.models.roles import VALUE_MODELS, load_value_model
from rlhf_kit.models.value import ValueHead, build_policy_and_value
from rlhf_kit.models.weights import is_here
from rlhf_kit.ppo.config import PPOConfig
from rlhf_kit.ppo.experience import RunningStd, shaped_scores
from rlhf_kit.ppo.loop import STATE_FILE, VALUE_FILE
from rlhf_kit.ppo.rewards import FUNCTION, Rewards
from rlhf_kit.stages.arguments import ModelArguments
from rlhf_kit.stages.loading import peft_config
from rlhf_kit.stages.output import RECORD
from rlhf_kit.stages.ppo import PPOArguments

SAVED_IN_A_RUN = re.compile(r"checkpoint-\d+|ema")
WHY = {  # what is not shown, and why: English, 繁體中文
    "no run": (
        "No PPO run is recorded beside {name}: no penalty, score or value.",
        "{name} 旁邊沒有 PPO 訓練的紀錄：沒有懲罰、分數和價值。",
    ),
    "no reward model": (
        "The reward model {name} is not on this machine: no score.",
        "這台機器上沒有獎勵模型 {name}：沒有分數。",
    ),
    "function": (
        "The run was paid by the Python function {name}, which is not run here: no score.",
        "這次訓練的獎勵有 Python 函式 {name}，這裡不執行：沒有分數。",
    ),
    "unpaid": (
        "All reward_weights in {name} are 0: no score.",
        "{name} 裡的 reward_weights 全是 0：沒有分數。",
    ),
    "no scale": (
        "The run divided its scores by their standard deviation, and {name}, which has it, is not there: no score.",
        "這次訓練把分數除以標準差，但記錄它的 {name} 不在：沒有分數。",
    ),
    "no value": (
        "The run saved no value function, {name} is not there: no values.",
        "這次訓練沒有存價值函數，沒有 {name}：沒有價值。",
    ),
    "no value model": (
        "The value function was made from {name}, which is not on this machine: no values.",
        "價值函數是從 {name} 做出來的，這台機器上沒有：沒有價值。",
    ),
    "other value": (
        "The value function in {name} is of another shape than run.json tells: no values.",
        "{name} 裡的價值函數和 run.json 說的形狀不同：沒有價值。",
    ),
}


class Missing(UserError):
    """Something of a run that cannot be shown; `said`: why, in English and 繁體中文."""

    def __init__(self, why: str, name: str | Path):
        self.said = [text.format(name=name) for text in WHY[why]]
        super().__init__(" ".join(self.said))


@dataclass(frozen=True)
class Score:
    """`raw`: what the reward models `names` say, weighted; `shaped`: scaled and clipped as the run does; `no_end`:
    what an answer without an end loses. `total` is added to the reward of the last token."""

    names: list[str]
    raw: float
    shaped: float
    no_end: float

    @property
    def total(self) -> float:
        return self.shaped - self.no_end


@dataclass(frozen=True)
class Replay:
    """An answer as the run would have seen it; `missing`: why something could not be told."""

    change: Change
    score: Score | None
    kl_coef: float | None
    temperature: float
    missing: list[UserError]


class PPORun:
    """A PPO run by the folder of its policy; nothing is loaded to make one.

    Raises:
        Missing: where no PPO run is recorded there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        home = folder
        while not (home / RECORD).is_file() and SAVED_IN_A_RUN.fullmatch(home.name):
            home = home.parent
        record = read_json(home / RECORD) if (home / RECORD).is_file() else {}
        config = record.get("config") if isinstance(record, dict) and record.get("stage") == "ppo" else None
        if not isinstance(config, dict):
            raise Missing("no run", folder)
        self.home = home
        self.options = {
            each.name: each.default for kind in (PPOConfig, PPOArguments) for each in fields(kind)
        } | config
        self.lora = peft_config(ModelArguments(**_given(ModelArguments, config)))
        self.bases = self._bases()

    @cached_property
    def state(self) -> dict[str, Any]:
        """Of the checkpoint or, beside a moving average, of the folder that it stands in; {} where there is none."""
        folder = self.folder.parent if self.folder.name == "ema" else self.folder
        return read_json(folder / STATE_FILE) if (folder / STATE_FILE).is_file() else {}

    @property
    def kl_coef(self) -> float:
        """As it last was: an adaptive one has moved."""
        return self.state.get("kl_coef", self.options["kl_coef"])

    # --- rewards ----------------------------------------------------------------------------------------------------

    def rewards(self, tokenizer) -> Rewards:
        """The reward models that the run was paid by, loaded. Raises Missing."""
        names, ensemble = self._reward_names(), self.options["reward_ensemble"]
        models = [name for name in names if not FUNCTION.fullmatch(name)]
        if ensemble:  # one reward, in the place of its first model
            names = [name for name in names if name not in models[1:]]
        pairs = zip(names, self.options["reward_weights"] or [1.0] * len(names), strict=True)
        paid = [(name, weight) for name, weight in pairs if weight]  # the others were only logged
        for name, _ in paid:
            if FUNCTION.fullmatch(name):
                raise Missing("function", name)
        if not paid:
            raise Missing("unpaid", self.home / RECORD)
        names, weights = zip(*paid, strict=True)
        places = [self._located(name, "no reward model") for name in (models if ensemble else names)]
        std_coef = self.options["reward_ensemble_std_coef"] if ensemble == "mean-std" else None
        return Rewards(places, None, list(weights), tokenizer, batch_size=1, ensemble=ensemble, std_coef=std_coef)

    def _reward_names(self) -> list[str]:
        names = self.options["reward_funcs"]
        return [names] if isinstance(names, str) else list(names or [])

    def score(self, rewards: Rewards, tokenizer, prompt: str | Sequence[Message], row: Rollout) -> Score:
        """Of one answer, as the trainer has it. Raises Missing."""
        options, scale = self.options, RunningStd()
        if options["reward_scaling"]:
            if "scores" not in self.state:
                raise Missing("no scale", self.folder / STATE_FILE)
            vars(scale).update(self.state["scores"])
        raw, _ = rewards([prompt], row.texts(tokenizer), row.completions(), {})
        shape = {"std": scale.std, "clip": options["reward_clip"]}
        shaped = shaped_scores(raw, row.terminated, **shape, missing_eos_penalty=None)
        total = shaped_scores(raw, row.terminated, **shape, missing_eos_penalty=options["missing_eos_penalty"])
        return Score(rewards.names, raw.item(), shaped.item(), (shaped - total).item())

    # --- the value function -----------------------------------------------------------------------------------------

    def value(self) -> Value:
        """The value function that was saved beside the policy. Raises Missing."""
        path = self.folder / VALUE_FILE
        if not path.is_file():
            raise Missing("no value", path)
        weights = load_file(path)
        if all(name.startswith("value_head.") for name in weights):
            head = ValueHead(weights["value_head.weight"].shape[1])
            head.load_state_dict({name.partition(".")[2]: weight for name, weight in weights.items()})
            return Value(None, head)
        module = build_policy_and_value(load_policy(self.folder), *self._value_source(), self.lora)
        try:
            keys = module.load_state_dict(weights, strict=False)
        except RuntimeError as error:  # of a size
            raise Missing("other value", path) from error
        if keys.unexpected_keys or any(name.startswith("value_") for name in keys.missing_keys):
            raise Missing("other value", path)
        trunk = module.value_trunk.eval().requires_grad_(False)
        disable_dropout(trunk)
        return Value(trunk, module.value_head)

    def _value_source(self) -> tuple:
        """For `build_policy_and_value`: the word or model, and the reward model that it may name."""
        source = self.options["value_model"]
        if source == "reward":
            (name,) = [name for name in self._reward_names() if not FUNCTION.fullmatch(name)]
            return source, load_reward_model(self._located(name, "no value model"))
        if source in VALUE_MODELS:
            return source, None
        return load_value_model(self._located(source, "no value model")), None

    # --- names ------------------------------------------------------------------------------------------------------

    def _bases(self) -> list[Path]:
        """What a relative name may begin from: where the run was started, as its `output_dir` tells, and here."""
        output = Path(str(self.options.get("output_dir", "")))
        home = self.home.resolve()
        begun = home.parents[len(output.parts) - 1 : len(output.parts)] if output.parts else ()
        return [base for base in begun if base / output == home] + [Path()]

    def _located(self, name: str, why: str) -> str:
        """A model's folder. Raises Missing where it, or what an adapter stands on, is not on this machine."""
        for base in self.bases:
            if is_here("a model", base / name):
                return str(base / name)
        raise Missing(why, name)


class Replays:
    """Answers as PPO runs would have seen them. Reward models and value functions are loaded when they are first asked
    for, and kept: those of the last `most` runs."""

    def __init__(self, most: int = 4):
        self.most = most
        self._kept: dict[tuple[str, Path], Any] = {}
        self._lock = Lock()  # a model that scores is of one thread

    def __call__(
        self,
        folder: Path,
        policy: Speaker,
        reference: Speaker,
        prompt: str | Sequence[Message],
        completion: str | Sequence[int],
        ended: bool = True,
    ) -> Replay:
        """
        Args:
            folder: of the policy. prompt, completion: as for `change`. ended: of a text, whether it ends.

        Raises:
            UserError: as `change` and the rewards do.
        """
        row = answer(policy, prompt, completion, ended)
        own = row.completions()[0]
        try:
            run = PPORun(folder)
        except Missing as missing:
            return Replay(change(policy, reference, prompt, own), None, None, 1.0, [missing])
        temperature = float(run.options["temperature"])
        missing: list[UserError] = []
        score = value = None
        with self._lock:
            try:
                rewards = self._once("rewards", folder, lambda: run.rewards(policy.tokenizer))
                score = run.score(rewards, policy.tokenizer, prompt, row)
            except UserError as fault:
                missing.append(fault)
            try:
                value = self._once("value", folder, run.value)
            except UserError as fault:
                missing.append(fault)
        charged = {name: run.options[name] for name in ("kl_estimator", "sharpening_coef")}
        charged |= {"kl_coef": run.kl_coef, "temperature": temperature}
        total = 0.0 if score is None else score.total
        changed = change(policy, reference, prompt, own, **charged, score=total, value=value)
        return Replay(changed, score, run.kl_coef, temperature, missing)

    def _once(self, what: str, folder: Path, load: Callable[[], Any]) -> Any:
        key = (what, folder)
        value = self._kept.pop(key) if key in self._kept else load()
        while len(self._kept) >= 2 * self.most:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = value
        return value


def _given(kind: type, config: dict[str, Any]) -> dict[str, Any]:
    return {each.name: config[each.name] for each in fields(kind) if each.name in config}
