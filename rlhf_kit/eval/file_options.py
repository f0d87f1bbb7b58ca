"""Options of the `rlhf-kit eval` subcommands that read files and need no model. Light: what reads comes later."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_kit.options.bounds import add_number

TASKS = ("coqa", "squad", "squad2", "drcd", "cmrc", "mlqa")


def score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "task",
        choices=TASKS,
        help="whose official scorer: coqa (by domain), squad (XQuAD too), squad2 (HasAns, NoAns), drcd, cmrc, mlqa",
    )
    parser.add_argument("--references", type=Path, required=True, metavar="FILE", help="the dataset's JSON 標準答案")
    answers = parser.add_mutually_exclusive_group(required=True)
    answers.add_argument("--predictions", type=Path, metavar="FILE", help="JSON in the official format 模型的答案")
    answers.add_argument("--human", action="store_true", help="a person's answers against the others' 人類的分數")
    parser.add_argument(
        "--subset", action="store_true", help="leave out predictions of what is not in the references 略過多餘的 id"
    )
    parser.add_argument(
        "--na-prob-file", type=Path, metavar="FILE", help="squad2: {id: how likely it has no answer}; best thresholds"
    )
    add_number(
        parser, "--na-prob-thresh", metavar="X", help="squad2: above it nothing counts as said [1.0] 無答案門檻"
    )
    parser.add_argument("--full-width", action="store_true", help="drcd: drop 《》？，。、；： too 也去掉全形標點")
    parser.add_argument("--language", choices=("en", "zh"), help="mlqa: of the answers [zh] 答案的語言")


def compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, metavar="A", help="folder of results 結果的資料夾")
    parser.add_argument("second", type=Path, metavar="B")
    add_number(parser, "--seed", default=0, help="of the bootstrap [0] 亂數種子")
    parser.add_argument("--json", action="store_true", help="the comparison as JSON")
