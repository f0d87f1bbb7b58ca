"""`rlhf-kit merge`: a LoRA adapter merged into its base. Parses; torch comes later."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from rlhf_kit.errors import UserError
from rlhf_kit.parser import Parser
from rlhf_kit.storage import write_fault
from rlhf_kit.terminal import complain, say


def main(argv: Sequence[str] | None = None) -> int:
    """`rlhf-kit merge`; returns the exit status: 0 done, 1 a full disk, 2 a mistake of the user, nothing written."""
    parser = Parser(
        prog="rlhf-kit merge",
        description="A LoRA adapter merged into its base: a plain model. 把 LoRA 併回原模型，存成一般模型。",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="folder or hub id of an adapter 轉接器的資料夾或 hub id")
    parser.add_argument("--output_dir", "--output-dir", required=True, type=Path, help="folder to write 輸出資料夾")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="type of the weights [auto: as the base is saved] 權重的型別，預設與原模型相同",
    )
    parser.add_argument(
        "--overwrite_output_dir",
        "--overwrite-output-dir",
        action="store_true",
        help="replace the merge that is there, by its own record and nothing else 取代先前合併的結果",
    )
    options = parser.parse_args(argv)
    try:
        told = importlib.import_module("rlhf_kit.stages.merging").merge(**vars(options))
    except UserError as error:
        complain(f"rlhf-kit merge: {error}")
        return 2
    except Exception as error:
        fault = write_fault(error)
        if fault is None:
            raise
        place = str(options.output_dir)
        complain(f"rlhf-kit merge: {place!r} cannot be written: {fault}. Make room, and merge again.")
        return 1
    say(told)
    return 0
