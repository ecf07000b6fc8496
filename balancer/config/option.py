"""What an option is, and what came of reading it: the words the options engine and its users share.

RULES: no input, no output; knows no particular option.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


class ConfigError(ValueError):
    """One sentence for the user, naming the culprit (file:line and key, environment name or flag). Exit code
    2."""


class Answer(Exception):
    """The command line asked a question (--help, --version, --check-config ...): this is the text, exit code
    0."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option, declared once: flag --name, INI key `name`, environment <SECTION>_<NAME>, default, help.

    `default` is text and is parsed like any input, so that the documents show what a user would write.
    `parse` raises ValueError with a text that quotes the input. `repeat`: the value is a tuple of parsed
    items; several are given by repeating the flag, by one per line in the file, or (with `commas`) separated
    by commas anywhere. `flag`: yes or no. `unset`: what help and tables show where the default is empty
    ("stderr", "no limit")."""

    name: str
    default: str
    help: str
    parse: Callable[[str], Any] = str
    group: str = ""
    metavar: str = ""
    short: str = ""
    choices: tuple[str, ...] = ()
    repeat: bool = False
    commas: bool = True
    flag: bool = False
    unset: str = ""
    command_line_only: bool = False

    @property
    def field(self) -> str:
        """The Python spelling of the name."""
        return self.name.replace("-", "_")

    def environment(self, section: str) -> str:
        """The environment name: [balancer] max-queue is BALANCER_MAX_QUEUE."""
        return f"{section}_{self.name}".replace("-", "_").upper()


@dataclass(frozen=True, slots=True)
class Settings:
    """Values by option name, and where each came from ("command line", "environment X", "file:12",
    "default")."""

    section: str
    values: Mapping[str, Any]
    texts: Mapping[str, str]
    sources: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())  # things worth a warning, none of which is an error

    def fields(self, wanted: Iterable[str]) -> dict[str, Any]:
        """Values by the Python spelling of their names, those of `wanted` only: to build a dataclass from."""
        spelled = {name.replace("-", "_"): value for name, value in self.values.items()}
        return {name: spelled[name] for name in wanted if name in spelled}

    def where(self, name: str) -> str:
        """The option as its user wrote it, to begin a sentence about it with."""
        return where(name, self.sources[name])

    def refuse(self, name: str, sentence: str) -> ConfigError:
        """The error to raise about that option's value."""
        return ConfigError(f"{self.where(name)}: {sentence}")


def where(name: str, source: str) -> str:
    """ "--port", "environment BALANCER_PORT" or "conf/balancer.ini:12: port"."""
    if source == "command line" or source == "default":
        return f"--{name}"
    return source if source.startswith("environment ") else f"{source}: {name}"


def parse_flag(text: str) -> bool:
    """true/yes/on/1 or false/no/off/0, in any case."""
    word = text.strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{text!r} is neither yes nor no")


def optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser that takes an empty text for None."""
    return lambda text: parse(text) if text else None


def between(lowest: int, highest: int, parse: Callable[[str], int] | None = None) -> Callable[[str], int]:
    """A parser of whole numbers (or of what `parse` reads) from `lowest` to `highest`."""

    def read(text: str) -> int:
        if parse is None and not re.fullmatch(r"-?[0-9]{1,18}", text.strip()):
            raise ValueError(f"{text!r} is not a whole number")
        number = int(text) if parse is None else parse(text)
        if number < lowest:
            raise ValueError(f"{text!r} is below {lowest}, the lowest that makes sense")
        if number > highest:
            raise ValueError(f"{text!r} is above {highest}, the highest that makes sense")
        return number

    return read


def at_least(lowest: int, parse: Callable[[str], int] | None = None) -> Callable[[str], int]:
    """As between(), with no practical upper end."""
    return between(lowest, 1 << 53, parse)
