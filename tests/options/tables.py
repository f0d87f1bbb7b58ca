"""docs/options.md, made from the dataclasses that declare the options: `python tests/options/tables.py --write`."""

from __future__ import annotations

import sys
from pathlib import Path

from rlhf_kit.cli.commands import COMMANDS
from rlhf_kit.cli.help import panels, usage
from rlhf_kit.escaping import markdown_row
from rlhf_kit.options.declared import aliases, declared_in_source

PAGE = Path(__file__).parents[2] / "docs" / "options.md"
HEAD = """# Options of every command

Made by `python tests/options/tables.py --write` from the dataclasses that declare the options; a test compares it.
Underscores and dashes are one; every command reads `--config X.yaml`, under what the command line gives. Of a stage's
training options the common ones stand here, the others in `rlhf-kit STAGE --help-all`.
"""


def page() -> str:
    lines = [HEAD]
    for words, command in COMMANDS.items():
        declared = declared_in_source([*command.options.values()]).options
        short = {name: word for word, name in reversed(aliases(declared).items())}
        lines += [f"## {words}", "", f"`rlhf-kit {usage(words, command)}`: {command.english}. {command.chinese}。", ""]
        lines += ["| option | default | |", "| --- | --- | --- |"]
        for _, options in panels(command):
            for option in options:
                names = " ".join(f"--{name}" for name in (option.name, short.get(option.name)) if name)
                default = option.default or ("required" if option.required else "")
                values = f" ({', '.join(option.values)})" if option.values else ""
                lines.append(markdown_row([names, default, option.help + values]))
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
