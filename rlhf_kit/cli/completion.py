"""`rlhf-kit completion bash|zsh`: what Tab offers, from the dataclasses that declare the options.

The script contains every name that help shows, so that Tab starts no Python. Make it again after an update of the kit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_kit.options import option
from rlhf_kit.options.declared import HIDDEN, aliases, declared_in_source
from rlhf_kit.terminal import say

SCRIPT = """\
# {shell} completion of rlhf-kit: eval "$(rlhf-kit completion {shell})"
{start}_rlhf_kit() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}" words
    case "$command" in {groups}) [ "$COMP_CWORD" -gt 2 ] && command="$command ${{COMP_WORDS[2]}}";; esac
    case "$command:$before" in
{values}
    *) case "$word" in
        -*) case "$command" in
{options}
            esac;;
        *) case "$COMP_CWORD:$command" in
            1:*) words="{commands}";;
{nested}
            esac;;
        esac;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _rlhf_kit rlhf-kit
"""
ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"


@dataclass
class CompletionOptions:
    shell: Literal["bash", "zsh"] | None = option(
        None, "The shell to complete in. 要補完的殼層", positional="SHELL", required=True
    )


def run(commands: Mapping[str, Any], groups: Collection[str], options: CompletionOptions) -> None:
    """`commands`: the table of all (`commands.COMMANDS`); `groups`: the first words of those that have two."""
    say(script(options.shell, commands, groups))


def script(shell: str, commands: Mapping[str, Any], groups: Collection[str]) -> str:
    """The text that the shell evaluates."""
    names, values = [], []
    for words, command in commands.items():
        accepted = declared_in_source([*command.options.values()]).options
        declared = {name: item for name, item in accepted.items() if name not in HIDDEN}
        spelt = [*declared, *aliases(declared), "config", "help"]
        names.append(f'            "{words}") words="{" ".join(f"--{name}" for name in spelt)}";;')
        for name, item in declared.items():
            if item.values:
                values.append(f'    "{words}:--{name}") words="{" ".join(item.values)}";;')
    nested = [
        f'            2:{group}) words="{" ".join(w.split()[1] for w in commands if w.startswith(f"{group} "))}";;'
        for group in groups
    ]
    first = [*(words for words in commands if " " not in words), *groups]
    return SCRIPT.format(
        shell=shell,
        start=ZSH if shell == "zsh" else "",
        groups="|".join(groups),
        values="\n".join(values),
        options="\n".join(names),
        commands=" ".join(first),
        nested="\n".join(nested),
    )
