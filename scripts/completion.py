"""Completion of balancerctl for bash, zsh and fish, made by shtab out of the tables of commands and options.

    python -m scripts.completion            rewrites conf/completion/

In bash and zsh names of backends are asked of the running balancer, each time: `balancerctl backends`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import shtab

from balancer.ctl_options import COMMANDS, FLAGS, PROGRAM
from scripts.man_pages import explain

DIRECTORY = Path(__file__).resolve().parents[1] / "conf" / "completion"
FILES = {
    "bash": f"{PROGRAM}.bash",
    "zsh": f"_{PROGRAM}",
    "fish": f"{PROGRAM}.fish",
}  # as each shell looks for it
NAMES = "balancerctl backends 2>/dev/null | awk 'NR > 1 { print $1 }'"
PREAMBLE = {
    "bash": f'_balancerctl_backends() {{\n  compgen -W "$({NAMES})" -- "$1"\n}}',
    "zsh": f'_balancerctl_backends() {{\n  compadd -- ${{(f)"$({NAMES})"}}\n}}',
}
BACKENDS = {
    "bash": "_balancerctl_backends",
    "zsh": "_balancerctl_backends",
    "fish": "(_balancerctl_backends)",
}


def parser() -> argparse.ArgumentParser:
    """The command line of balancerctl as argparse knows it: for completion only."""
    found = argparse.ArgumentParser(PROGRAM, add_help=False)
    commands = found.add_subparsers(dest="command")
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.help, add_help=False)
        for argument in command.arguments:
            action = one.add_argument(argument.strip("[.]").lower(), nargs="*")
            if "NAME" in argument:
                action.complete = BACKENDS  # type: ignore[attr-defined]
        for flag in FLAGS:
            if not flag.commands or name in flag.commands:
                spellings = [f"--{flag.name}", *([f"-{flag.short}"] if flag.short else ())]
                if flag.value:
                    action = one.add_argument(*spellings, help=flag.help)
                    if flag.name == "backend":
                        action.complete = BACKENDS  # type: ignore[attr-defined]
                else:
                    one.add_argument(*spellings, help=flag.help, action="store_true")
    return found


def scripts() -> dict[str, str]:
    """The text of each shell's script."""
    by_shell: Any = PREAMBLE
    return {shell: shtab.complete(parser(), shell, preamble=by_shell) for shell in FILES}


def main(argv: Sequence[str] | None = None, directory: Path = DIRECTORY) -> int:
    explain(__doc__, argv)
    directory.mkdir(parents=True, exist_ok=True)
    for shell, text in scripts().items():
        (directory / FILES[shell]).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
