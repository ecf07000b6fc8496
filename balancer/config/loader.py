"""The options engine: command line over environment over INI file over default, each value with its source.

    argv -> canonical --name=value --\\
    environment (empty ones dropped) --> ConfigArgParse merges --> Option.parse per value --> SectionSettings
    INI file (strict reader, ini.py) -/

RULES: knows no particular option and prints nothing. Every error is a ConfigError of one sentence naming the
flag, the environment name or file:line and key; questions (--help, --version, --check-config, --print-config)
end in an CommandLineAnswer. A list given on a higher level replaces the lower one's.

ConfigArgParse decides precedence; it is fed so that its traps cannot spring: the command line arrives as
--name=value only (it takes `-p5` for absent and lets the environment win), booleans are ordinary values (its
store_true cannot be set back to false from the environment), lists come as lists, and the file comes from our
own reader. """

import difflib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import configargparse

from balancer.config import usage
from balancer.config.ini import IniFile, did_you_mean
from balancer.config.option import CommandLineAnswer, ConfigError, Option, SectionSettings, parse_flag, where
from balancer.config.units import format_size

T = TypeVar("T")
LONGEST_FILE = 1 << 20  # characters; 100 MB of comments kept a master from its signals for 6 s


class _Merger(configargparse.ArgumentParser):  # type: ignore[misc]
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def load(
    program: str,
    section: str,
    options: Sequence[Option],
    argv: Sequence[str],
    environ: Mapping[str, str],
    neighbours: Iterable[str] = (),
) -> SectionSettings:
    """Read every source once and parse every value. Raises ConfigError.

    `neighbours` are the sections of other programs that may stand in the same file."""
    table = {option.name: option for option in options}
    line = canonical(argv, options)
    env, notes = _environment(section, options, environ)
    path = _config_path(line, env.get("config", ""))
    ini = IniFile(
        path,
        section,
        (name for name, option in table.items() if not option.command_line_only and name != "config"),
        (name for name, option in table.items() if option.repeat),
        neighbours,
    )
    merged = _merge(program, section, table, ini, line, env)
    on_line = {word[2:].partition("=")[0] for word in line}
    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    sources: dict[str, str] = {}
    for option in options:
        raw = getattr(merged, option.field)
        if raw is None:
            source = "default"
        elif option.name in on_line:
            source = "command line"
        elif option.name in env:
            source = f"environment {option.environment(section)}"
        else:
            source = f"{path}:{ini.lines[option.name]}"
        sources[option.name] = source
        items = _items(option, raw)
        values[option.name] = _parse(option, items, source)
        texts[option.name] = ", ".join(items)
    return SectionSettings(section, values, texts, sources, notes)


def _merge(
    program: str,
    section: str,
    table: Mapping[str, Option],
    ini: IniFile,
    line: list[str],
    env: Mapping[str, str],
) -> configargparse.Namespace:
    """ConfigArgParse's part: what each option ends up as, None where only the default is left."""
    merger = _Merger(prog=program, add_help=False, allow_abbrev=False, config_file_parser_class=ini)
    for option in table.values():
        name = None if option.command_line_only else option.environment(section)
        merger.add_argument(f"--{option.name}", action="append" if option.repeat else "store", env_var=name)
    variables = {}
    for name, text in env.items():
        option = table[name]
        variables[option.environment(section)] = json.dumps(option.split(text)) if option.repeat else text
    merged, _ = merger.parse_known_args(line, config_file_contents=_read(ini.path), env_vars=variables)
    return merged


def canonical(argv: Sequence[str], options: Sequence[Option]) -> list[str]:
    """The command line as --name=value words only.

    Accepts -p 5, -p5, --port=5, --port 5, --debug, --no-debug, --debug=false, and Go's -port 5 and
    -port=5."""
    table = {option.name: option for option in options}
    shorts = {option.short: option for option in options if option.short}
    words = list(reversed(argv))
    line: list[str] = []
    while words:
        word = words.pop()
        if not word.startswith("-") or word in ("-", "--"):
            raise ConfigError(f"{word!r} was not expected; every value follows an option")
        name, equals, value = word.lstrip("-").partition("=")
        option = table.get(name)
        negated = table.get(name[3:]) if name.startswith("no-") and not equals else None
        if option is None and negated is not None and negated.flag:
            line.append(f"--{negated.name}=no")
            continue
        if option is None and not word.startswith("--") and (option := shorts.get(word[1])):
            value = word[2:].removeprefix("=")
            equals = word[2:]
        if option is None:
            known = [f"--{known}" for known in table]
            raise ConfigError(f"option {word.partition('=')[0]} is unknown{did_you_mean('--' + name, known)}")
        if not equals and option.flag:
            value = "yes"
        elif not equals:
            if not words or (words[-1][:1] == "-" and not words[-1][1:2].isdigit()):
                raise ConfigError(f"--{option.name} needs a value ({usage.metavar(option)})")
            value = words.pop()
        line.append(f"--{option.name}={value}")
    return line


def _environment(
    section: str, options: Sequence[Option], environ: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Texts by option name, without the empty ones (compose files write those for "not set"), and notes on
    near misses.

    Kubernetes and Docker links invent RESIZER_PORT=tcp://10.0.0.1:80 for a service of that name: not a value
    of ours."""
    names = {option.environment(section): option for option in options if not option.command_line_only}
    found: dict[str, str] = {}
    notes: list[str] = []
    prefix = section.replace("-", "_").upper() + "_"
    for key, text in environ.items():
        if not key.startswith(prefix) or not text.strip():
            continue
        if key in names:
            if not text.startswith(("tcp://", "udp://")):
                found[names[key].name] = text.strip()
        elif near := difflib.get_close_matches(key, names, n=1, cutoff=0.85):
            notes.append(f"environment {key} is not an option and is ignored; did you mean {near[0]}?")
    return found, tuple(notes)


def _config_path(line: list[str], from_environment: str) -> str:
    given = [word.partition("=")[2] for word in line if word.startswith("--config=")]
    return given[-1] if given else from_environment


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _read(path: str) -> str:
    if not path:
        return ""
    try:
        # Not blocking: whoever opens a named pipe waits for its writer, and the reader may be a serving master.
        with open(path, encoding="utf-8-sig", opener=_open_at_once) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigError(f"cannot read configuration file {path}: it is not a regular file")
            text = stream.read(LONGEST_FILE + 1)
            if len(text) > LONGEST_FILE:
                limit = format_size(LONGEST_FILE)
                raise ConfigError(f"cannot read configuration file {path}: it has more than {limit}")
            return text
    except OSError as error:
        raise ConfigError(f"cannot read configuration file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read configuration file {path}: it is not UTF-8 text") from None


def _items(option: Option, raw: str | list[str] | None) -> list[str]:
    """The texts to parse: one for a plain option, any number for a repeatable one."""
    if option.repeat:
        given = [option.default] if raw is None else raw
        return [item for text in given for item in option.split(text)]
    return [option.default if raw is None else str(raw)]


def _parse(option: Option, items: list[str], source: str) -> Any:
    parse = parse_flag if option.flag else option.parse
    try:
        for item in items:
            if option.choices and item not in option.choices:
                choices = ", ".join(filter(None, option.choices))
                raise ValueError(f"{item!r} is not one of {choices}{did_you_mean(item, option.choices)}")
        parsed = [parse(item) for item in items]
    except ValueError as error:
        raise ConfigError(f"{where(option.name, source)}: {error}") from None
    return tuple(parsed) if option.repeat else parsed[0]


def answer_early(argv: Sequence[str], version: str, text: Callable[[], str]) -> None:
    """Raises CommandLineAnswer for --help and --version before anything is checked: whoever asks may have got something
    wrong."""
    for word in argv:
        if word in ("--help", "-help"):
            raise CommandLineAnswer(text())
        if word in ("--version", "-version"):
            raise CommandLineAnswer(version)


def answer_late(
    program: str, options: Sequence[Option], settings: SectionSettings, resolved: Mapping[str, str]
) -> None:
    """Raises CommandLineAnswer for --print-config and --check-config; to be called when every cross check has passed."""
    if settings.values["print-config"]:
        raise CommandLineAnswer(usage.print_config(options, settings, resolved))
    if settings.values["check-config"]:
        raise CommandLineAnswer(f"{program}: configuration OK")


def ask(program: str, parse: Callable[[], T]) -> T:
    """For entry points: parse(), with errors and answers turned into text and SystemExit (2 and 0)."""
    try:
        return parse()
    except CommandLineAnswer as answer:
        print(answer)
        sys.exit(0)
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
