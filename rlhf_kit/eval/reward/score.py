"""`rlhf-kit score`: any file of prompts and completions, its rows out again with scores. Parses; torch comes later."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from rlhf_kit.errors import UserError
from rlhf_kit.eval.options import code_option
from rlhf_kit.options.bounds import add_number
from rlhf_kit.parser import Parser
from rlhf_kit.terminal import complain

REDUCTIONS = ("mean", "min", "mean-std")


def main(argv: Sequence[str] | None = None) -> int:
    """`rlhf-kit score`; returns the exit status: 0 done, 2 a mistake of the user, 130 interrupted."""
    parser = Parser(
        prog="rlhf-kit score",
        description="Score the completions of a file with a reward model, or several. 用獎勵模型替回答打分數。",
    )
    parser.add_argument(
        "--model",
        required=True,
        nargs="+",
        metavar="M",
        help="reward models: folders or hub ids; several make an ensemble",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="D",
        help="prompt with completions, chosen and rejected, or completion: a file, a folder, a hub id, world:ranked",
    )
    parser.add_argument("--split", default="train", help="of a folder, a hub dataset or the world [train]")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="JSONL: the rows with score (or scores: a list, or chosen and rejected) [standard output] 輸出檔案",
    )
    add_number(parser, "--batch-size", default=16, help="completions a forward [16]")
    parser.add_argument("--ensemble", choices=REDUCTIONS, help="one score of several models [mean] 多個模型如何合併")
    add_number(parser, "--std-coef", metavar="C", help="of mean-std: mean - C * standard deviation [1.0]")
    code_option(parser)
    options = parser.parse_args(argv)
    try:
        importlib.import_module("rlhf_kit.eval.revisions").pin(options)
        importlib.import_module("rlhf_kit.eval.reward.rows").run(options)
    except UserError as error:
        complain(f"rlhf-kit score: {error}")
        return 2
    except KeyboardInterrupt:
        complain("\nInterrupted: nothing was written. 已中斷，沒有寫入任何結果。")
        return 130
    return 0
