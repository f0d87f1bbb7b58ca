"""`rlhf-kit eval reward`: does a reward model rank held-out answers as people do, and what does it go by?

The measures are in `ranking.py`; docs/eval-reward.md says what each of them means.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.labelers import agreement
from rlhf_kit.data.loading import load
from rlhf_kit.data.messages import prompt_key
from rlhf_kit.errors import UserError
from rlhf_kit.eval import results
from rlhf_kit.eval.revisions import pin
from rlhf_kit.eval.reward.page import HEADLINES, length_sentence, reward_page
from rlhf_kit.eval.reward.ranking import RankedList, kendall_tau_b, measure_rankings, measure_thumbs
from rlhf_kit.eval.reward.scoring import Reader, checked_tokenizer, load_scorer, score_lists
from rlhf_kit.eval.task import NOTHING_DONE, OutputArguments, planned
from rlhf_kit.models import heads
from rlhf_kit.models.identity import model_hash
from rlhf_kit.pages.shell import REPORT
from rlhf_kit.processes import processes, quiet
from rlhf_kit.terminal import say
from rlhf_kit.terminal.console import Console
from rlhf_kit.versions import provenance

PROTOCOL = "reward-1"  # goes up when a figure of the same name would come out otherwise
KINDS = ("ranked", "pairs", "thumbs")
TASK, FILES = "reward", ("items.jsonl", REPORT, "results.json")  # the last: who finds it finds the others

Row = Mapping[str, Any]


@dataclass
class RewardArguments(OutputArguments):
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A reward model: folder or hub id. 獎勵模型", "required": True}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Held-out rankings, pairs or thumbs: file, folder, hub id or world:ranked. 測試資料",
            "required": True,
        },
    )
    split: str = field(default="test", metadata={"help": "Split of a folder, a hub dataset or the world. 資料的分割"})
    batch_size: int = field(default=16, metadata={"help": "Completions a forward. 批次大小"})
    seed: int = field(default=0, metadata={"help": "Of the bootstrap intervals. 亂數種子"})


def evaluate_reward(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Row],
    batch_size: int = 16,
    seed: int = 0,
) -> dict:
    """Measure a reward model on canonical rows of rankings, pairs or thumbs (`data.loading.load`).

    Under `accelerate launch` every process scores its share of the prompts and returns the figures of all of them.

    Args:
        batch_size: completions a forward; changes no figure.
        seed: of the bootstrap.

    Returns:
        `kind` ("ranked" or "thumbs"), `scores` (name -> number), `intervals` (name -> (low, high), 95 % over prompts),
        `n` (what was counted, and what was left out), `reliability`, `length_bins` (ranked), `ceiling` (None unless
        several labelers ranked the same answers), `items` (one a row: prompt's fingerprint, scores, ranks or label,
        lengths in tokens, tau; None is the score of a completion that is longer than the model's context).

    Raises:
        UserError: when nothing is left to measure.
    """
    rows = list(rows)
    if not rows:
        raise UserError("There are no rows to measure the reward model on.")
    items = _scored(model, tokenizer, rows, batch_size)
    config = heads.unwrapped(model).config
    counts = {
        "prompts_cut": sum(item["prompts_cut"] for item in items),
        "completions_too_long": sum(score is None for item in items for score in item["scores"]),
    }
    if "label" in rows[0]:
        return _thumbs(items, config, seed, counts)
    lists = [_ranked_list(item) for item in items]
    for item, ranked in zip(items, lists, strict=True):
        item["tau"] = kendall_tau_b(ranked.scores, ranked.ranks)
    kept = [ranked for ranked in lists if len(ranked.ranks) > 1]
    if not kept:
        raise UserError(f"No list has two completions that fit the model's context ({_told(counts)}).")
    measured = measure_rankings(kept, heads.logit_scale(config), seed)
    measured["n"] |= {"lists_left_out": len(lists) - len(kept), **counts}
    return {
        "kind": "ranked",
        **measured,
        "ceiling": _ceiling(rows, measured["scores"]["pair_accuracy"]),
        "items": items,
    }


def _scored(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], batch_size: int
) -> list[dict]:
    """One item a row, in the order of the rows; the prompts are shared out over the processes."""
    state = processes()
    keys = [prompt_key(row["prompt"]) for row in rows]
    own_keys = set(list(dict.fromkeys(keys))[state.process_index :: state.num_processes])
    reader = Reader(model, tokenizer)
    reader.check_padding((row["prompt"], _completions(row)) for row in rows)
    items, lists = [], []
    for at, (key, row) in enumerate(zip(keys, rows, strict=True)):
        if key not in own_keys:
            continue
        completions = _completions(row)
        readings = reader(row["prompt"], completions)
        items.append(
            {
                "row": at,
                "prompt": results.fingerprint(key),
                "lengths": [reading.length for reading in readings],
                "fits": [reading.fits for reading in readings],
                "prompts_cut": sum(reading.prompt_cut for reading in readings),
                **({"label": row["label"]} if "label" in row else {"ranks": list(row["ranks"])}),
            }
        )
        lists.append((row["prompt"], [text for text, read in zip(completions, readings, strict=True) if read.fits]))
    score = partial(heads.score_texts, model, tokenizer, batch_size=batch_size)
    for item, scores in zip(items, score_lists(score, lists, batch_size, state.is_main_process), strict=True):
        left = iter(scores)
        item["scores"] = [next(left) if fits else None for fits in item.pop("fits")]
    return sorted(gather_object(items), key=lambda item: item["row"])


def _completions(row: Row) -> list[str]:
    return row["completions"] if "completions" in row else [row["completion"]]


def _ranked_list(item: dict) -> RankedList:
    """What is left of a list without the completions that do not fit."""
    kept = [at for at, score in enumerate(item["scores"]) if score is not None]
    scores, ranks, lengths = ([item[name][at] for at in kept] for name in ("scores", "ranks", "lengths"))
    return RankedList(item["prompt"], scores, ranks, lengths)


def _thumbs(items: list[dict], config, seed: int, counts: dict[str, int]) -> dict:
    kept = [item for item in items if item["scores"][0] is not None]
    if not kept:
        raise UserError(f"No completion fits the model's context ({_told(counts)}).")
    # A thumbs-up is as likely as not where the raw score is 0: training on thumbs puts the border there.
    scale, zero = heads.logit_scale(config), heads.logit_zero(config)
    logits = [scale * (item["scores"][0] - zero) for item in kept]
    labels, lengths = [item["label"] for item in kept], [item["lengths"][0] for item in kept]
    measured = measure_thumbs(logits, labels, lengths, [item["prompt"] for item in kept], seed)
    measured["n"] |= counts
    return {"kind": "thumbs", **measured, "length_bins": [], "ceiling": None, "items": items}


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)


def _ceiling(rows: Sequence[Row], accuracy: float) -> dict | None:
    """What the labelers' own agreement allows, and how much of it was reached; None without several labelers."""
    if "labeler" not in rows[0]:
        return None
    agreed = agreement(rows)
    if not agreed.pairs:
        return None
    return asdict(agreed) | {"of_ceiling": None if agreed.ceiling is None else accuracy / agreed.ceiling}


# ------------------------------------------------------------------------------------------
# The command


def run(options: RewardArguments) -> None:
    """`rlhf-kit eval reward`. Raises UserError."""
    with planned(TASK, options.dry_run):
        _run(options)


def _run(options: RewardArguments) -> None:
    quiet()
    options = replace(options)
    pin(options)
    started = time.perf_counter()
    folder = None if options.output_dir is None else Path(options.output_dir)
    if folder is not None:
        results.of(folder, TASK).check("--output_dir", FILES)
    rows, kind = load(options.dataset_name, KINDS, split=options.split)
    if options.limit is not None:
        rows = rows.select(range(min(options.limit, len(rows))))
    if options.dry_run:
        checked_tokenizer(options.model_name_or_path, rows["prompt"], options.dataset_name)
        say(f"{PROTOCOL}: {len(rows)} rows ({kind}) of {options.dataset_name}, asked of {options.model_name_or_path}.")
        say(NOTHING_DONE)
        return
    model, tokenizer = load_scorer(options.model_name_or_path, rows["prompt"], options.dataset_name)
    state = processes()
    rows = list(rows)
    measured = evaluate_reward(model.to(state.device), tokenizer, rows, options.batch_size, options.seed)
    if not state.is_main_process:
        return
    items = measured.pop("items")
    record = {
        "protocol": PROTOCOL,
        "reportable": options.limit is None,
        "limit": options.limit,
        "model": options.model_name_or_path,
        "model_hash": model_hash(options.model_name_or_path),
        "data": {
            "source": options.dataset_name,
            "split": options.split,
            "kind": kind,
            "rows": len(rows),
            "fingerprint": results.fingerprint(rows),
        },
        "seed": options.seed,
        "batch_size": options.batch_size,
        "processes": state.num_processes,
        **measured,
        "logit_scale": heads.logit_scale(model.config),
        **provenance(),
        "seconds": round(time.perf_counter() - started, 3),
    }
    show(record)
    if folder is not None:
        contents = (results.json_lines(items), reward_page(record, items), _json(record))
        for name, content in zip(FILES, contents, strict=True):
            results.write(folder / name, content, TASK)
        say(f"Written 已寫入: {folder}/results.json, items.jsonl, report.html")


def _json(record: dict) -> str:
    return json.dumps(results.as_json(record), indent=2, ensure_ascii=False) + "\n"


def show(record: dict) -> None:
    """The headline figures as a table, with what was left out and what the length correlation says."""
    console = Console()
    table = Table.grid(padding=(0, 2))
    for name, (english, chinese, form) in HEADLINES[record["kind"]].items():
        interval = record["intervals"][name]
        bounds = f"[{interval[0]:{form}}, {interval[1]:{form}}]" if interval else ""
        table.add_row(f"{english} {chinese}", f"{record['scores'][name]:{form}}", Text(bounds))
    title = f"{record['model']} · {record['data']['source']} ({record['data']['split']})"
    console.print(f"{title} · {_told(record['n'])}", soft_wrap=True)
    console.print(table)
    ceiling = record["ceiling"]
    if ceiling and ceiling["of_ceiling"] is not None:
        console.print(
            f"Labelers agree on {ceiling['agreement']:.1%} of their pairs: ceiling {ceiling['ceiling']:.1%}, of which "
            f"{ceiling['of_ceiling']:.1%} is reached. 標註者一致性的上限與達成比例",
            soft_wrap=True,
        )
    console.print("\n".join(length_sentence(record)), soft_wrap=True)
    if not record["reportable"]:
        console.print("--limit was given: not a result to report. 只評了一部分，不可當作正式結果。", soft_wrap=True)
