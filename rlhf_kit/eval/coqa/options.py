"""`rlhf-kit eval coqa`: every turn of CoQA, by the official scorer. Parses; torch comes later."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from rlhf_kit.eval.options import DTYPES, chat_option
from rlhf_kit.options.bounds import add_number

PRESETS = ("gpt2", "gpt3")
HISTORIES = ("gold", "model")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="M", help="a causal LM: a folder or hub id 語言模型")
    parser.add_argument(
        "--data", required=True, metavar="D", help="CoQA's JSON, a folder, a hub id (stanfordnlp/coqa) or world 資料"
    )
    parser.add_argument("--split", metavar="S", help="of a folder or hub id [validation], of the world [test]")
    parser.add_argument(
        "--preset", choices=PRESETS, default="gpt2", help="gpt2: greedy; gpt3: 4 beams [gpt2] 解碼方式"
    )
    parser.add_argument(
        "--history", choices=HISTORIES, default="gold", help="answers in the history: the data's or the model's [gold]"
    )
    chat_option(parser)
    add_number(parser, "--shots", default=0, metavar="K", help="demonstrations before [0] 示範數")
    parser.add_argument(
        "--demonstrations", metavar="D", help="where they come from, its split train [the data] 示範的來源"
    )
    add_number(parser, "--limit", help="the first N stories: a trial, not a result 只評前 N 篇")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write results.json, items.jsonl, predictions.json there 輸出資料夾"
    )
    add_number(parser, "--max-batch-tokens", default=8192, help="bounds memory [8192] 記憶體上限")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights [float32] 權重精度")
    add_number(parser, "--seed", default=0, help="of demonstrations and intervals [0]")


def run(options: argparse.Namespace) -> None:
    """`rlhf-kit eval coqa` with parsed options. Raises UserError."""
    importlib.import_module("rlhf_kit.eval.coqa.task").run(options)
