"""Scores of the completions in rows of any form; what `rlhf-kit score` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rlhf_kit.data import shapes
from rlhf_kit.data.faults import describe, is_list
from rlhf_kit.data.files import Source
from rlhf_kit.data.formats import Context, columns_fault, report, validate
from rlhf_kit.data.messages import OPENING, completion_text, opening_faults, shared_prompt, with_opening
from rlhf_kit.data.sources import read
from rlhf_kit.data.unread import lost_from_prompt
from rlhf_kit.errors import UserError
from rlhf_kit.eval.reward.scoring import Prompt, Reader, load_scorer, score_lists
from rlhf_kit.models.ensemble import Ensemble
from rlhf_kit.models.heads import score_texts
from rlhf_kit.models.revisions import pin
from rlhf_kit.options import option
from rlhf_kit.processes import processes
from rlhf_kit.storage import Folder, json_lines
from rlhf_kit.terminal import complain, say

KINDS = ("ranked", "pairs", "thumbs", "demonstrations")
# What is scored in a row: the first of these that all are columns of the source.
FORMS = (("completions",), ("chosen", "rejected"), ("completion",), ("messages",))
SCORE = "score"  # whose files `--output` may replace
SINGLE = ("completion", "messages")  # one score a row; else a list of them


@dataclass
class ScoreOptions:
    model_name_or_path: list[str] = option(
        [], "Reward models: folders or hub ids; several make an ensemble. 獎勵模型", required=True, whole=True
    )
    dataset_name: str | None = option(
        None,
        "prompt with completions, chosen and rejected, or completion: a file, a folder, a hub id, world:ranked. 資料",
        required=True,
    )
    split: str = option("train", "Split of a folder, a hub dataset or the world.")
    output_file: Path | None = option(
        None,
        "JSONL: the rows with score (or scores: a list, or chosen and rejected). Default: standard output. 輸出檔案",
    )
    batch_size: int = option(16, "Completions per forward pass.")
    ensemble: Literal["mean", "min", "mean-std"] | None = option(
        None, "How to combine the scores of several models. Default: mean. 多個模型如何合併"
    )
    std_coef: float | None = option(None, "For mean-std: how many standard deviations to subtract. Default: 1.0.")
    trust_remote_code: bool = option(False, "Run code that comes with a hub model. 執行模型自帶的程式碼")


Row = Mapping[str, Any]
List = tuple[Prompt, list[str]]


def form_of(found: Source) -> tuple[str, ...]:
    """The columns that hold completions. Raises UserError where there are none."""
    names = list(dict.fromkeys(name for row in found.rows if isinstance(row, Mapping) for name in row))
    form = next((form for form in FORMS if set(form) <= set(names)), ())
    if not form or ("prompt" not in names and form[0] in ("completions", "completion")):
        fault = columns_fault(names, KINDS) if found.rows else "there are no rows; at least one is needed"
        faults = [(0, fault), *found.context.faults]
        raise report(found.name, faults, len(found.rows) + len(found.context.faults), found.context.unit)
    return form


def lists_of(found: Source, form: Sequence[str]) -> list[List]:
    """(prompt, completions) of each row. Raises UserError with all faults: what is scored need not be comparable."""
    lists, checked, numbers = [], [], []
    names = dict.fromkeys(name for row in found.rows if isinstance(row, Mapping) for name in row)
    lost = lost_from_prompt(found.rows, [name for name in names if name not in OPENING])
    faults = [*found.context.faults, *((0, told) for told in lost)]
    for number, row in zip(found.context.numbers_of(found.rows), found.rows, strict=True):
        if isinstance(row, Mapping):
            wrong = list(opening_faults(row))
            faults += [(number, fault) for fault in wrong]
            row = row if wrong else with_opening(row)
        prompt, completions = _parts(row, form) if isinstance(row, Mapping) else (None, [row])
        if form == ("completions",) and isinstance(row, Mapping) and not (is_list(completions) and completions):
            what = "an empty list" if is_list(completions) else describe(completions)
            faults.append((number, f"`completions` is {what}; give a list of at least one"))
            completions = []
        lists.append((prompt, completions))
        checked += [row if prompt is None else {"prompt": prompt, "completion": each} for each in completions]
        numbers += [number] * len(completions)
    validate(checked, "demonstrations", found.name, Context(found.context.unit, numbers, faults))
    return [(prompt, [completion_text(each) for each in completions]) for prompt, completions in lists]


def _parts(row: Row, form: Sequence[str]) -> tuple[Any, Any]:
    """Prompt and completions as they stand in the row; None is a prompt that it does not give."""
    values, prompt = [row.get(name) for name in form], row.get("prompt")
    if form == ("completions",):
        return prompt, values[0]
    if form == ("messages",):
        turns = values[0]
        return (turns[:-1], [turns[-1:]]) if is_list(turns) and len(turns) > 1 else (None, [turns])
    if form == ("chosen", "rejected") and prompt is None:  # whole dialogues, as in `data.loading`
        prompt = shared_prompt(*values)
    return prompt, values


def check_lengths(found: Source, lists: Sequence[List], readers: Mapping[str, Reader]) -> int:
    """How many prompts are cut by any model. Raises UserError with the rows that hold too long completions."""
    faults, cut = [], 0
    for number, (prompt, completions) in zip(found.context.numbers_of(found.rows), lists, strict=True):
        readings = {name: reader(prompt, completions) for name, reader in readers.items()}
        cut += any(reading.prompt_cut for each in readings.values() for reading in each)
        faults += [
            (number, f"a completion {readers[name].room.lacks(reading.length)} ({name}); shorten it or remove the row")
            for name, each in readings.items()
            for reading in each
            if not reading.fits
        ]
    if faults:
        raise report(found.name, faults, len(lists), found.context.unit)
    return cut


def with_scores(rows: Sequence[Row], form: Sequence[str], scores: Sequence[Sequence[float]]) -> Iterator[dict]:
    """The rows with `score` (of one completion) or `scores` (of a list, or of chosen and rejected) put last."""
    name = "score" if form[0] in SINGLE else "scores"
    for row, values in zip(rows, scores, strict=True):
        kept = {column: value for column, value in row.items() if column != name}
        yield kept | {name: values[0] if name == "score" else list(values)}


def run(options: ScoreOptions) -> None:
    """`rlhf-kit score` with its options. Raises UserError before anything is written."""
    pin(options)
    if len(options.model_name_or_path) == 1 and options.ensemble is not None:
        raise UserError(
            f"--ensemble {options.ensemble} combines several models, and --model_name_or_path names one. Name more."
        )
    if options.std_coef is not None and options.ensemble != "mean-std":
        raise UserError("--std_coef applies to --ensemble mean-std only.")
    if len(set(options.model_name_or_path)) < len(options.model_name_or_path):
        raise UserError(
            f"--model_name_or_path names a model twice ({', '.join(options.model_name_or_path)}); name each once."
        )
    if options.output_file is not None:
        output = options.output_file
        Folder(output.parent, SCORE).check_file(output.name, "--output_file", options.dataset_name, "--dataset_name")
    source = read(options.dataset_name, KINDS, options.split, seed=0)
    ours = Source(source.name, shapes.read(source.rows, KINDS)[0], source.context)
    form = form_of(ours)
    lists = lists_of(ours, form)
    loaded = {
        name: load_scorer(name, [prompt for prompt, _ in lists], source.name) for name in options.model_name_or_path
    }
    readers = {name: Reader(model.config, tokenizer) for name, (model, tokenizer) in loaded.items()}
    cut = check_lengths(source, lists, readers)
    for name, reader in readers.items():
        reader.check_padding(loaded[name][0], lists)
    if cut:
        message = f"{cut} prompts do not fit the model together with their completions, and lose their beginning."
        complain(f"rlhf-kit score: {message}")
    scores = score_lists(_scorer(options, list(loaded.values())), lists, options.batch_size)
    text = json_lines(with_scores(source.rows, form, scores))
    if options.output_file is None:
        say(text.removesuffix("\n"))
    else:
        try:
            Folder(options.output_file.parent, SCORE).write(options.output_file.name, text)
        except OSError as error:
            raise UserError(
                f"--output_file {str(options.output_file)!r} cannot be written: {error.strerror}."
            ) from error


def _scorer(options: ScoreOptions, loaded: Sequence[tuple]):
    """(prompts, completions) -> Tensor (N,), of the one model or of all together."""
    device = processes().device
    models, tokenizers = [model.to(device) for model, _ in loaded], [tokenizer for _, tokenizer in loaded]
    if len(models) == 1:
        return partial(score_texts, models[0], tokenizers[0], batch_size=options.batch_size)
    coefficient = 1.0 if options.std_coef is None else options.std_coef
    return Ensemble(models, tokenizers, options.ensemble or "mean", coefficient, options.batch_size)
