"""Scripts that complete the words of the command line in a shell, made from its parser."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "fish")

# zsh runs bash's script once it knows `complete`.
BASH = """\
_hankelred() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "${{COMP_WORDS[1]}} $current" in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _hankelred hankelred
"""


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Return the script for one of `SHELLS`; where no option is meant, the shell completes names of files."""
    commands = _commands(parser)
    if shell == "fish":
        return "\n".join(_fish(parser, commands)) + "\n"
    cases = []
    for name, command in commands.items():
        cases.append(f'            "{name} -"*) words="{" ".join(_options(command))}" ;;')
        choices = [word for action in _positionals(command) for word in action.choices or ()]
        if choices:
            cases.append(f'            "{name} "*) words="{" ".join(choices)}" ;;')
    bash = BASH.format(commands=" ".join(commands), cases="\n".join(cases))
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash}" if shell == "zsh" else bash


def _fish(parser: argparse.ArgumentParser, commands: dict[str, argparse.ArgumentParser]) -> list[str]:
    helps = {choice.dest: choice.help or "" for choice in _subparsers(parser)._choices_actions}
    lines = []
    for name, command in commands.items():
        lines.append(f"complete -c hankelred -f -n __fish_use_subcommand -a {name} -d {_quoted(helps[name])}")
        here = f"complete -c hankelred -n '__fish_seen_subcommand_from {name}'"
        for action in command._actions:
            takes = "" if action.nargs == 0 else " -r"
            what = f" -d {_quoted(action.help or '')}"
            words = [
                f" -l {word[2:]}" if word.startswith("--") else f" -s {word[1:]}" for word in action.option_strings
            ]
            if words:
                lines.append(here + "".join(words) + takes + what)
            elif action.choices:
                lines.append(f"{here} -f -a '{' '.join(action.choices)}'")
    return lines


def _subparsers(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    return next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return dict(_subparsers(parser).choices)


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [word for action in parser._actions for word in action.option_strings]


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not action.option_strings]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
