"""What an option is, how a dataclass declares its options, and the values that one section of a configuration gave.

RULES: no input, no output; knows no particular option.

    @dataclass(frozen=True, slots=True)
    class PoolOptions:
        retries: int = option("3", "further backends to try when a connect fails", at_least(0), metavar="N")

declares flag --retries, INI key `retries`, environment name, default and help, once: `options_of(PoolOptions)` is the
table for the loader and for the documents, `build(PoolOptions, settings)` makes the record from what was read.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeVar

from balancer.config.words import split_list, unquote

T = TypeVar("T")
_DECLARED = "options"  # key in the metadata of a dataclass field


class ConfigError(ValueError):
    """One sentence for the user, naming the culprit (file:line and key, environment name or flag). Exit code 2."""


class UsageError(ConfigError):
    """The command line is wrong, or lacks something: --help tells what it takes."""


class CommandLineAnswer(Exception):
    """The command line asked a question (--help, --version, --check-config ...): this is the text, exit code 0."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option: flag --name, INI key `name`, environment <SECTION>_<NAME>, default, help.

    `default` is text and is parsed like any input, so that the documents show what a user would write. `parse` raises
    ValueError with a text that quotes the input. `repeat`: the value is a tuple of parsed items; several are given by
    repeating the flag, by one per line in the file, or (with `commas`) separated by commas anywhere. `flag`: yes or no.
    `choices`: the only values besides the default. `words`: an item is several words, and `parse` reads their quotes.
    `continues(before, text)`: whether a text behind a comma is still part of the item before. `combine`: makes one value
    of the items of a list; raises ValueError as `parse` does.
    `unset`: what help and tables show where the default is empty ("stderr", "no limit").

    For programs whose file has sections with a name: `named_only`: these alone take it, so there is no flag. `inherited`:
    what the program's own section says is the default of the named ones."""

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
    words: bool = False
    continues: Callable[[str, str], bool] | None = None
    combine: Callable[[tuple[Any, ...]], Any] = tuple
    flag: bool = False
    unset: str = ""
    command_line_only: bool = False
    named_only: bool = False
    inherited: bool = True

    @property
    def field(self) -> str:
        """The Python spelling of the name."""
        return self.name.replace("-", "_")

    def environment(self, section: str) -> str:
        """The environment name: [balancer] max-queue is BALANCER_MAX_QUEUE."""
        return f"{section}_{self.name}".replace("-", "_").upper()

    def split(self, text: str) -> list[str]:
        """The items of a list that is written as one text, quotes as they were."""
        if not self.commas:
            return [item.strip() for item in text.split("\n") if item.strip()]
        items: list[str] = []
        for item in split_list(text):
            if items and self.continues is not None and self.continues(items[-1], item):
                items[-1] += f",{item}"
            else:
                items.append(item)
        return items

    def bare(self, text: str, is_quoted: bool) -> str:
        """What `parse` gets of a text. `is_quoted`: it comes from a file, where quotes may enclose any value."""
        return unquote(text) if not self.words and (is_quoted or (self.repeat and self.commas)) else text

    def default_value(self) -> Any:
        """The default, parsed."""
        parse = parse_flag if self.flag else self.parse
        if self.repeat:
            return self.combine(tuple(parse(item) for item in self.split(self.default)))
        return parse(self.default)


def option(default: str, help: str, parse: Callable[[str], Any] = str, **properties: Any) -> Any:
    """A dataclass field that is an option; `properties` are Option's. The option's name is the field's unless given."""
    declared = Option(properties.pop("name", ""), default, help, parse, **properties)
    return field(default_factory=declared.default_value, metadata={_DECLARED: (declared,)})


def options_in(group: str) -> Callable[..., Any]:
    """`option` for the options of one group of --help."""
    return partial(option, group=group)


def made_from(*declared: Option) -> Any:
    """A dataclass field whose value is computed from several options; empty unless given."""
    return field(default=(), metadata={_DECLARED: declared})


def _declared(each: "Field[Any]") -> tuple[Option, ...]:
    found = each.metadata.get(_DECLARED, ())
    return tuple(replace(one, name=one.name or each.name.replace("_", "-")) for one in found)


def options_of(record: type) -> tuple[Option, ...]:
    """The options that a dataclass declares: its own, then those of its bases."""
    by_name = {each.name: each for each in fields(record)}
    names = [name for owner in record.__mro__ for name in inspect.get_annotations(owner)]
    return tuple(
        found for name in dict.fromkeys(names) if name in by_name for found in _declared(by_name[name])
    )


def values_of(record: object) -> Iterator[tuple[Option, Any]]:
    """Each option that has a field of its own, with its value in this record."""
    for each in fields(record):  # type: ignore[arg-type]
        if len(found := _declared(each)) == 1:
            yield found[0], getattr(record, each.name)


@dataclass(frozen=True, slots=True)
class SectionKind:
    """Sections of a file that have a name: [pool NAME] is of kind "pool". `options` are what they take."""

    name: str
    options: tuple[Option, ...]

    def __str__(self) -> str:
        return f"[{self.name} NAME]"


@dataclass(frozen=True, slots=True)
class SectionSettings:
    """What one section came to, by option name: values, the texts they were made from, and where each came from.

    A source is "command line", "--set", "environment X", "file:12" (the key's line) or "default"; `places` are the same
    for each item of a list. `replaced`: what weaker sources say, as (text, source), the default last. `begins` is
    file:line of the section, empty for a section that is in no file."""

    title: str
    begins: str
    values: Mapping[str, Any]
    texts: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, str]
    places: Mapping[str, tuple[str, ...]]
    replaced: Mapping[str, tuple[tuple[str, str], ...]]
    notes: tuple[str, ...] = field(default=())  # things worth a warning, none of which is an error

    @property
    def name(self) -> str:
        """Of [pool web] it is "web"."""
        return self.title.rpartition(" ")[2]

    def where(self, name: str, item: int | None = None) -> str:
        """The option, or one item of a list, as its user wrote it: to begin a sentence about it with."""
        return where(name, self.sources[name] if item is None else self.places[name][item], self.title)

    def refuse(self, name: str, sentence: str, item: int | None = None) -> ConfigError:
        """The error to raise about that option's value."""
        source = self.sources[name] if item is None else self.places[name][item]
        return error_at(source, f"{self.where(name, item)}: {sentence}")


def error_at(source: str, sentence: str) -> ConfigError:
    """The error about a value that came from `source`."""
    return (UsageError if source in ("command line", "--set", "default") else ConfigError)(sentence)


def where(name: str, source: str, title: str = "") -> str:
    """ "--port", "--set 'pool a: check'", "environment BALANCER_PORT" or "conf/balancer.ini:12: port"."""
    if source in ("command line", "default"):
        return f"--{name}"
    if source == "--set":
        return f"--set '{title}: {name}'"
    return source if source.startswith("environment ") else f"{source}: {name}"


def build(record: type[T], settings: SectionSettings, **computed: Any) -> T:
    """The record from the values of its options, `computed` fields as given."""
    values = {}
    for each in fields(record):  # type: ignore[arg-type]
        if len(found := _declared(each)) == 1:
            values[each.name] = settings.values[found[0].name]
    return record(**{**values, **computed})


FLAG_WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def parse_flag(text: str) -> bool:
    """true/yes/on/1 or false/no/off/0, in any case."""
    word = text.strip().lower()
    if word not in FLAG_WORDS:
        raise ValueError(f"{text!r} is neither yes nor no")
    return FLAG_WORDS[word]


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
