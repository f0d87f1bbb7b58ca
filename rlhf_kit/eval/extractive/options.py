"""Options of `rlhf-kit eval extractive`, and its scorers by name. Light: torch comes later."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from rlhf_kit.eval import scorers
from rlhf_kit.eval.options import DTYPES
from rlhf_kit.options.bounds import add_number

SCORERS: dict[str, scorers.Scorer] = {
    "squad": scorers.squad,
    "squad2": scorers.squad2,
    "drcd": scorers.drcd,
    "drcd-full-width": partial(scorers.drcd, full_width=True),
    "cmrc": scorers.cmrc,
    "mlqa-en": partial(scorers.mlqa, language="en"),
    "mlqa-zh": partial(scorers.mlqa, language="zh"),
}
SQUAD2 = "squad2"  # whose questions may have no answer
VERSIONS = {"cmrc": 2}  # 2: NLTK's words, as the official script


def version(*names: str) -> int:
    """Of a measurement by these scorers: it goes up when one of them gives other figures."""
    return max(VERSIONS.get(name, 1) for name in names)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="M", help="a folder or hub id 模型")
    parser.add_argument(
        "--data",
        required=True,
        metavar="D",
        help="SQuAD's format (SQuAD, XQuAD, MLQA, DRCD, CMRC): a file, a folder, a hub id; or world:squad_en, "
        "world:squad_zh 測試資料",
    )
    parser.add_argument("--split", metavar="S", help="of a folder or hub id [validation], of the world [test]")
    parser.add_argument(
        "--scorer",
        required=True,
        choices=SCORERS,
        help="the data's official one; XQuAD's is squad; squad2 takes questions without an answer; drcd drops ASCII "
        "punctuation only 評分方式",
    )
    parser.add_argument(
        "--on-bad-row", choices=("error", "drop"), default="error", help="a faulty question: stop, or count it [error]"
    )
    add_number(parser, "--limit", help="the first N questions only: a trial, not a result")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="keep the results and the model there, go on there 輸出資料夾",
    )
    _windows(parser.add_argument_group("windows 視窗"))
    _training(parser.add_argument_group("fine-tuning before the test 先微調"))
    add_number(parser, "--max-batch-tokens", default=8192, help="bounds the memory; changes no result")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights at the test [float32]")
    add_number(parser, "--seed", default=0, help="of the training and the intervals [0]")


def _windows(group: argparse._ArgumentGroup) -> None:
    add_number(group, "--max-length", default=384, help="tokens of a window [384]")
    add_number(group, "--step", help="tokens from one to the next, BERT's doc_stride [128] 步幅")
    add_number(group, "--overlap", help="tokens shared, Hugging Face's doc_stride 重疊")
    add_number(group, "--max-query-length", default=64, help="of a question [64]")
    add_number(group, "--max-answer-length", default=30, help="tokens of an answer [30]")
    add_number(
        group,
        "--null-score-diff-threshold",
        metavar="X",
        help="squad2: no answer where its score is above the best span's by more [0] 無答案門檻",
    )
    add_number(group, "--n-best", default=20, help="candidates kept of a question [20]")


def _training(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--train-data", nargs="+", default=[], metavar="D", help="one or several, in the forms of --data 訓練資料"
    )
    add_number(group, "--epochs", default=3.0, help="passes over it [3]")
    add_number(group, "--learning-rate", default=5e-5, metavar="X", help="its peak [5e-5]")
    add_number(group, "--batch-size", default=32, help="windows a forward [32]")
    add_number(group, "--lora", metavar="R", help="train adapters of rank R and the head only")
    group.add_argument(
        "--freeze",
        metavar="WHAT",
        help="do not train embeddings, encoder (so that the embeddings alone learn), or the first N-layers 凍結",
    )
