"""`rlhf-kit generate`: a model's answers to prompts, printed, or kept row by row in a file and gone on with.

Each answer is drawn by a seed of its own, made from `--seed`, the number of its row and its own number there; so it
depends neither on the batch it is sampled in nor on where a run was killed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_kit.data.chat import decode_behind
from rlhf_kit.data.columns import exact_rows
from rlhf_kit.data.loading import checked, load
from rlhf_kit.data.messages import OPENING, OPENINGS, as_messages
from rlhf_kit.errors import UserError, each
from rlhf_kit.generation.generators import check_generators, encode_prompts, load_generator
from rlhf_kit.generation.reading import check_sampling
from rlhf_kit.generation.sampling import Rollout, sample
from rlhf_kit.hashes import text_hash
from rlhf_kit.inputs import read_json
from rlhf_kit.models.checkpoints import end_ids
from rlhf_kit.models.identity import model_hash
from rlhf_kit.models.revisions import pin
from rlhf_kit.options import option
from rlhf_kit.processes import processes, quiet
from rlhf_kit.progress import Progress
from rlhf_kit.storage import Folder, changes, json_lines, keep_lines, listed, whole_lines
from rlhf_kit.terminal import complain, say
from rlhf_kit.versions import provenance

try:
    import fcntl
except ImportError:  # Windows, where nobody tells two apart that write into one file
    fcntl = None

VERSION = 1  # goes up when the same settings give other answers
AHEAD = 4  # batches that are sampled in one go: where an answer ends, the next begins
PART, SETTINGS = ".part", ".settings.json"  # what the names of a file of answers and of its settings end in
ANSWER = ("completion", "finish_reason", "model", "seed")  # columns that a row gets


@dataclass
class GenerateOptions:
    model_name_or_path: str | None = option(None, "A folder or hub id. 模型", positional="MODEL", required=True)
    prompt: list[str] = option([], "Texts to answer, or to continue. 提示", group="prompts", whole=True)
    dataset_name: str | None = option(
        None, "Prompts: file, folder, hub id or world:prompts. 提示的資料", group="prompts"
    )
    output_file: Path | None = option(
        None,
        "JSONL: the rows with completion and finish_reason (stop or length). Default: standard output. 輸出檔案",
    )
    n: int = option(1, "Answers a prompt. 每個提示的回答數")
    max_completion_length: int = option(128, "Tokens of an answer. 回答的長度上限")
    temperature: float = option(1.0, "Of sampling; 0 takes the likeliest token each time. 取樣溫度")
    top_k: int | None = option(None, "Sample from the K likeliest tokens. 只從最可能的 K 個 token 取樣")
    top_p: float | None = option(
        None,
        "Sample from the likeliest tokens that together reach this probability. 只從累積機率達 P 的最可能 token 取樣",
    )
    seed: int = option(0, "Of the answers. 亂數種子")
    system_prompt: str | None = option(None, "A system turn before every prompt. 系統提示")
    split: str = option("train", "Split of a folder, a hub dataset or the world. 資料的分割")
    limit: int | None = option(None, "The first N prompts. 只用前 N 個提示")
    batch_size: int = option(32, "Answers sampled at once. 批次大小")
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "Type of the weights. 數值精度")
    trust_remote_code: bool = option(False, "Run code that comes with a hub model. 執行模型自帶的程式碼")
    dry_run: bool = option(False, "Check everything, show the plan, load no weights, write nothing. 只檢查")

    @property
    def source(self) -> str:
        """What messages call the prompts."""
        return self.dataset_name or "--prompt"


def run(options: GenerateOptions) -> None:
    """`rlhf-kit generate`. Raises UserError before a weight is loaded where that can be known."""
    quiet()
    pin(options)
    _, _, rows, reader = each(lambda part: part(options), (check, check_output, rows_of, reader_of))
    prompts = [row["prompt"] for row in rows]
    ids = encode_prompts(*reader, prompts, options.max_completion_length, options.source)
    total = len(rows) * options.n
    file = None if options.output_file is None else AnswerFile(options.output_file, settings_of(options, rows), total)
    if file is not None:
        file.refuse_others()
    if options.dry_run:
        say(
            f"{total} answers to {len(rows)} prompts by {options.model_name_or_path}, the longest prompt of "
            f"{max(map(len, ids))} tokens, {file or 'printed'}.\n"
            "Dry run: no weights were loaded, nothing was written. 只檢查。"
        )
    elif file is None:
        print_answers(rows, ids, reader[1], options)
    else:
        with file.adding(AHEAD * options.batch_size) as (kept, add):
            for some in lines_of(rows, ids, reader[1], options, kept):
                add(some)
        there = f", {kept} of them were there" if kept else ""
        say(f"{file.path}: {total} answers to {len(rows)} prompts{there}.")


# --- before anything is loaded --------------------------------------------------------------------------------------


def check(options: GenerateOptions) -> None:
    """Raises UserError with all faults of the options."""
    faults = []
    if options.n > 1 and not options.temperature:
        faults.append(f"--n is {options.n}, and at --temperature 0 all answers to a prompt are the same")
    if processes().num_processes > 1:
        faults.append("start it as one process: two would answer the same prompts")
    if faults:
        raise UserError(f"{'; '.join(faults)}.")


def check_output(options: GenerateOptions) -> None:
    """Raises UserError where --output_file cannot be written, or would replace what is not ours."""
    path = options.output_file
    if path is not None:
        home = Folder(path.parent, "generate")
        home.check_file(path.name, "--output_file", options.dataset_name or "", "--dataset_name")
        home.refuse_foreign([path.name + PART, path.name + SETTINGS])


def rows_of(options: GenerateOptions) -> list[dict[str, Any]]:
    """The rows to answer: `prompt` is all that the model is asked, the other columns are as they were. Raises
    UserError."""
    if options.prompt:
        rows, _, _ = checked([{"prompt": text} for text in options.prompt], ("prompts",), options.source)
    else:
        rows = exact_rows(load(options.dataset_name, ("prompts",), options.split)[0])
    rows = rows[: options.limit]
    replaced = [f"`{name}`" for name in rows[0] if name in ANSWER]
    if replaced:
        complain(
            f"{options.dataset_name}: not handed on, as columns of the answers have these names: "
            f"{', '.join(replaced)}; rename them to keep them."
        )
    hidden = (*OPENING, *ANSWER)  # what is of the opening stands in the prompt
    rows = [{name: value for name, value in row.items() if name not in hidden} for row in rows]
    if options.system_prompt is None:
        return rows
    opened = [str(number) for number, row in enumerate(rows, start=1) if _is_opened(row["prompt"])]
    if opened:
        raise UserError(
            f"{options.source}: --system_prompt would be a second system text in {len(opened)} rows (row "
            f"{listed(opened)}); leave it out, or remove theirs."
        )
    system = {"role": "system", "content": options.system_prompt}
    return [{**row, "prompt": [system, *as_messages(row["prompt"])]} for row in rows]


def _is_opened(prompt: Any) -> bool:
    return not isinstance(prompt, str) and any(turn["role"] in OPENINGS for turn in prompt)


def reader_of(options: GenerateOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model without its weights, and its tokenizer. Raises UserError."""
    return check_generators([options.model_name_or_path])[0]


def settings_of(options: GenerateOptions, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All that decides what the file says: neither the batch size nor the data's name does."""
    names = "model_name_or_path n max_completion_length temperature top_k top_p seed system_prompt limit dtype"
    return {
        **{name: getattr(options, name) for name in names.split()},
        "model_hash": model_hash(options.model_name_or_path),
        "data_hash": text_hash(json_lines(rows)),
        "version": VERSION,
    }


# --- answers --------------------------------------------------------------------------------------------------------


def seed_of(seed: int, row: int, answer: int) -> int:
    """Of one answer to the prompt of one row, both counted from 0."""
    return int(text_hash(f"{seed} {row} {answer}"), 16)


def lines_of(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    options: GenerateOptions,
    start: int = 0,
    shown: bool = True,
) -> Iterator[list[dict[str, Any]]]:
    """The lines of the output from number `start` on, `AHEAD` batches at a time; the model is loaded for the first."""
    total, size = len(rows) * options.n, AHEAD * options.batch_size
    if start == total:
        return
    model, _ = load_generator(options.model_name_or_path, options.dtype, processes().device)
    compact = check_sampling(model, list(prompts))
    with Progress(total, "answers", shown, done=start) as progress:
        for first in range(start, total, size):
            places = [divmod(number, options.n) for number in range(first, min(first + size, total))]
            asked = [prompts[row] for row, _ in places]
            rollout = sample(
                model,
                asked,
                eos_ids=end_ids(model, tokenizer),
                pad_id=tokenizer.pad_token_id,
                max_completion_length=options.max_completion_length,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                seeds=[seed_of(options.seed, *place) for place in places],
                batch_size=options.batch_size,
                compact=compact,
            )
            ends = ["stop" if ended else "length" for ended in rollout.terminated.tolist()]
            answers = zip(texts_of(rollout, asked, tokenizer), ends, strict=True)
            yield [
                {**rows[row], **dict(zip(ANSWER, (*answer, options.model_name_or_path, options.seed), strict=True))}
                for (row, _), answer in zip(places, answers, strict=True)
            ]
            progress.add(len(places))


def texts_of(rollout: Rollout, prompts: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Answers in turns without white space around them; what continues a text, letter by letter."""
    if tokenizer.chat_template:
        return rollout.texts(tokenizer)
    answers = zip(prompts, rollout.completions(), rollout.terminated.tolist(), strict=True)
    return [decode_behind(tokenizer, prompt, ids[: len(ids) - ended]) for prompt, ids, ended in answers]


def print_answers(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    options: GenerateOptions,
) -> None:
    """On standard output: the texts alone of --prompt, JSON lines of a data set."""
    for some in lines_of(rows, prompts, tokenizer, options, shown=not sys.stdout.isatty()):
        texts = "\n".join(line["completion"] for line in some)
        say(texts if options.prompt else json_lines(some).removesuffix("\n"))


# --- the file -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerFile:
    """`path` with all `total` answers; until the last is there they are in PATH.part. PATH.settings.json says how they
    are made."""

    path: Path
    settings: Mapping[str, Any]
    total: int

    def __str__(self) -> str:
        there = self.total if self.path.exists() else whole_lines(self.part)
        return f"into {self.path}, which has {there} of them"

    @property
    def home(self) -> Folder:
        return Folder(self.path.parent, "generate")

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + PART)

    @property
    def record(self) -> Path:
        return self.path.with_name(self.path.name + SETTINGS)

    def refuse_others(self) -> None:
        """Raises UserError where there are answers that other settings made."""
        if self.path.exists() or whole_lines(self.part):
            was = read_json(self.record)["settings"] if self.record.exists() else {}
            other = changes(was, self.settings)
            if other:
                raise UserError(
                    f"--output_file {str(self.path)!r} holds answers made with other settings ({other}); give another "
                    f"file, or remove it and {self.part.name!r} to answer anew."
                )

    @contextmanager
    def adding(self, size: int) -> Iterator[tuple[int, Callable[[list], None]]]:
        """(how many answers are there, what adds some more); the file is whole after the last. Of answers that came
        `size` at a time all are kept, or none. Raises UserError, also where another process adds to them."""
        if self.path.exists():
            self.home.remove(self.part.name)  # a kill came before this did
            yield self.total, lambda rows: None
            return
        self.home.claim(self.part.name)
        with self.part.open("ab") as file:
            self._hold(file)
            self.refuse_others()
            lines = whole_lines(self.part)
            kept = lines if lines == self.total else lines - lines % size
            keep_lines(self.part, kept)
            if not kept:
                about = {"settings": self.settings, **provenance()}
                self.home.write(self.record.name, json.dumps(about, indent=2, ensure_ascii=False) + "\n")

            def add(rows: list) -> None:
                file.write(json_lines(rows).encode())
                file.flush()

            yield kept, add
            if not self.path.exists():  # another process was just done with it
                self.home.write(self.path.name, self.part.read_bytes())
        self.home.remove(self.part.name)

    def _hold(self, file: BinaryIO) -> None:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"--output_file {str(self.path)!r} is being written by another process. Wait for it, or give another."
            ) from error
