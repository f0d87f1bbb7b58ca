"""`rlhf-kit eval SUBCOMMAND`: measurements that can be trusted (評測). Parses; what measures is imported later."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rlhf_kit.errors import UserError
from rlhf_kit.eval import file_options
from rlhf_kit.eval import options as generators
from rlhf_kit.eval.coqa import options as coqa
from rlhf_kit.eval.extractive import options as extractive
from rlhf_kit.eval.options import code_option
from rlhf_kit.eval.suite import entries as suite
from rlhf_kit.eval.transfer import options as transfer
from rlhf_kit.launched import is_main_process
from rlhf_kit.options.bounds import add_number
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
    "coqa": (
        "Every turn of CoQA's dialogues, by the official scorer",
        "回答 CoQA 對話的每一輪，官方計分",
        coqa.add_options,
        "rlhf_kit.eval.coqa.options",
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
        "rlhf_kit.eval.suite.entries",
    ),
}

OF_FILES = ("score", "compare")  # no model is loaded


def main(argv: Sequence[str] | None = None) -> int:
    """`rlhf-kit eval`; returns the exit status: 0, 1 a full disk, 2 a mistake of the user, 130 interrupted."""
    parser = Parser(prog="rlhf-kit eval", description="Measure a model. 評測模型。")
    commands = parser.add_subparsers(dest="command", required=True, metavar="SUBCOMMAND")
    for name, (english, chinese, add_options, _) in SUBCOMMANDS.items():
        said = f"{english} {chinese}"
        add_options(command := commands.add_parser(name, help=said, description=said))
        if name not in OF_FILES:
            code_option(command)
    options = parser.parse_args(argv)
    speaks = is_main_process()
    with interrupts.before_anything():
        module = importlib.import_module(SUBCOMMANDS[options.command][3])
    try:
        if options.command not in OF_FILES:
            importlib.import_module("rlhf_kit.eval.revisions").pin(options)
        module.run(options)
    except UserError as error:
        if speaks:
            complain(f"rlhf-kit eval {options.command}: {error}")
        return 2
    except KeyboardInterrupt as interrupt:
        if speaks:
            said = "\nInterrupted. Nothing was kept: there was no --output. 已中斷；沒有 --output，不留結果。"
            if getattr(options, "output", None):
                said = "\nInterrupted. The same command goes on with what --output has. 已中斷；同一個指令會接續。"
            complain(said)
        return interrupts.status(interrupt)
    except Exception as error:
        fault = write_fault(error)
        if fault is None:
            raise
        if speaks:
            said = f"rlhf-kit eval {options.command}: --output cannot be written: {fault}. What was measured is kept; "
            complain(f"{said}make room, and the same command goes on.")
        return 1
    return 0
