"""Options of the `rlhf-kit eval` subcommands that measure what a model writes. Light: what measures comes later."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_kit.options.bounds import add_number

DTYPES = ("float32", "bfloat16", "float16")
BASELINES = ("lede-3", "random-3")  # of TL;DR, which need no model


def chat_option(parser: argparse.ArgumentParser) -> None:
    """Called as in lm-evaluation-harness."""
    parser.add_argument(
        "--apply_chat_template",
        "--apply-chat-template",
        action="store_true",
        help="ask in turns, as SFT teaches, not in plain text 以對話格式提問",
    )


def code_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust_remote_code",
        "--trust-remote-code",
        action="store_true",
        help="run code that comes with a model of the hub 執行模型自帶的程式碼",
    )


def _common(parser: argparse.ArgumentParser, items: str) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="keep results.json and items.jsonl there, and go on there 輸出資料夾",
    )
    add_number(parser, "--limit", help=f"the first N {items} only: a trial, not a result")
    add_number(parser, "--max-batch-tokens", default=8192, help="bounds the memory; changes no result")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights [float32] 數值精度")
    add_number(parser, "--seed", default=0, help="of all that is drawn [0]")


def icl(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", required=True, nargs="+", metavar="M", help="folders or hub ids, of one size or several 模型"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="T",
        help="arithmetic, unscramble, world, or tasks of these by name 任務",
    )
    add_number(
        parser, "--shots", nargs="+", default=[0, 1, 8], metavar="K", help="examples in the prompt [0 1 8] 範例數"
    )
    chat_option(parser)
    parser.add_argument(
        "--lm-eval", nargs="+", default=[], metavar="T", help="tasks of lm-evaluation-harness as well (extra: lm-eval)"
    )
    _common(parser, "items of each task")


def tldr(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(BASELINES),
        metavar="M",
        help="folders, hub ids, and the baselines lede-3 and random-3, which need no model [both] 模型與基準",
    )
    _data(parser, "articles with summaries (article + highlights, document + summary, or text + summary)")
    parser.add_argument("--no-hint", action="store_true", help="leave out TL;DR:, which shows what the hint is worth")
    _common(parser, "articles")


def _data(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--data", required=True, metavar="D", help=f"{what}: a file, a folder or a hub id 測試資料")
    parser.add_argument("--split", default="test", help="of a folder or a hub dataset [test]")


# name -> what it measures, in English and Chinese; its options; its module, whose `run` gets them
SUBCOMMANDS = {
    "icl": (
        "Does a model learn from examples in its prompt, and does its size help?",
        "情境學習：提示裡的範例有用嗎？模型越大越好嗎？",
        icl,
        "rlhf_kit.eval.icl.task",
    ),
    "tldr": ("Summaries after TL;DR:, by ROUGE", "在 TL;DR: 之後寫摘要", tldr, "rlhf_kit.eval.text.tldr"),
}
