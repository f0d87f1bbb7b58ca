"""`rlhf-kit`: thin, and quick to start. Torch is imported only by the stage that runs."""

from __future__ import annotations

import errno
import importlib
import sys
from collections.abc import Sequence

from rlhf_kit import __version__
from rlhf_kit.errors import did_you_mean
from rlhf_kit.terminal import complain, escape_logs, interrupts, outlive_readers, say

COMMANDS = {  # what stands on the command line: the module whose `main` takes the rest of it, what it is for
    "pretrain": (
        "rlhf_kit.stages.pretrain",
        "Next-token prediction on plain text, from scratch or continued",
        "文字接龍：從頭或接續預訓練",
    ),
    "mlm": (
        "rlhf_kit.stages.mlm",
        "Masked-language modelling on plain text: a BERT",
        "填空題：從頭或接續預訓練 BERT",
    ),
    "sft": ("rlhf_kit.stages.sft", "Supervised fine-tuning on demonstrations", "監督式微調：學習人類示範的回答"),
    "reward": ("rlhf_kit.stages.reward", "A reward model from ranked answers", "獎勵模型：從人類的排序學習打分數"),
    "ppo": ("rlhf_kit.stages.ppo", "Reinforcement learning against the reward model", "強化學習：用 PPO 追求獎勵"),
    "demo": ("rlhf_kit.demo", "The whole story on the embedded world, in minutes, on a CPU", "用內建的小世界走完全程"),
    "eval": (
        "rlhf_kit.eval.commands",
        "Measure a model: a reward model against people's rankings",
        "評測模型：獎勵模型的排序與人一致嗎",
    ),
    "score": (
        "rlhf_kit.eval.reward.score",
        "Score any file of prompts and answers with a reward model",
        "用獎勵模型替任何回答打分數",
    ),
    "convert": (
        "rlhf_kit.data.convert",
        "Rankings and pairs from and to other projects' formats",
        "轉換其他專案的排序資料",
    ),
    "merge": ("rlhf_kit.cli.merge", "A LoRA adapter merged into its base: a plain model", "把 LoRA 併回原模型"),
    "doctor": (
        "rlhf_kit.report.doctor",
        "What is wrong with a PPO run, and what to change",
        "檢查 PPO 訓練哪裡出了問題",
    ),
}
# What is wrong with a name of the user's, wherever it turns out.
PLACES = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM}
STAGES = ("pretrain", "mlm", "sft", "reward", "ppo")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `rlhf-kit STAGE ...`; returns the exit status.

    0 done, 1 the doctor found something, 2 a mistake of the user, 130 interrupted.
    """
    if argv is None:
        interrupts.become("rlhf-kit")
        outlive_readers()
    escape_logs()
    argv = list(sys.argv[1:] if argv is None else argv)
    command, rest = (argv[0], argv[1:]) if argv else ("help", [])
    if command in ("-V", "--version"):
        say(f"rlhf-kit {__version__}")
        return 0
    wants_root = command in ("-h", "--help", "help")
    if not wants_root and command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        complain(f"rlhf-kit: there is no command {command!r}.{hint} Commands: {', '.join(COMMANDS)}.")
        return 2
    wants_stage = command in STAGES and {"-h", "--help", "--help-all"} & {*rest}
    with interrupts.before_anything():
        module = importlib.import_module("rlhf_kit.cli.help" if wants_root or wants_stage else COMMANDS[command][0])
    if wants_root:
        module.print_root(__version__, {name: lines for name, (_, *lines) in COMMANDS.items()})
        return 0
    if wants_stage:
        module.print_stage(command, COMMANDS[command][1:], everything="--help-all" in rest)
        return 0
    try:
        return module.main(rest)
    except OSError as error:
        if error.errno not in PLACES or error.filename is None:
            raise
        place = f"{str(error.filename)[:200]!r}: {error.strerror}"
        complain(f"rlhf-kit {command}: {place}. Give a file or folder that is there and may be used.")
        return 2
    except KeyboardInterrupt as interrupt:  # a stage and an evaluation say themselves how to go on
        complain(f"\nrlhf-kit {command}: interrupted. The same command begins again.")
        return interrupts.status(interrupt)


if __name__ == "__main__":
    sys.exit(main())
