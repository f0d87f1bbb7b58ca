"""All cells of a comparison, in order: of each seed the start, the reward model, then every method and strength."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_kit.comparison.cells import MODEL, FailedCell, Maker
from rlhf_kit.comparison.config import SAMPLED, CompareOptions, start_model
from rlhf_kit.comparison.methods import PROMPTS, RANKINGS, REWARD, SFT, Entry
from rlhf_kit.comparison.records import START, WORLD, Measurement, Place
from rlhf_kit.data.loading import load, select
from rlhf_kit.data.store import rows_hash
from rlhf_kit.errors import UserError, each
from rlhf_kit.models.checkpoints import load_config, load_tokenizer
from rlhf_kit.models.forward import context_length
from rlhf_kit.models.identity import model_hash
from rlhf_kit.ppo.prompts import encode_prompts
from rlhf_kit.ppo.rewards import FUNCTION

QUIET = {"save_strategy": "no", "disable_tqdm": True}


@dataclass(frozen=True)
class Roles:
    """Of one seed: the start model, the reward model, and what stands for the truth; folders, ids or names."""

    sft: str
    rewards: str
    truth: str


class Making:
    """Makes a comparison's cells. Reads all data once, and tries each method without weights, before anything is made.

    Raises UserError.
    """

    def __init__(self, options: CompareOptions, entries: list[Entry]):
        self.options, self.entries = options, entries
        self.folder = Path(options.output_dir)
        kinds = {"prompts": ("prompts",), "rankings": ("ranked", "pairs"), "truth_rankings": ("ranked", "pairs")}
        self.data: dict[str, str] = {}  # by the option that names them, the hash of their rows
        for name, kind in kinds.items():
            if getattr(options, name) is not None:
                self.data[name] = rows_hash(load(getattr(options, name), kind)[0])
        if options.sft is not None:
            data = SFT.settings({**options.sft, "model_name_or_path": "M", "output_dir": "O"}).data
            self.data["sft"] = rows_hash(
                load(data.dataset_name, ("demonstrations",), split=data.dataset_train_split)[0]
            )
        rows = load(options.heldout_prompts, ("prompts",), split=options.heldout_split)[0]
        self.asked = min(len(rows), options.max_heldout_prompts or len(rows))
        asked = select(rows, range(self.asked))
        self.heldout = rows_hash(asked)
        start = start_model(options)
        limit = context_length(load_config(start, what="a causal language model"))
        encode_prompts(asked, load_tokenizer(start), options.max_completion_length, limit, "--heldout_prompts")
        each(self._check, [entry for entry in entries if entry.method.stage is not None])

    def _check(self, entry: Entry) -> None:
        """A dry run of a method, with what is there already in the place of what is yet to be made."""
        start = start_model(self.options)
        stage, rewards = entry.method.stage, self.options.reward_model or "rlhf_kit.world:truth_reward"
        own = self._options(entry, entry.strengths[0], self.options.seeds[0], start, rewards)
        try:
            with redirect_stdout(io.StringIO()):
                stage.start({**own, "output_dir": str(self.folder / entry.name / "dry"), "dry_run": True})
        except UserError as error:
            raise UserError(f"{entry.name}: {error}") from error

    @property
    def count(self) -> int:
        """Processes that a table from nothing takes."""
        options, each = self.options, 0
        each += (options.sft is not None) + (options.reward_model is None) + 1
        each += sum(len(entry.strengths) * (1 + (entry.method.stage is not None)) for entry in self.entries)
        return each * len(options.seeds) + (options.truth_rankings is not None)

    def each(self, maker: Maker) -> Iterator[Measurement]:
        """What could be made, one after the other."""
        truth = self.options.truth
        for seed in self.options.seeds:
            try:
                roles = self._roles(maker, seed, truth)
                truth = roles.truth
                start = self._start(maker, seed, roles)
            except FailedCell:
                self._give_up(maker, seed)
                continue
            yield start
            for entry in self.entries:
                for strength in entry.strengths:
                    try:
                        yield self._policy(maker, seed, roles, entry, strength)
                    except FailedCell:
                        continue

    def _give_up(self, maker: Maker, seed: int) -> None:
        for entry in self.entries:
            for strength in entry.strengths:
                maker.failed.setdefault(f"{entry.name}, {entry.label(strength)}, seed {seed}", "it has no start")

    # --- one cell ---------------------------------------------------------------------------------------------------

    def _roles(self, maker: Maker, seed: int, truth: str | None) -> Roles:
        options, folder = self.options, self.folder / START / f"seed-{seed}"
        sft = start_model(options)
        if options.sft is not None:
            own = {**options.sft, "model_name_or_path": sft, "seed": seed, **QUIET}
            maker.train(
                f"start: sft, seed {seed}",
                folder / "sft",
                SFT.name,
                own,
                {"model": model_hash(sft), "data": self.data["sft"]},
            )
            sft = str(folder / "sft" / MODEL)
        rewards = options.reward_model
        if rewards is None:
            rewards = self._reward(
                maker, f"start: reward model, seed {seed}", folder / "reward", sft, "rankings", seed
            )
        if truth is None:
            others = {} if options.rankings is None else {"eval_dataset_name": options.rankings}  # of its accuracy
            place = self.folder / START / "judge"
            truth = self._reward(maker, "start: judge", place, sft, "truth_rankings", seed, **others)
        return Roles(sft, rewards, truth)

    def _reward(self, maker: Maker, name: str, folder: Path, sft: str, rankings: str, seed: int, **more: str) -> str:
        own = {
            **self.options.reward,
            **more,
            "model_name_or_path": sft,
            "dataset_name": getattr(self.options, rankings),
            "seed": seed,
            **QUIET,
        }
        inputs = {"model": model_hash(sft), "rankings": self.data[rankings]}
        maker.train(name, folder, REWARD.name, own, inputs)
        return str(folder / MODEL)

    def _start(self, maker: Maker, seed: int, roles: Roles) -> Measurement:
        folder = self.folder / START / f"seed-{seed}"
        measured = self._measured(maker, f"start, seed {seed}", folder, roles, roles.sft, seed, 1, self.options.tax)
        return Measurement(Place(START, None, seed), measured, None)

    def _policy(self, maker: Maker, seed: int, roles: Roles, entry: Entry, strength: float) -> Measurement:
        name = f"{entry.name}, {entry.label(strength)}, seed {seed}"
        folder = self.folder / entry.name / entry.label(strength) / f"seed-{seed}"
        method, place = entry.method, Place(entry.name, strength, seed)
        if method.stage is None:
            return Measurement(
                place, self._measured(maker, name, folder, roles, roles.sft, seed, int(strength), []), None
            )
        inputs = {"model": model_hash(roles.sft)}
        if method.learns_from == PROMPTS:
            inputs |= {"prompts": self.data["prompts"], "rewards": _content(roles.rewards)}
        else:
            inputs |= {"rankings": self.data["rankings"]}
        own = self._options(entry, strength, seed, roles.sft, roles.rewards)
        trained = maker.train(name, folder, method.stage.name, own, inputs)
        policy = str(folder / MODEL)
        return Measurement(
            place, self._measured(maker, name, folder, roles, policy, seed, 1, self.options.tax), trained
        )

    def _options(self, entry: Entry, strength: float, seed: int, sft: str, rewards: str) -> dict[str, Any]:
        """Of the stage that trains a method."""
        method, options = entry.method, self.options
        own = {**entry.options, method.strength: strength, "model_name_or_path": sft, "seed": seed, **QUIET}
        own["eval_dataset_name"] = None  # the table measures
        if method.learns_from == RANKINGS:
            return own | {"dataset_name": options.rankings}
        own |= {"dataset_name": options.prompts, "reward_funcs": [rewards], "reward_weights": [1.0]}
        return own | {name: getattr(options, name) for name in SAMPLED}

    def _measured(
        self, maker: Maker, name: str, folder: Path, roles: Roles, policy: str, seed: int, n: int, tax: list[str]
    ) -> dict[str, Any]:
        options = self.options
        arguments = {
            "policy": policy, "sft": roles.sft, "rewards": roles.rewards, "truth": roles.truth,
            "prompts": options.heldout_prompts, "split": options.heldout_split, "most": options.max_heldout_prompts,
            "n": n, "seed": seed, "tasks": tax, **{name: getattr(options, name) for name in SAMPLED},
        }  # fmt: skip
        inputs = {"policy": model_hash(policy), "sft": model_hash(roles.sft), "rewards": _content(roles.rewards)}
        inputs |= {"truth": _content(roles.truth), "prompts": self.heldout}
        return maker.measure(name, folder, arguments, inputs)


def _content(judge: str) -> str:
    """The hash of a reward model; a function and WORLD are their names."""
    return judge if judge == WORLD or FUNCTION.fullmatch(judge) else model_hash(judge)
