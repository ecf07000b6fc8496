"""Options that scripts share: several of a few names, separated by commas, and the number of rounds."""

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


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    """Add --rounds, a number of at least 1: the figures are medians over them."""
    parser.add_argument(
        "--rounds", type=_at_least_one, default=default, metavar="N", help=f"the figures are their medians ({default})"
    )  # fmt: skip


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds: write 1 or more")
    return int(text)
