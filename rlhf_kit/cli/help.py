"""What `--help` says, read from the source of the config classes: nothing heavy is imported, so it comes at once."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlhf_kit.terminal.console import Console

PACKAGE = Path(importlib.util.find_spec("rlhf_kit").origin).parent
STAGES = PACKAGE / "stages"

# The training options most runs touch, in reading order; --help-all shows the others.
COMMON = (
    "output_dir resume_from_checkpoint learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm "
    "num_train_epochs max_steps per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
    "bf16 fp16 gradient_checkpointing logging_steps save_strategy save_steps save_total_limit eval_strategy "
    "eval_steps seed report_to run_name dataloader_num_workers push_to_hub"
).split()


@dataclass(frozen=True)
class Option:
    name: str
    type: str
    default: str
    help: str


def _library(package: str, *parts: str) -> Path:
    """A file of an installed library, found without importing it."""
    return Path(importlib.util.find_spec(package).origin).parent.joinpath(*parts)


def _sources(stage: str) -> list[tuple[str, list[tuple[Path, str]]]]:
    """(panel title, [(file, class)...]) of a stage; the last panel is transformers' own."""
    arguments = STAGES / "arguments.py"
    own = {
        "pretrain": [(STAGES / "pretrain.py", "PretrainConfig")],
        "mlm": [(STAGES / "mlm.py", "MaskedConfig")],
        "sft": [(_library("trl", "trainer", "sft_config.py"), "SFTConfig")],
        "reward": [
            (PACKAGE / "reward" / "config.py", "RewardConfig"),
            (STAGES / "calibration.py", "CalibrationArguments"),
        ],
        "ppo": [(STAGES / "ppo.py", "PPOArguments"), (PACKAGE / "ppo" / "config.py", "PPOConfig")],
    }[stage]
    return [
        ("Run", [(arguments, "RunArguments")]),
        ("Model", [(arguments, "ModelArguments")]),
        ("Data", [(arguments, "DataArguments")]),
        (f"Stage: {stage}", own),
        ("Training", [(_library("transformers", "training_args.py"), "TrainingArguments")]),
    ]


def read_options(path: Path, class_name: str) -> list[Option]:
    """The fields of a dataclass as its source declares them; [] if the file or the class is not there."""
    if not path.is_file():
        return []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name), None)
    options = []
    for node in found.body if found else ():
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and not node.target.id.startswith("_")
        ):
            options.append(_option(node))
    return options


def _option(node: ast.AnnAssign) -> Option:
    default, text = "", ""
    if isinstance(node.value, ast.Call):
        keywords = {keyword.arg: keyword.value for keyword in node.value.keywords}
        default = ast.unparse(keywords["default"]) if "default" in keywords else ""
        metadata = keywords.get("metadata")
        if isinstance(metadata, ast.Dict):
            for key, value in zip(metadata.keys, metadata.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "help":
                    text = _text(value)
    elif node.value is not None:
        default = ast.unparse(node.value)
    return Option(node.target.id, ast.unparse(node.annotation), default, text.replace("%%", "%"))


def _text(node: ast.expr) -> str:
    try:
        return str(ast.literal_eval(node))
    except ValueError:  # a help text put together at run time
        return ""


def stage_help(stage: str, everything: bool = False) -> list[tuple[str, list[Option]]]:
    """(panel title, options) of a stage; an option stands once, where it is declared first."""
    panels, seen = [], set()
    for title, sources in _sources(stage):
        options = [option for path, name in sources for option in read_options(path, name) if option.name not in seen]
        if title == "Training":
            order = {name: index for index, name in enumerate(COMMON)}
            common = sorted((o for o in options if o.name in order), key=lambda o: order[o.name])
            panels.append(("Training: the common options", common))
            rest = [o for o in options if o.name not in order]
            if everything:
                panels.append(("Training: all others", rest))
        else:
            panels.append((title, options))
        seen.update(option.name for option in options)
    return panels


def print_stage(stage: str, purpose: Sequence[str], everything: bool = False) -> None:
    """`purpose`: what the stage is for, in English and in Chinese."""
    console = Console()
    english, chinese = purpose
    usage = f" [--config X.yaml] [--key value ...]\n{english}. {chinese}。\n"
    console.print(Text.assemble((f"rlhf-kit {stage}", "bold"), usage))
    for title, options in stage_help(stage, everything):
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="cyan")
        table.add_column()
        for option in options:
            default = f" [{option.default}]" if option.default not in ("", "None") else ""
            table.add_row(f"--{option.name}", Text.assemble(option.help, (default, "dim")))
        console.print(Panel(table, title=title, title_align="left"))
    console.print(f"Examples:\n{_examples(stage)}")
    if not everything:
        console.print("\nAll training options: --help-all")


def _examples(stage: str) -> str:
    return (
        f"  rlhf-kit {stage} --config recipes/gpt2/{stage}.yaml --dry-run\n"
        f"  rlhf-kit {stage} --config recipes/gpt2/{stage}.yaml --learning_rate 1e-5 --output_dir runs/{stage}\n"
        f"  accelerate launch --config_file rlhf_kit/stages/accelerate/multi_gpu.yaml recipes/{stage}.py "
        f"--config recipes/gpt2/{stage}.yaml"
    )


def print_root(version: str, purposes: Mapping[str, Sequence[str]]) -> None:
    """`purposes`: command -> what it is for, in English and in Chinese."""
    console = Console()
    console.print(
        Text.assemble(
            ("rlhf-kit", "bold"),
            f" {version}: from a pretrained GPT-2 to a ChatGPT, measured at every step\n"
            "把預訓練的 GPT-2 一步步變成 ChatGPT，每一步都看得見成果\n\n"
            "Usage: rlhf-kit STAGE [--config X.yaml] [--key value ...]\n",
        )
    )
    table = Table.grid(padding=(0, 2))
    for name, (english, chinese) in purposes.items():
        table.add_row(Text(f"  {name}", "cyan"), english, chinese)
    console.print(table)
    console.print(
        "\nExamples:\n"
        "  rlhf-kit demo\n"
        "  rlhf-kit sft --help\n"
        "  rlhf-kit sft --model_name_or_path gpt2 --dataset_name my.jsonl --output_dir runs/sft --dry-run\n"
        "  rlhf-kit ppo --config recipes/gpt2/ppo.yaml --resume_from_checkpoint"
    )
