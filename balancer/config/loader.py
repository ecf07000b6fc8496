"""The options engine: command line over environment over INI file over default, each value with its source.

    argv -> canonical --name=value --\\
    environment (empty ones dropped) --> ConfigArgParse merges --> Option.parse per value --> SectionSettings
    INI file (strict reader, ini.py) -/

RULES: knows no particular option and prints nothing. Every error is a ConfigError of one sentence naming the flag, the
environment name or file:line and key; questions (--help, --version, --check-config, --print-config) end in a
CommandLineAnswer. A list given on a higher level replaces the lower one's.

ConfigArgParse decides precedence. What it gets avoids its defects: the command line arrives as --name=value only (it
takes `-p5` for absent and lets the environment win), booleans are ordinary values (its store_true cannot be set back to
false from the environment), lists come as lists, and the file comes from our own reader."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NoReturn, TextIO, TypeVar, cast

import configargparse

from balancer.config import usage
from balancer.config.common import NAMED_SECTIONS
from balancer.config.ini import Entry, did_you_mean, read_ini
from balancer.config.option import (
    CommandLineAnswer,
    ConfigError,
    Option,
    SectionSettings,
    UsageError,
    error_at,
    parse_flag,
    where,
)
from balancer.config.sources import canonical, environment_of, given_on, name_of, read_file
from balancer.config.streams import answer, complain

T = TypeVar("T")
Parse = TypeVar("Parse", bound=Callable[..., Any])  # of a command line, an environment and what else


class _Merger(configargparse.ArgumentParser):  # type: ignore[misc]
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


class _Entries(configargparse.ConfigFileParser):  # type: ignore[misc]
    """ConfigArgParse's file parser over what our own reader found."""

    def __init__(self, values: Mapping[str, str | list[str]]) -> None:
        super().__init__()
        self._values = values

    def parse(self, stream: TextIO) -> Mapping[str, str | list[str]]:
        """The values, whatever the stream."""
        return self._values


@dataclass(frozen=True, slots=True)
class Sources:
    """What was given for one section. `line`: --name=value words; `on_line`: their source's name. `variables`: the
    environment's name and text by option. `inherited`: the section whose values are the defaults here."""

    title: str
    line: Sequence[str] = ()
    on_line: str = "command line"
    variables: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    path: str = ""
    entries: Mapping[str, Entry] = field(default_factory=dict)
    inherited: SectionSettings | None = None
    begins: str = ""  # file:line of the section


def load(
    section: str,
    options: Sequence[Option],
    argv: Sequence[str],
    environ: Mapping[str, str],
    neighbours: Iterable[str] = (),
) -> SectionSettings:
    """Read every source once and parse every value of a program without named sections. Raises ConfigError.

    `neighbours` are the sections of other programs that may stand in the same file."""
    line = canonical(argv, options)
    texts, notes = environment_of(section, options, environ)
    path = config_path(line, texts)
    keys = keys_of(options)

    def complain(title: str, key: str) -> str:
        return "" if title != section or key in keys else f"key {key} is unknown{did_you_mean(key, keys)}"

    found = read_ini(path, read_file(path), (section, *neighbours), NAMED_SECTIONS, complain)
    if found and section not in found:
        raise ConfigError(f"{path} has no section [{section}]")
    variables = {option.name: option.environment(section) for option in options}
    return settle(
        options,
        Sources(
            section,
            line,
            variables={name: (variables[name], text) for name, text in texts.items()},
            path=path,
            entries=found[section].entries if found else {},
        ),
        notes,
    )


def config_path(line: Sequence[str], from_environment: Mapping[str, str]) -> str:
    """The file to read, which the command line or the environment names; empty for none."""
    return (given_on(line, "config") or [from_environment.get("config", "")])[-1]


def keys_of(options: Iterable[Option]) -> list[str]:
    """The INI keys of these options."""
    return [option.name for option in options if not option.command_line_only and option.name != "config"]


def settle(options: Sequence[Option], given: Sources, notes: tuple[str, ...] = ()) -> SectionSettings:
    """The value of each option in one section, with its source. Raises ConfigError."""
    merged = _merge(options, given)
    on_line = {name_of(word) for word in given.line}
    values: dict[str, Any] = {}
    texts: dict[str, tuple[str, ...]] = {}
    sources: dict[str, str] = {}
    places: dict[str, tuple[str, ...]] = {}
    replaced = {option.name: tuple(said(option, given)[1:]) for option in options}
    for option in options:
        name, raw = option.name, getattr(merged, option.field)
        below = given.inherited if raw is None and not option.named_only else None
        if below is not None:
            values[name], texts[name] = below.values[name], below.texts[name]
            sources[name], places[name] = below.sources[name], below.places[name]
            continue
        is_in_file = False
        if raw is None:
            sources[name], items = "default", [(option.default, "default")]
        elif name in on_line or name in given.variables:
            source = given.on_line if name in on_line else f"environment {given.variables[name][0]}"
            sources[name] = source
            items = [(text, source) for text in ([raw] if isinstance(raw, str) else raw)]
        else:
            is_in_file, entry = True, given.entries[name]
            sources[name] = f"{given.path}:{entry.line}"
            items = [(text, f"{given.path}:{number}") for number, text in entry.items]
        if option.repeat:
            items = [(part, place) for text, place in items for part in option.split(text)]
        items = [(option.bare(text, is_in_file), place) for text, place in items]
        parsed = [_parse(option, text, place, given.title) for text, place in items]
        values[name] = _combined(option, parsed, sources[name], given.title) if option.repeat else parsed[0]
        texts[name] = tuple(text for text, _ in items)
        places[name] = tuple(place for _, place in items)
    return SectionSettings(given.title, given.begins, values, texts, sources, places, replaced, notes)


def said(option: Option, given: Sources) -> list[tuple[str, str]]:
    """What each source says of an option, as (text, source): the one in force first, the default last."""
    name = option.name
    found = [(", ".join(texts), given.on_line) for texts in [given_on(given.line, name)] if texts]
    if name in given.variables:
        variable, text = given.variables[name]
        found.append((text, f"environment {variable}"))
    if name in given.entries and given.entries[name].items:
        entry = given.entries[name]
        found.append((", ".join(text for _, text in entry.items), f"{given.path}:{entry.line}"))
    below = given.inherited if not option.named_only else None
    if below is None:
        return [*found, (option.default, "default")]
    return [*found, (", ".join(below.texts[name]), below.sources[name]), *below.replaced[name]]


def _merge(options: Sequence[Option], given: Sources) -> configargparse.Namespace:
    """The text or texts of each option by ConfigArgParse's precedence, None where only the default is left."""
    entries: dict[str, str | list[str]] = {}
    for name, entry in given.entries.items():
        option = next(each for each in options if each.name == name)
        texts = [text for _, text in entry.items]
        if len(texts) > 1 and not option.repeat:
            raise ConfigError(f"{given.path}:{entry.line}: {name} takes one value, {len(texts)} are given")
        if texts:
            entries[name] = texts if option.repeat else texts[0]
    merger = _Merger(add_help=False, allow_abbrev=False, config_file_parser_class=_Entries(entries))
    variables = {}
    for option in options:
        variable, text = given.variables.get(option.name, (None, ""))
        action = "append" if option.repeat else "store"
        merger.add_argument(f"--{option.name}", action=action, env_var=variable)
        if variable is not None:
            variables[variable] = json.dumps(option.split(text)) if option.repeat else text
    merged, _ = merger.parse_known_args(list(given.line), config_file_contents="", env_vars=variables)
    return merged


def _combined(option: Option, parsed: Sequence[Any], source: str, title: str) -> Any:
    try:
        return option.combine(tuple(parsed))
    except ValueError as error:
        raise error_at(source, f"{where(option.name, source, title)}: {error}") from None


def _parse(option: Option, text: str, source: str, title: str) -> Any:
    try:
        if option.choices and text not in (*option.choices, option.default):
            choices = ", ".join(option.choices)
            raise ValueError(f"{text!r} is not one of {choices}{did_you_mean(text, option.choices)}")
        return parse_flag(text) if option.flag else option.parse(text)
    except ValueError as error:
        raise error_at(source, f"{where(option.name, source, title)}: {error}") from None
    except OSError as error:
        raise error_at(source, f"{where(option.name, source, title)}: {error.strerror}") from None


def answer_early(
    argv: Sequence[str], version: str, text: Callable[[], str], options: Sequence[Option] = ()
) -> None:
    """Raises CommandLineAnswer for --help and --version before anything is checked: the rest of the command line may be
    wrong. -h is help where the options say so."""
    helps = {"--help", "-help", *(f"-{each.short}" for each in options if each.name == "help" and each.short)}
    for word in argv:
        if word in helps:
            raise CommandLineAnswer(text())
        if word in ("--version", "-version"):
            raise CommandLineAnswer(version)


def answer_late(
    program: str,
    options: Sequence[Option],
    settings: SectionSettings,
    resolved: Mapping[str, str],
    named: Sequence[tuple[Sequence[Option], SectionSettings]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Raises CommandLineAnswer for --print-config and --check-config; to be called when every cross check has passed."""
    if settings.values["print-config"]:
        raise CommandLineAnswer(usage.print_config(options, settings, resolved, named))
    if settings.values["check-config"]:
        raise CommandLineAnswer(
            "\n".join([*(f"{program}: note: {note}" for note in notes), f"{program}: configuration OK"])
        )


def notes_near_misses(section: str, options: Sequence[Option]) -> Callable[[Parse], Parse]:
    """For a program's parse function: a refusal carries the notes on variables that are nearly ours (add_note). What is
    missing may stand in one of them."""

    def around(parse: Parse) -> Parse:
        @wraps(parse)
        def noting(argv: Sequence[str], environ: Mapping[str, str], *more: Any, **named: Any) -> Any:
            try:
                return parse(argv, environ, *more, **named)
            except ConfigError as error:
                for note in environment_of(section, options, environ)[1]:
                    error.add_note(note)
                raise

        return cast(Parse, noting)

    return around


def ask(program: str, act: Callable[[], T]) -> T:
    """For entry points: act(), with answers and errors turned into text and SystemExit (0, or 1 for an answer that cannot
    be written, and 2)."""
    try:
        return act()
    except CommandLineAnswer as text:
        sys.exit(answer(program, str(text)))
    except ConfigError as error:
        for note in getattr(error, "__notes__", ()):
            complain(program, f"note: {note}")
        complain(program, f"{error} (see {program} --help)" if isinstance(error, UsageError) else str(error))
        sys.exit(2)
