"""What is compared, as a YAML declares it, checked in full before anything is read, loaded or written.

methods:
  - {method: ppo, strengths: [0.05, 0.2, 0.8], options: {config: world/ppo}}
  - {method: best_of_n, strengths: [2, 4, 16]}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_kit import world
from rlhf_kit.comparison.methods import BEST_OF_N, METHODS, RANKINGS, REWARD, SFT, Entry, Method, Stage
from rlhf_kit.comparison.records import COMMAND, LONGEST, START, TEMPERATURE, WORLD
from rlhf_kit.errors import UserError, did_you_mean
from rlhf_kit.eval.icl.tasks import tasks
from rlhf_kit.options import option
from rlhf_kit.options.bounds import bound_of, broken_rule
from rlhf_kit.options.named import NAME
from rlhf_kit.options.reading import listed

WORLD_BASE = "world:base"
KEYS = ("method", "name", "strengths", "options", "tuning_trials")
# What the table sets in every run, so that no two of its rows differ in it.
SET = ("model_name_or_path", "dataset_name", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "seed")
SET += ("reward_funcs", "reward_weights", "max_completion_length", "temperature", "dry_run", "save_strategy")
SET += ("accelerate", "push_to_hub")
TAKEN = (START, "table.md", "report.html", "comparison.json")  # names in the folder of the output
SAMPLED = ("max_completion_length", "temperature")  # of stages that sample


@dataclass
class CompareOptions:
    model_name_or_path: str | None = option(
        None,
        "The model that every method starts from, an SFT policy; with --sft, what that is made from. world:base is "
        "the kit's own. 起始模型",
        required=True,
    )
    methods: list[dict[str, Any]] = option(
        [],
        "A list, mostly of a YAML: method, its strengths, and options of its stage. 要比較的方法",
        required=True,
        whole=True,
    )
    heldout_prompts: str | None = option(
        None, "Prompts that nobody learns from: what every policy answers. 保留的提示", required=True
    )
    heldout_split: str = option("test", "Their split, of a folder, the hub or the world. 保留提示的分割")
    max_heldout_prompts: int | None = option(None, "Only the first N of them. 只用前 N 題")
    tuning_trials: int | None = option(
        None,
        "How many trials each method's options had before this table: the same number for all. 每個方法的調參次數",
        required=True,
    )
    prompts: str | None = option(None, "What ppo, rloo and grpo answer in training. 訓練用的提示")
    rankings: str | None = option(None, "What dpo, kto and a reward model made here learn from. 訓練用的排序")
    reward_model: str | None = option(None, "A reward model: folder or hub id. Or make one, by --reward. 獎勵模型")
    sft: dict[str, Any] | None = option(None, "Make the start model by this SFT, for each seed. 先做 SFT 的選項")
    reward: dict[str, Any] | None = option(None, "Options of reward models that are made here. 訓練獎勵模型的選項")
    truth: str | None = option(
        None,
        "What stands for the truth: world, a function package.module:function as of --reward_funcs, or a reward "
        "model that no method learns from. 真相的來源",
    )
    truth_rankings: str | None = option(
        None,
        "In place of --truth: people's held-out rankings, on which a reward model of their own is trained. "
        "人類排序，用來訓練裁判",
    )
    tax: list[str] = option([], "Tasks of `eval icl`, 4 shots: what else a model could do before. 對齊稅的題目")
    seeds: list[int] = option([0, 1, 2], "Every method is trained with each of them. 亂數種子")
    max_completion_length: int = option(LONGEST, "Tokens of an answer. 回答長度上限")
    temperature: float = option(TEMPERATURE, "Of all sampling: in training and of what is measured. 抽樣溫度")
    output_dir: Path | None = option(
        None,
        "Folder of the runs, the table and the page; an interrupted table resumes there. 輸出資料夾",
        required=True,
    )
    dry_run: bool = option(False, "Check everything, list the cells, load no weights, write nothing. 只檢查")


def read_entries(options: CompareOptions) -> list[Entry]:
    """The methods. Raises UserError with all faults of the options, by entry."""
    faults = list(_whole_faults(options))
    entries = []
    for number, row in enumerate(options.methods, 1):
        called = f"methods {number}" + (f" ({row['method']})" if isinstance(row, Mapping) and "method" in row else "")
        own = list(_entry_faults(row, options))
        faults += [f"{called}: {fault}" for fault in own]
        if not own:
            entries.append(_entry(row))
    names = Counter(entry.name.lower() for entry in entries)  # folders, and some disks fold case
    faults += [
        f"{count} methods have the name {name!r}; give them a `name` each"
        for name, count in names.items()
        if count > 1
    ]
    if faults:
        raise UserError(listed(COMMAND, faults))
    return entries


def _entry(row: Mapping[str, Any]) -> Entry:
    kind = str(row["method"]).replace("-", "_")
    return Entry(row.get("name", kind), METHODS[kind], tuple(row["strengths"]), row.get("options") or {})


# --- faults ---------------------------------------------------------------------------------------------------------


def _whole_faults(options: CompareOptions) -> Iterator[str]:
    """Of options that only make sense together."""
    made, named = options.reward is not None, options.reward_model is not None
    judged, heldout = options.truth_rankings is not None, options.heldout_prompts
    rules = {
        f"--seeds {options.seeds}: give at least one, none of them twice": (
            not options.seeds or len({*options.seeds}) < len(options.seeds)
        ),
        "give --truth or --truth_rankings, and not both: what stands for the truth": (options.truth is None)
        is not judged,
        "--reward makes a reward model, and --reward_model names one; leave one of them out": (
            named and made and not judged
        ),
        "give --reward_model, or --reward to make one: what every answer is scored by": not named and not made,
        "--reward makes a reward model of --rankings: give them": made and not named and options.rankings is None,
        "--truth_rankings trains a reward model on them: give its options as --reward": judged and not made,
        "--sft makes another start model for each seed, and --reward_model is one for all: give --reward": (
            options.sft is not None and named
        ),
        f"--truth world judges the world's own questions, and --heldout_prompts is {heldout!r}": (
            options.truth == WORLD and str(heldout).partition(":")[0] != WORLD
        ),
        f"--truth {options.truth!r} is the reward model that the methods follow; give another one": (
            options.truth is not None and options.truth == options.reward_model
        ),
    }
    yield from (fault for fault, is_one in rules.items() if is_one)
    for name, stage in (("sft", SFT), ("reward", REWARD)):
        if getattr(options, name) is not None:
            yield from _stage_faults(f"--{name}", stage, getattr(options, name))
    try:
        tasks(options.tax)
    except UserError as error:
        yield f"--tax: {error}"


def _entry_faults(row: Any, options: CompareOptions) -> Iterator[str]:
    if not isinstance(row, Mapping):
        yield f"is {row!r}; give `method` and `strengths`"
        return
    yield from (f"there is no {key!r}.{did_you_mean(str(key), KEYS)}" for key in row if key not in KEYS)
    kind = str(row.get("method", "")).replace("-", "_")
    if kind not in METHODS:
        yield f"method {row.get('method')!r} is none.{did_you_mean(kind, METHODS)} Methods: {', '.join(METHODS)}"
        return
    method, strengths, own = METHODS[kind], row.get("strengths"), row.get("options") or {}
    name = row.get("name", kind)
    if not isinstance(name, str) or not NAME.fullmatch(name) or name.lower() in TAKEN:
        yield f"name {name!r} cannot be a folder's here"
    if row.get("tuning_trials", options.tuning_trials) != options.tuning_trials:
        yield (
            f"tuning_trials {row['tuning_trials']}, and --tuning_trials is {options.tuning_trials}: every method gets "
            "the same number"
        )
    if not isinstance(strengths, list) or not strengths or len({*map(str, strengths)}) < len(strengths):
        yield f"strengths {strengths!r}: give a list of values of {method.strength}, none of them twice"
        return
    rule = {value: broken_rule(value, bound_of(method.strength, *_owners(method))) for value in strengths}
    yield from (f"{method.strength} {value!r} must {fault}" for value, fault in rule.items() if fault)
    if not isinstance(own, Mapping):
        yield f"options {own!r}: give names with their values"
        return
    source = RANKINGS if method.learns_from == RANKINGS else "prompts"
    if method.stage is not None and getattr(options, source) is None:
        yield f"learns from {source}: give --{source}"
    if method.stage is None:
        yield from (f"{kind} trains nothing and takes no options; leave {name} out" for name in own)
    else:
        yield from _stage_faults("options", method.stage, own, method)


def _owners(method: Method) -> Sequence[str]:
    if method.stage is None:
        return (BEST_OF_N,)
    return [kind.__name__ for record in method.stage.records if record for kind in record.__mro__]


def _stage_faults(where: str, stage: Stage, options: Mapping[str, Any], method: Method | None = None) -> Iterator[str]:
    """What the table or the stage refuses of its options."""
    names = {str(name).replace("-", "_") for name in options}
    own = {"dataset_name"} if stage is SFT else set()
    taken = sorted((names & ({*SET} | ({method.strength, "eval_dataset_name"} if method else set()))) - own)
    if taken:
        yield f"{where}: the table sets {', '.join(taken)}; leave {'it' if len(taken) == 1 else 'them'} out"
        return
    placeholders: dict[str, Any] = {"model_name_or_path": "M", "output_dir": "O"}
    placeholders |= {} if stage is SFT else {"dataset_name": "D"}
    placeholders |= {"reward_funcs": ["R"]} if method and method.is_scored else {}
    try:
        stage.settings({**options, **placeholders})
    except UserError as error:
        yield f"{where}: {error}"


def start_model(options: CompareOptions) -> str:
    """The folder or hub id that `model_name_or_path` names."""
    named = str(options.model_name_or_path)
    return str(world.BASE) if named == WORLD_BASE else named
