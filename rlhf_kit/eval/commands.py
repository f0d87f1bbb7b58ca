"""`rlhf-kit eval SUBCOMMAND`: measurements that can be trusted (評測). Parses; what measures is imported later."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rlhf_kit.errors import UserError
from rlhf_kit.eval import file_options
from rlhf_kit.eval import options as generators
from rlhf_kit.eval.extractive import options as extractive
from rlhf_kit.eval.options import code_option
from rlhf_kit.eval.suite import options as suite
from rlhf_kit.eval.transfer import options as transfer
from rlhf_kit.launched import is_main_process
from rlhf_kit.options.bounds import add_number
from rlhf_kit.options.declared import declared_in_source
from rlhf_kit.options.reading import build, read
from rlhf_kit.parser import Parser
from rlhf_kit.storage import write_fault
from rlhf_kit.terminal import complain, interrupts


def _reward(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="M", help="a reward model's folder or hub id 獎勵模型")
    parser.add_argument(
        "--data",
        required=True,
        metavar="D",
        help="held-out rankings, pairs or thumbs: a file, a folder, a hub id or world:ranked 測試資料",
    )
    parser.add_argument("--split", default="test", help="of a folder, a hub dataset or the world [test]")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write results.json, items.jsonl and report.html there 輸出資料夾",
    )
    add_number(parser, "--batch-size", default=16, help="completions a forward [16]")
    add_number(parser, "--limit", help="the first N rows only: a trial, not a result")
    add_number(parser, "--seed", default=0, help="of the bootstrap intervals [0]")


# name -> what it measures, in English and Chinese; its options; its module, whose `run` gets them
SUBCOMMANDS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None], str]] = {
    "reward": (
        "Does a reward model rank held-out answers as people do?",
        "獎勵模型的排序與人一致嗎？",
        _reward,
        "rlhf_kit.eval.reward.task",
    ),
    "extractive": (
        "Answers that are spans of a passage (SQuAD, XQuAD, MLQA, DRCD, CMRC), after fine-tuning or without",
        "抽取式問答，可先微調",
        extractive.add_options,
        "rlhf_kit.eval.extractive.run",
    ),
    "transfer": (
        "Which pre-training, fine-tuned on which language, reads what: the whole table of a cross-lingual transfer",
        "跨語言遷移：哪種預訓練、用哪種語言微調、能讀懂什麼",
        partial(transfer.add_options, tables=Path(__file__).parent / "transfer"),
        "rlhf_kit.eval.transfer.run",
    ),
    **generators.SUBCOMMANDS,
    "score": (
        "Score a file of predictions by the dataset's official scorer",
        "以官方算法評分",
        file_options.score,
        "rlhf_kit.eval.predictions",
    ),
    "compare": (
        "Two results on the same items: the difference, and whether it is chance",
        "比較兩個結果：差距是真的還是運氣",
        file_options.compare,
        "rlhf_kit.eval.compare",
    ),
    "suite": (
        "What each stage gained and lost: a declared list of measurements on every model",
        "各階段的得與失：一份評測清單",
        partial(suite.add_options, suite=Path(__file__).parent / "suite" / "world.yaml"),
        "rlhf_kit.eval.suite.run",
    ),
}

# name -> what it measures, in English and Chinese; the task, whose options are `module:ClassArguments`
TASKS: dict[str, tuple[str, str, str]] = {
    "lambada": ("The last word of a passage", "猜段落的最後一個詞", "rlhf_kit.eval.text.lambada:Lambada"),
    "perplexity": ("How well a model predicts a text", "困惑度", "rlhf_kit.eval.text.perplexity:Perplexity"),
    "coqa": (
        "Every turn of CoQA's dialogues, by the official scorer",
        "回答 CoQA 對話的每一輪，官方計分",
        "rlhf_kit.eval.coqa.task:CoQA",
    ),
    "squad": (
        "Questions that a passage answers or does not (SQuAD 2.0), answered in the model's own words",
        "閱讀測驗，含無法回答的問題",
        "rlhf_kit.eval.squad:Squad",
    ),
    "mc": ("Multiple choice by likelihood, as TruthfulQA's MC1 and MC2", "選擇題：真話可能嗎", "rlhf_kit.eval.mc:MC"),
}
OF_FILES = ("score", "compare")  # no model is loaded


def _task_options(command: str, argv: Sequence[str]) -> argparse.Namespace:
    """The task of a command and its record of options. Raises UserError with all problems, before torch is there."""
    reference = TASKS[command][2]
    module, _, name = reference.partition(":")
    values = read(f"eval {command}", argv, declared_in_source([f"{reference}Arguments"]))
    with interrupts.before_anything():
        task = getattr(importlib.import_module(module), name)
        importlib.import_module("rlhf_kit.eval.runner")
    record = build(f"eval {command}", {"values": task.Arguments}, values)
    return argparse.Namespace(command=command, task=task, output=values.get("output_dir"), **record)


def _declare(parser: argparse.ArgumentParser, task: str) -> None:
    """For the help alone: `reading.read` reads a task's options."""
    for option in declared_in_source([f"{task}Arguments"]).options.values():
        more = {"action": "store_true"} if option.is_switch else {"metavar": "X"}
        parser.add_argument(f"--{option.name}", help=option.help.replace("%", "%%"), **more)


def _parser() -> Parser:
    parser = Parser(prog="rlhf-kit eval", description="Measure a model. 評測模型。")
    commands = parser.add_subparsers(dest="command", required=True, metavar="SUBCOMMAND")
    for name, (english, chinese, add_options, _) in SUBCOMMANDS.items():
        description = f"{english} {chinese}"
        add_options(command := commands.add_parser(name, help=description, description=description))
        if name not in OF_FILES:
            code_option(command)
    for name, (english, chinese, task) in TASKS.items():
        text = f"{english} {chinese}"
        _declare(commands.add_parser(name, help=text, description=text), task)
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.command in TASKS:
        importlib.import_module("rlhf_kit.eval.runner").run(options.task, options.values)
        return
    with interrupts.before_anything():
        module = importlib.import_module(SUBCOMMANDS[options.command][3])
    if options.command not in OF_FILES:
        importlib.import_module("rlhf_kit.eval.revisions").pin(options)
    module.run(options)


def main(argv: Sequence[str] | None = None) -> int:
    """`rlhf-kit eval`; returns the exit status: 0, 1 a full disk, 2 a mistake of the user, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    is_task = argv[:1] and argv[0] in TASKS and not {"-h", "--help"} & {*argv}
    options = argparse.Namespace(command=argv[0]) if is_task else _parser().parse_args(argv)
    speaks = is_main_process()
    try:
        options = _task_options(argv[0], argv[1:]) if is_task else options
        _run(options)
    except UserError as error:
        if speaks:
            complain(f"rlhf-kit eval {options.command}: {error}")
        return 2
    except KeyboardInterrupt as interrupt:
        if speaks:
            message = "\nInterrupted. Nothing was kept: there was no --output. 已中斷；沒有 --output，不留結果。"
            if getattr(options, "output", None):
                message = "\nInterrupted. The same command goes on with what --output has. 已中斷；同一個指令會接續。"
            complain(message)
        return interrupts.status(interrupt)
    except Exception as error:
        fault = write_fault(error)
        if fault is None:
            raise
        if speaks:
            message = (
                f"rlhf-kit eval {options.command}: --output cannot be written: {fault}. What was measured is kept; "
            )
            complain(f"{message}make room, and the same command goes on.")
        return 1
    return 0
