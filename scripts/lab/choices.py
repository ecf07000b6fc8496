"""Options of a script that take several of a few names, separated by commas."""

import argparse
from collections.abc import Callable, Iterable, Sequence


def several_of(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """Return the `type` of an argparse option: the names in their order, each once. A name that is not among the choices
    ends the script with one line that lists them."""
    known = list(choices)

    def names_in(text: str) -> list[str]:
        names = list(dict.fromkeys(filter(None, text.split(","))))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are: {', '.join(known)}")
        return names or known

    return names_in


def add_choices(
    parser: argparse.ArgumentParser, option: str, choices: Sequence[str], default: Sequence[str] = ()
) -> None:
    """Add an option that takes some of the choices; `default` without it, or all of them. --help lists them."""
    chosen = f"default {','.join(default)}" if default else "default all"
    parser.add_argument(
        option, type=several_of(choices), default=list(default or choices), metavar="NAME,...",
        help=f"of {', '.join(choices)}; {chosen}",
    )  # fmt: skip
