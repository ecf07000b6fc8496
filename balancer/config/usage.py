"""Texts made from an option table: --help, --print-config and the Markdown tables of the README.

RULES: pure; knows no particular option. One table feeds all three, so that none of them can tell another
story."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from balancer.config.option import Option, SectionSettings, values_of
from balancer.config.units import (
    format_duration,
    parse_count,
    parse_duration,
    parse_positive_duration,
    parse_size,
    parse_timeout,
)

_DURATIONS = (parse_duration, parse_positive_duration, parse_timeout)
_SHAPES: dict[object, str] = {parse_size: "SIZE", parse_count: "N"}
_SHAPES.update(dict.fromkeys(_DURATIONS, "TIME"))
_WIDTH = 100
_INDENT = 30
_UNITS = (
    "Durations are written 250ms, 5s, 10m, 1h (a bare number is seconds), sizes 64k, 32m, 1g (powers of "
    "1024), counts 1000, 50m (powers of 1000)."
)


def metavar(option: Option) -> str:
    """What stands for the value: the option's own word, its choices, or its name."""
    shape = _SHAPES.get(option.parse, "")
    return option.metavar or "|".join(option.choices) or shape or option.name.rpartition("-")[2].upper()


def shown_default(option: Option) -> str:
    """The default as a user would write it; where that is empty, what it means."""
    return option.default or option.unset or "none"


def shown(option: Option, value: Any) -> str:
    """A value as a user would write it."""
    if option.flag:
        return "yes" if value else "no"
    if option.parse in _DURATIONS:
        return format_duration(value)
    if option.repeat:
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def summary(record: object) -> list[tuple[str, str]]:
    """(name, value) of each option in a record: what a reload compares and reports."""
    return [
        (option.name, shown(option, value) or option.unset)
        for option, value in values_of(record)
        if option.name != "config"
    ]


def _spelling(option: Option) -> str:
    short = f"-{option.short}, " if option.short else "    "
    if option.flag:
        return f"{short}--{option.name}" if option.command_line_only else f"{short}--[no-]{option.name}"
    return f"{short}--{option.name} {metavar(option)}"


def _entry(option: Option, section: str) -> str:
    default = shown_default(option)
    notes = [default if default == "required" else f"default {default}", option.environment(section)]
    if option.command_line_only:
        notes = []
    if option.repeat:
        notes.insert(0, "repeatable")
    text = option.help + (f" [{'; '.join(notes)}]" if notes else "")
    body = textwrap.wrap(text, _WIDTH - _INDENT, break_on_hyphens=False, break_long_words=False)
    head = f"  {_spelling(option)}"
    if len(head) < _INDENT - 1:
        head = head.ljust(_INDENT) + body.pop(0)
    return "\n".join([head, *(" " * _INDENT + line for line in body)])


def groups(options: Iterable[Option]) -> dict[str, list[Option]]:
    """Options by group, in the order in which groups first appear."""
    found: dict[str, list[Option]] = {}
    for option in options:
        found.setdefault(option.group, []).append(option)
    return found


def help_text(program: str, about: str, example: str, section: str, options: Sequence[Option]) -> str:
    """What --help prints: purpose, an example, every option by group with unit, default and environment
    name."""
    parts = [f"{program}: {about}", f"Example:\n  {example}"]
    for group, members in groups(options).items():
        parts.append("\n".join([f"{group}:", *(_entry(option, section) for option in members)]))
    prefix = section.replace("-", "_").upper()
    parts.append(
        textwrap.fill(
            f"Each option is also a key of section [{section}] in the file given with -c, and the "
            f"environment variable in its brackets ({prefix}_...; a list is separated by commas). "
            "The command line wins over the environment, the environment over the file, the file over the "
            f"default; --print-config shows what won. {_UNITS}",
            _WIDTH,
        )
    )
    return "\n\n".join(parts)


def print_config(options: Iterable[Option], settings: SectionSettings, resolved: Mapping[str, str]) -> str:
    """A file that could be read back: every value, and behind it where it came from.

    `resolved` adds what "auto" and an empty path came to."""
    lines = [f"[{settings.section}]"]
    for option in options:
        if option.command_line_only or option.name == "config":
            continue
        text, value = settings.texts[option.name], settings.values[option.name]
        if option.parse in _DURATIONS:
            text = format_duration(
                value
            )  # a bare number is seconds here and milliseconds elsewhere: show the unit
        quoted = f'"{text}"' if text != text.strip() or " #" in text or " ;" in text else text
        comment = settings.sources[option.name]
        if resolved.get(option.name, text) != text:
            comment += f", which is {resolved[option.name]}"
        lines.append(f"{f'{option.name} = {quoted}'.rstrip():<44} ; {comment}")
    return "\n".join(lines)


def markdown_table(section: str, options: Iterable[Option]) -> str:
    """The README's table of one program. The INI key is the flag without its dashes, so it has no column of
    its own."""
    rows = ["| Option | Default | Environment | Meaning |", "| --- | --- | --- | --- |"]
    for option in options:
        spelled = f"`-{option.short}`, `--{option.name}`" if option.short else f"`--{option.name}`"
        default = f"`{option.default}`" if option.default else option.unset or "none"
        name = "" if option.command_line_only else f"`{option.environment(section)}`"
        text = option.help + (f" ({', '.join(option.choices)})" if option.choices else "")
        cells = (cell.replace("|", "\\|") for cell in (spelled, default, name, text))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
