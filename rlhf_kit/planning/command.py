"""`rlhf-kit plan [STAGE] --config X.yaml`: a stage's options, read and checked as the stage does, and a plan."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PretrainedConfig
from trl import SFTConfig

from rlhf_kit.errors import UserError
from rlhf_kit.options import option
from rlhf_kit.options.declared import Source, declared_fields
from rlhf_kit.options.reading import read, read_cli
from rlhf_kit.planning.batches import Amount, Batch, amount_of, batch_of
from rlhf_kit.planning.changes import Change, changes, sets_that_fit
from rlhf_kit.planning.machines import Launch, Machine, machine, read_launch
from rlhf_kit.planning.memory import Memory, memory_of
from rlhf_kit.planning.records import Roles, half_of
from rlhf_kit.planning.roles import Base, roles_of
from rlhf_kit.planning.showing import Plan, show, show_json
from rlhf_kit.planning.work import UTILISATION, work_of
from rlhf_kit.ppo.config import RENAMED, PPOConfig
from rlhf_kit.processes import quiet
from rlhf_kit.reward.config import RewardConfig
from rlhf_kit.stages import mlm, ppo, pretrain, reward, sft
from rlhf_kit.stages.arguments import DataArguments, ModelArguments, RunArguments, Settings, parse
from rlhf_kit.stages.calibration import CalibrationArguments
from rlhf_kit.stages.launching import IN_PIECES
from rlhf_kit.stages.plan import Notes, Reading, known_config
from rlhf_kit.stages.run import complete_for_machine
from rlhf_kit.terminal import say

# What runs a stage, its own options, and more of them.
STAGES: dict[str, tuple[Any, type, type | None]] = {
    "pretrain": (pretrain.run, pretrain.PretrainConfig, None),
    "mlm": (mlm.run, mlm.MaskedConfig, None),
    "sft": (sft.run, SFTConfig, None),
    "reward": (reward.run, RewardConfig, CalibrationArguments),
    "ppo": (ppo.run, PPOConfig, ppo.PPOArguments),
}


# What says nothing of memory or time, and where the run would look at folders or the hub.
LEFT_OUT = ("resume_from_checkpoint", "overwrite_output_dir", "push_to_hub", "report_to", "bf16", "fp16", "accelerate")


@dataclass
class PlanOptions:
    stage: Literal["pretrain", "mlm", "sft", "reward", "ppo"] | None = option(
        None,
        "The stage to plan; without it, the one that --config is named after (ppo.yaml). All options of the stage are "
        "taken too. 要估算的階段",
        positional="STAGE",
        required=True,
    )
    gpu: str | None = option(
        None,
        "The device: H200, H100, A100-80, A100-40, L40S, RTX4090, RTX3090, L4, T4, or cpu. Default: this machine's "
        "CPU. 用哪種裝置",
    )
    accelerate: str | None = option(
        None, "How it is launched: an accelerate configuration, its path or its name (fsdp2, zero3). 啟動方式"
    )
    devices: int | None = option(
        None, "How many devices. Default: as many processes as --accelerate says, or 1. 裝置數量"
    )
    utilisation: float = option(
        UTILISATION, "Share of a device's products that training has; 0.3 is a plain loop's on a GPU. 使用率"
    )
    price: float | None = option(None, "What an hour of a device costs, in any currency. 每個裝置每小時的價格")
    rows: int | None = option(
        None, "Rows of the training data: they are not read then. Default: the data are read. 訓練資料的筆數"
    )
    row_tokens: float | None = option(
        None, "Mean tokens of a row's text, with --rows. Default: the longest that there may be. 每筆的平均 token 數"
    )
    json: bool = option(False, "Print the plan as JSON. 以 JSON 輸出")


def start(argv: Sequence[str]) -> int:
    """Plan a run; 0: it fits, 1: it does not. Raises UserError."""
    quiet()
    options, values, config = options_of(argv)
    plan = plan_of(options, values, config)
    if options.json:
        say(show_json(plan))
    else:
        show(plan)
    return 0 if plan.memory.fits else 1


def options_of(argv: Sequence[str]) -> tuple[PlanOptions, dict[str, Any], str | None]:
    """What is asked of the plan, the stage's options by name, and the path of the recipe. Raises UserError."""
    _, own, more = STAGES.get(argv[0] if argv else "", (None, SFTConfig, None))
    classes = [PlanOptions, ModelArguments, DataArguments, RunArguments, own, *filter(None, [more])]
    source = Source(declared_fields(classes), True)
    values = read("plan", argv, source, RENAMED if own is PPOConfig else None)
    config, _ = read_cli(argv, source.options, [])
    names = {item.name for item in dataclasses.fields(PlanOptions)}
    options = PlanOptions(**{name: value for name, value in values.items() if name in names})
    return options, {name: value for name, value in values.items() if name not in names}, config


def plan_of(options: PlanOptions, values: Mapping[str, Any], config: str | None) -> Plan:
    """The plan of a stage with these options. Raises UserError as the stage would."""
    launch, device = read_launch(options.accelerate, options.devices), machine(options.gpu)
    if options.stage == "ppo" and launch.is_deepspeed and "weights" in launch.shards:
        raise UserError(f"--accelerate {options.accelerate}: {IN_PIECES}")
    base = Base(config, bool(values.get("trust_remote_code")))
    settings = settings_of(options.stage, values, device, base)
    check_shares(settings, launch)
    reading = read_data(settings, options)
    planner = Planner(settings, reading, launch, device, base)
    memory = planner.memory(settings, launch)
    sets = [] if memory.fits else planner.remedies()
    used = options.utilisation
    work = work_of(
        settings,
        planner.roles(settings),
        planner.batch(settings, launch),
        planner.amount(options),
        launch,
        device,
        used,
    )
    name = str(values["model_name_or_path"])
    return Plan(
        stage=options.stage, model=name, starts_from=base.name(name), data=str(settings.data.dataset_name),
        machine=device, launch=launch, memory=memory, amount=planner.amount(options), work=work, price=options.price,
        utilisation=used, remedies=sets, half=half_of(settings), unchecked=list(reading.notes.unchecked.values()),
        roles=planner.roles(settings), batch=planner.batch(settings, launch),
    )  # fmt: skip


def settings_of(stage: str, values: Mapping[str, Any], device: Machine, base: Base) -> Settings:
    """The settings of a dry run that starts from a model that is there, in the precision of the device."""
    _, own, more = STAGES[stage]
    kept = {name: value for name, value in values.items() if name not in LEFT_OUT}
    kept["model_name_or_path"] = base.name(str(kept["model_name_or_path"]))
    kept |= {"dry_run": True, "use_cpu": True, "output_dir": f"{tempfile.gettempdir()}/rlhf-kit-plan-writes-nothing"}
    settings = parse(stage, own, kept, more, complete=lambda given: complete_for_machine(given, own))
    args = settings.training
    args.fp16 = bool(values.get("fp16"))
    asked = values.get("bf16")
    if args.fp16 and asked:
        raise UserError("--bf16 and --fp16 cannot be combined; give one.")
    as_kit = not (device.is_cpu or args.fp16 or settings.model.dtype == "float32") and device.has_bf16
    args.bf16 = as_kit if asked is None else bool(asked)
    return settings


def check_shares(settings: Settings, launch: Launch) -> None:
    """Raises UserError where PPO's batches cannot be divided among the processes."""
    if settings.stage == "ppo":
        settings.training.micro_batches(launch.devices)


def read_data(settings: Settings, options: PlanOptions) -> Reading:
    """The rows of the run as its dry run reads them; none where it is told how many there are."""
    if options.rows is not None:
        completion = settings.training.max_completion_length if settings.stage == "ppo" else 0
        return Reading(Notes(True), None, completion=completion)
    if options.row_tokens is not None:
        raise UserError(
            "--row_tokens is read with --rows alone: without it the data tell. Give both, or leave it out."
        )
    reader = copy.copy(settings)
    if settings.stage == "ppo":  # a plan asks no server
        reader.training = copy.copy(settings.training)
        reader.training.generation_backend = "pool"
    run, _, _ = STAGES[settings.stage]
    return run(reader)


class Planner:
    """Plans of one run and of what it would be with changes; each model is looked at once."""

    def __init__(self, settings: Settings, reading: Reading, launch: Launch, device: Machine, base: Base):
        self.settings, self.reading, self.launch, self.device, self.base = settings, reading, launch, device, base
        self._roles: dict[bool, Roles] = {}

    def config(self, settings: Settings) -> PretrainedConfig:
        return known_config(settings, self.reading.tokenizer, Notes(dry_run=False))

    def roles(self, settings: Settings) -> Roles:
        adapted = settings.model.use_peft
        if adapted not in self._roles:
            packs = self.device.is_cpu and settings.stage in ("sft", "reward", "ppo")
            found = roles_of(settings, self.config(settings), half_of(settings), packs, self.base)
            self._roles[adapted] = found
        return self._roles[adapted]

    def batch(self, settings: Settings, launch: Launch) -> Batch:
        return batch_of(settings, self.reading, self.config(settings), launch.devices, self.device)

    def amount(self, options: PlanOptions) -> Amount:
        given = (options.rows, options.row_tokens)
        return amount_of(self.settings, self.reading, self.config(self.settings), given, self.launch.devices)

    def memory(self, settings: Settings, launch: Launch) -> Memory:
        return memory_of(settings, self.roles(settings), self.batch(settings, launch), launch, self.device)

    def remedies(self) -> list[tuple[list[str], Memory]]:
        """Sets of options that make the run fit, each with its memory."""
        planned: dict[tuple[Change, ...], Memory] = {}

        def fits(chosen: tuple[Change, ...]) -> bool:
            settings, launch = self.settings, self.launch
            for change in chosen:
                settings, launch = change(settings, launch)
            try:
                check_shares(settings, launch)
            except UserError:
                return False
            planned[chosen] = self.memory(settings, launch)
            return planned[chosen].fits

        found = changes(self.settings, self.launch)
        return [([change.option for change in chosen], planned[chosen]) for chosen in sets_that_fit(found, fits)]
