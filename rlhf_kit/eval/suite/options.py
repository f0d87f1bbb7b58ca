"""Options of `rlhf-kit eval suite`. Light: torch comes later."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rlhf_kit.options.bounds import add_number

NAME = re.compile(r"\w[\w.-]*")  # also of a folder


def add_options(parser: argparse.ArgumentParser, suite: Path) -> None:
    """`suite`: the one that is run where none is given."""
    parser.add_argument(
        "--models",
        required=True,
        nargs="+",
        type=model,
        metavar="NAME=M",
        help="folders or hub ids in the order of training; without NAME= the folder's name 依訓練順序的模型",
    )
    parser.add_argument(
        "--suite", type=Path, default=suite, metavar="FILE", help="YAML: what is measured [the world's] 評測清單"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write suite.json, suite.md, report.html there; go on there 輸出資料夾",
    )
    add_number(parser, "--limit", help="N items of each entry at most: a trial, not a result")


def model(text: str) -> tuple[str, str]:
    """(name, folder or hub id) of `NAME=M` or `M`.

    >>> model("base=runs/demo/0"), model("runs/demo/sft/")
    (('base', 'runs/demo/0'), ('sft', 'runs/demo/sft/'))
    """
    name, equals, path = text.partition("=")
    if not equals or "/" in name:  # "=" may stand in a path
        name, path = re.sub(r"[^\w.-]+", "-", Path(text).name), text
    if not NAME.fullmatch(name) or not path:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=M, as in sft=runs/demo/sft; NAME becomes a folder")
    return name, path
