"""Options of `rlhf-kit eval transfer`. Light: torch comes later."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf_kit.eval.options import DTYPES
from rlhf_kit.options.bounds import add_number

MODEL_SETS = ("world", "hub")


def add_options(parser: argparse.ArgumentParser, tables: Path) -> None:
    """`tables`: the folder of the two tables that come with the kit."""
    parser.add_argument(
        "--model-set",
        "--model_set",
        choices=MODEL_SETS,
        help="the table that is made: the embedded world's, which needs no network, or the paper's [world] 模型組",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="another table: YAML, as rlhf_kit/eval/transfer/ has them"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the cells and the table are kept there, and it goes on there [runs/transfer/TABLE] 輸出資料夾",
    )
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="these rows only, by name 只做這幾列")
    add_number(parser, "--seeds", name="seed", nargs="+", help="instead of the table's 亂數種子")
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="the folder that {data} stands for in the table 資料夾"
    )
    add_number(parser, "--limit", help="the first N questions of each test: a trial")
    add_number(parser, "--max-batch-tokens", default=8192, help="bounds the memory; changes no result")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights at the test [float32]")
    parser.set_defaults(tables=tables)
