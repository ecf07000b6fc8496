"""Texts made from an option table: --help, --print-config and the Markdown tables of the README.

RULES: knows no particular option. All texts are made from the same table, so that they cannot differ. --help fits the
width of the terminal (layout.py)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from balancer.config import layout
from balancer.config.option import Option, SectionKind, SectionSettings, values_of
from balancer.config.units import (
    format_duration,
    parse_count,
    parse_duration,
    parse_positive_duration,
    parse_size,
    parse_timeout,
)
from balancer.config.words import enclose

_DURATIONS = (parse_duration, parse_positive_duration, parse_timeout)
_SHAPES: dict[object, str] = {parse_size: "SIZE", parse_count: "N"}
_SHAPES.update(dict.fromkeys(_DURATIONS, "TIME"))
_UNITS = (
    "Durations are written 250ms, 5s, 10m, 1h (a bare number is seconds), sizes 64k, 32m, 1g (powers of "
    "1024), counts 1000, 50m (powers of 1000)."
)


def metavar(option: Option) -> str:
    """The word for the value in a usage line: the option's own, its choices, or the last word of its name."""
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
    if isinstance(value, tuple) and option.repeat:
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
    if option.named_only:
        return f"    {option.name} = {metavar(option)}"
    if option.flag:
        return f"{short}--{option.name}" if option.command_line_only else f"{short}--[no-]{option.name}"
    return f"{short}--{option.name} {metavar(option)}"


def _entry(option: Option, section: str) -> tuple[str, str]:
    default = shown_default(option)
    is_required = not option.default and option.unset == "required"
    notes = [default if is_required else f"default {default}", option.environment(section)]
    if option.command_line_only or option.named_only:
        notes = []
    if option.repeat:
        notes.insert(0, "one a line" if option.named_only else "repeatable")
    text = option.help + (f" [{'; '.join(notes)}]" if notes else "")
    return f"{_spelling(option)}", text


def groups(options: Iterable[Option]) -> dict[str, list[Option]]:
    """Options by group, in the order in which groups first appear."""
    found: dict[str, list[Option]] = {}
    for option in options:
        found.setdefault(option.group, []).append(option)
    return found


def help_text(
    program: str,
    about: str,
    example: str,
    section: str,
    options: Sequence[Option],
    kinds: Sequence[SectionKind] = (),
) -> str:
    """What --help prints: purpose, an example, every option by group with unit, default and environment name, and what
    the sections with a name take."""
    parts = [layout.filled(f"{program}: {about}"), f"Example:\n{layout.command(example)}"]
    for group, members in groups(options).items():
        parts.append(f"{group}:\n{layout.table(_entry(option, section) for option in members)}")
    if kinds:
        parts.append(_sections_help(section, kinds))
    prefix = section.replace("-", "_").upper()
    parts.append(
        layout.filled(
            f"Each option is also a key of section [{section}] in the file given with -c, and the "
            f"environment variable in its brackets ({prefix}_...; a list is separated by commas). "
            "The command line wins over the environment, the environment over the file, the file over the "
            f"default; --print-config shows what won. {_UNITS}"
        )
    )
    return "\n\n".join(parts)


def _sections_help(section: str, kinds: Sequence[SectionKind]) -> str:
    """What the sections with a name take and who wins, for --help."""
    names = " and ".join(f"{kind.name}s" for kind in kinds)
    program, kind = section.replace("-", "_").upper(), kinds[-1]
    key = next(option.name for option in kind.options if option.choices)
    rows: list[tuple[str, str]] = []
    for each in kinds:
        rows.append((str(each), " ".join(option.name for option in each.options if not option.named_only)))
        rows += [_entry(option, section) for option in each.options if option.named_only]
    parts = [
        layout.filled(
            f"Sections of the file, for several {names}. [{section}] then holds what concerns the process, and the "
            "defaults of all:"
        ),
        layout.table(rows),
        layout.filled(
            f"--set '{kind.name} a: {key}=...' wins over the environment variable {program}__{kind.name.upper()}_A__"
            f"{key.upper()}, that over [{kind.name} a] in the file, that over what is set for [{section}] anywhere."
        ),
    ]
    return "\n".join(parts)


def print_config(
    options: Iterable[Option],
    settings: SectionSettings,
    resolved: Mapping[str, str],
    named: Sequence[tuple[Sequence[Option], SectionSettings]] = (),
) -> str:
    """A file that could be read back: every value, and behind it where it came from.

    `resolved` adds what "auto" and an empty path came to. `named` are the sections with a name; what they inherit stands
    in them, and no more in the program's own."""
    taken = {option.name for kind, _ in named for option in kind}
    parts = [_section_text([option for option in options if option.name not in taken], settings, resolved)]
    parts += [_section_text(kind, each, {}) for kind, each in named]
    return "\n\n".join(parts)


def _section_text(options: Iterable[Option], settings: SectionSettings, resolved: Mapping[str, str]) -> str:
    lines = [f"[{settings.title}]"]
    for option in options:
        if option.command_line_only or option.name == "config":
            continue
        if settings.begins and not option.inherited and settings.sources[option.name] == "default":
            continue  # of port and bind, or of pool and route, one is enough
        texts = [quoted(option, text) for text in settings.texts[option.name]]
        if (
            option.parse in _DURATIONS
        ):  # a bare number is seconds here and milliseconds elsewhere: show the unit
            texts = [format_duration(settings.values[option.name])]
        comment = settings.sources[option.name]
        if option.name in resolved and resolved[option.name] not in texts:
            comment += f", which is {resolved[option.name]}"
        first = texts.pop(0) if len(texts) == 1 else ""
        lines.append(f"{f'{option.name} = {first}'.rstrip():<44} ; {comment}")
        lines += [f"    {text}" for text in texts]
    return "\n".join(lines)


def quoted(option: Option, text: str) -> str:
    """A value as it has to stand in a file to be read back unchanged."""
    special = text != text.strip() or re.search(r"(^|\s)[;#]", text) or text[:1] in ('"', "'")
    if option.words or not (special or (option.repeat and option.commas and "," in text)):
        return text
    return enclose(text)


def markdown_table(section: str, options: Iterable[Option], kinds: Sequence[SectionKind] = ()) -> str:
    """The README's table of one program. The INI key is the flag without its dashes, so it has no column of its own; with
    `kinds`, a column says which sections take it."""
    heads = ["Option", "Default", "Environment", *(["Section"] if kinds else []), "Meaning"]
    rows = [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    for option in options:
        spelled = f"`-{option.short}`, `--{option.name}`" if option.short else f"`--{option.name}`"
        default = f"`{option.default}`" if option.default else option.unset or "none"
        name = f"`{option.environment(section)}`"
        if option.named_only:
            spelled, name = f"`{option.name}`", ""
        if option.command_line_only:
            name = ""
        text = option.help + (f" ({', '.join(option.choices)})" if option.choices else "")
        column = [_takers(option, section, kinds)] if kinds else []
        cells = (cell.replace("|", "\\|") for cell in (spelled, default, name, *column, text))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _takers(option: Option, section: str, kinds: Sequence[SectionKind]) -> str:
    """Which sections take a key, for the README."""
    found = [f"`{kind.name}`" for kind in kinds if option in kind.options]
    if option.command_line_only or option.name == "config":
        return ""
    if not found:
        return f"`{section}`"
    if option.named_only:
        return found[0]
    return f"{found[0]}, `{section}`" if option.inherited else f"{found[0]}, or `{section}` alone"
