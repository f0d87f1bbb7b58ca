"""What `--help` says, from the source of the option dataclasses: nothing heavy is imported, so it is immediate."""

from __future__ import annotations

from dataclasses import replace

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlhf_kit import __version__
from rlhf_kit.cli.commands import COMMANDS, GROUPS, STAGES, Command
from rlhf_kit.options.declared import HIDDEN, Option, aliases, declared_in_source
from rlhf_kit.terminal.console import Console

SHARED = "rlhf_kit.eval.task"
# The training options most runs touch, in reading order; --help-all shows the others.
COMMON = (
    "output_dir resume_from_checkpoint learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm "
    "num_train_epochs max_steps per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
    "bf16 fp16 activation_checkpointing logging_steps save_strategy save_steps save_total_limit eval_strategy "
    "eval_steps seed report_to run_name dataloader_num_workers push_to_hub"
).split()

# Options whose help from the libraries would be wrong here.
HELP = {
    "resume_from_checkpoint": "Resume the run in output_dir: from its last complete checkpoint, or from the one whose "
    "folder is given.",
    "activation_checkpointing": "Recompute activations in the backward pass: less memory, about a third more time.",
    "use_liger_kernel": "Use Liger's Triton kernels for the model's layers (pip install liger-kernel).",
}


def panels(command: Command, everything: bool = False) -> list[tuple[str, list[Option]]]:
    """(title, options) of a command; an option is listed once, where it is declared first."""
    shown, training, seen = [], [], set()
    for title, name in command.options.items():
        declared = declared_in_source([name]).options.values()
        options = [
            replace(option, help=HELP.get(option.name, option.help))
            for option in declared
            if option.name not in seen and option.name not in HIDDEN
        ]
        seen.update(option.name for option in options)
        own = [option for option in options if not option.module.startswith(("transformers.", "trl.trainer.base"))]
        # What a command declares itself comes before what it shares with others.
        shown.append((title, sorted(own, key=lambda option: (not option.required, option.module == SHARED))))
        training += [option for option in options if option not in own]
    if training:
        order = {name: index for index, name in enumerate(COMMON)}
        common = sorted((o for o in training if o.name in order), key=lambda option: order[option.name])
        shown.append(("Training: the common options", common))
        if everything:
            shown.append(("Training: all others", [option for option in training if option.name not in order]))
    return shown


def usage(words: str, command: Command) -> str:
    """`convert IN OUT [--config X.yaml] [--key value ...]`"""
    options = declared_in_source([*command.options.values()]).options.values()
    places = [option.positional for option in options if option.positional]
    return " ".join([words, *places, "[--config X.yaml]", "[--key value ...]"])


def print_command(words: str, command: Command, everything: bool = False) -> None:
    console = Console()
    options = declared_in_source([*command.options.values()]).options
    short = {name: word for word, name in reversed(aliases(options).items())}
    console.print(
        Text.assemble((f"rlhf-kit {usage(words, command)}", "bold"), f"\n{command.english}. {command.chinese}。\n")
    )
    for title, options in panels(command, everything):
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="cyan")
        table.add_column()
        for option in options:
            table.add_row(spelt(option, short), explained(option))
        console.print(Panel(table, title=title, title_align="left"))
    lines = [f"rlhf-kit {example}" for example in command.examples]
    if words in STAGES:
        lines.append(f"rlhf-kit {words} --config recipes/gpt2/{words}.yaml --accelerate ddp")
    if lines:
        console.print("\n".join(["Examples:", *(f"  {line}" for line in lines)]), soft_wrap=True)
    if words in STAGES and not everything:
        console.print("\nAll training options: --help-all")


def spelt(option: Option, short: dict[str, str]) -> str:
    names = [f"--{option.name}", *([f"--{short[option.name]}"] if option.name in short else [])]
    return " ".join([*([option.positional] if option.positional else []), ", ".join(names)])


def explained(option: Option) -> Text:
    """Its help, its choices, and its default."""
    choices = f" ({', '.join(option.values)})" if option.values else ""
    default = f" [{option.default}]" if option.default else " (required)" if option.required else ""
    return Text.assemble(option.help + choices, (default, "dim"))


def print_root() -> None:
    console = Console()
    console.print(
        Text.assemble(
            ("rlhf-kit", "bold"),
            f" {__version__}: from a pretrained GPT-2 to a ChatGPT, measured at every step\n"
            "把預訓練的 GPT-2 一步步變成 ChatGPT，每一步都看得見成果\n\n"
            "Usage: rlhf-kit COMMAND [--config X.yaml] [--key value ...]\n",
        )
    )
    _list(console, {words: COMMANDS[words] for words in COMMANDS if " " not in words} | GROUPS)
    console.print(
        "\nExamples:\n"
        "  rlhf-kit demo\n"
        "  rlhf-kit sft --help\n"
        "  rlhf-kit sft --model_name_or_path gpt2 --dataset_name my.jsonl --output_dir runs/sft --dry_run\n"
        "  rlhf-kit ppo --config recipes/gpt2/ppo.yaml --resume_from_checkpoint"
    )


def print_group(group: str) -> None:
    """The commands that begin with this word."""
    console, about = Console(), GROUPS[group]
    usage = f"rlhf-kit {group} COMMAND [--config X.yaml] [--key value ...]"
    console.print(Text.assemble((usage, "bold"), f"\n{about.english}. {about.chinese}。\n"))
    nested = {words: command for words, command in COMMANDS.items() if words.startswith(f"{group} ")}
    _list(console, {words.removeprefix(f"{group} "): command for words, command in nested.items()})
    console.print(f"\nOptions of each: rlhf-kit {group} COMMAND --help")


def _list(console: Console, commands: dict[str, Command]) -> None:
    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column(overflow="fold")
    for words, command in commands.items():
        table.add_row(Text(f"  {words}", "cyan"), command.english, command.chinese)
    console.print(table)
