"""Completion of commands, flags and their choices, as scripts for shells."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any, Literal, get_args, get_origin, get_type_hints

from shortlist.commands import COMMANDS
from shortlist.config import flag_of


def flags(command: str) -> Mapping[str, tuple[str, ...]]:
    """List a command's flags, each with its choices, if it has any."""
    config = import_module(COMMANDS[command].light).Config
    hints = get_type_hints(config)
    named = [field.name for field in fields(config) if "Positional" not in str(field.type)]
    known = {flag_of(name): tuple(map(str, _choices(hints[name]))) for name in named}
    return known | {"--config": (), "--help": ()}


def _choices(hint: Any) -> Iterator[Any]:
    """Yield the values of every Literal in a type."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
        return
    for part in get_args(hint):
        yield from _choices(part)


def for_bash() -> str:
    """Write the script for bash."""
    cases, choices = [], []
    for command in COMMANDS:
        known = flags(command)
        cases.append(f"    {command}) flags='{' '.join(known)}' ;;")
        choices += [f"    '{command} {flag}') choices='{' '.join(of)}' ;;" for flag, of in known.items() if of]
    return "\n".join(
        [
            "_shortlist() {",
            "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} flags='' choices=''",
            '  if [ "$COMP_CWORD" -eq 1 ]; then',
            f"    COMPREPLY=($(compgen -W '{' '.join(COMMANDS)} --help --version --completion' -- \"$word\")); return",
            "  fi",
            "  case ${COMP_WORDS[1]} in",
            *cases,
            "  esac",
            '  case "${COMP_WORDS[1]} $before" in',
            *choices,
            "  esac",
            '  if [ -n "$choices" ]; then COMPREPLY=($(compgen -W "$choices" -- "$word"))',
            '  elif [[ $word == -* ]]; then COMPREPLY=($(compgen -W "$flags" -- "$word"))',
            '  else COMPREPLY=($(compgen -f -- "$word")); fi',
            "}",
            "complete -o filenames -F _shortlist shortlist",
            "",
        ]
    )


def for_zsh() -> str:
    """Write the script for zsh, which reads that for bash."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{for_bash()}"


def for_fish() -> str:
    """Write the script for fish."""
    lines = []
    for name, command in COMMANDS.items():
        words = command.words.replace("'", r"\'")
        lines.append(f"complete -c shortlist -n __fish_use_subcommand -f -a {name} -d '{words}'")
        for flag, choices in flags(name).items():
            of = f" -x -a '{' '.join(choices)}'" if choices else ""
            lines.append(f"complete -c shortlist -n '__fish_seen_subcommand_from {name}' -l {flag[2:]}{of}")
    return "\n".join([*lines, ""])


SHELLS = {"bash": for_bash, "zsh": for_zsh, "fish": for_fish}
"""Functions that write the script, by shell."""
