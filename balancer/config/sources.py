"""The sources of values, each read once and as text: the command line, the environment, the file.

RULES: knows no particular option; parses no value. Every refusal is a ConfigError that names its place."""

import difflib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence

from balancer.config import usage
from balancer.config.ini import did_you_mean
from balancer.config.option import FLAG_WORDS, ConfigError, Option, UsageError
from balancer.config.units import format_size

LONGEST_FILE = 1 << 20  # characters; 100 MB of comments kept a master from its signals for 6 s


def canonical(argv: Sequence[str], options: Sequence[Option]) -> list[str]:
    """The command line as --name=value words only.

    Accepts -p 5, -p5, --port=5, --port 5, --debug, --no-debug, --debug=false, --debug no, and Go's -port 5, -port=5."""
    # A key of sections with a name may be called as an option is.
    table = {option.name: option for option in sorted(options, key=lambda one: not one.named_only)}
    shorts = {option.short: option for option in options if option.short}
    words = list(reversed(argv))
    line: list[str] = []
    while words:
        word = words.pop()
        if not word.startswith("-") or word in ("-", "--"):
            raise UsageError(f"{word!r} was not expected; every value follows an option")
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
            near = did_you_mean(name, [each.name for each in options if not each.named_only], "--")
            raise UsageError(f"option {word.partition('=')[0]} is unknown{near}")
        if option.named_only:
            raise UsageError(
                f"--{name} is no option: only a section with a name takes {name}; use --set 'SECTION: {name}=...'"
            )
        if not equals and option.flag:
            value = words.pop() if words and words[-1].lower() in FLAG_WORDS else "yes"
        elif not equals:
            if not words or (words[-1][:1] == "-" and not words[-1][1:2].isdigit()):
                raise UsageError(f"--{option.name} needs a value ({usage.metavar(option)})")
            value = words.pop()
        line.append(f"--{option.name}={value}")
    return line


def name_of(word: str) -> str:
    """The option of a canonical word."""
    return word[2:].partition("=")[0]


def given_on(line: Sequence[str], name: str) -> list[str]:
    """The values of one option on a canonical command line."""
    return [word.partition("=")[2] for word in line if name_of(word) == name]


def prefix_of(section: str) -> str:
    """What the environment names of a program begin with."""
    return section.replace("-", "_").upper() + "_"


def is_service_link(text: str) -> bool:
    """Kubernetes and Docker links invent RESIZER_PORT=tcp://10.0.0.1:80 for a service of that name: no value of ours."""
    return text.startswith(("tcp://", "udp://"))


def environment_of(
    section: str, options: Sequence[Option], environ: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Texts by option name, and notes on near misses. Empty ones are left out: they are a compose file's "not set"."""
    names = {option.environment(section): option for option in options if not option.command_line_only}
    found: dict[str, str] = {}
    notes: list[str] = []
    for key, text in environ.items():
        if not text.strip() or is_service_link(text):
            continue
        if key in names:
            found[names[key].name] = text.strip()
        elif near := near_miss(key, prefix_of(section), names):
            notes.append(f"environment {key} is not an option and is ignored; did you mean {near}?")
    return found, tuple(notes)


def near_miss(key: str, prefix: str, names: Iterable[str]) -> str:
    """The name that was probably meant: by balancer_port, BALANCERPORT, BALANCER_MAXCON; "" for none. What does not begin
    with the prefix is another program's unless nearly all of it is alike."""
    spelling = key.upper().replace("-", "_").replace(".", "_")
    if spelling.startswith(prefix + "_") or spelling[:1] != prefix[:1]:
        return ""
    alike = 0.85 if spelling.startswith(prefix) else 0.92
    return next(iter(difflib.get_close_matches(spelling, names, n=1, cutoff=alike)), "")


def read_file(path: str) -> str:
    """The text of a regular UTF-8 file; nothing when there is no path. Raises ConfigError."""
    if not path:
        return ""
    try:
        # Not blocking: open() of a named pipe waits for its writer, and the reader may be a serving master.
        with open(path, encoding="utf-8-sig", opener=_open_at_once) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigError(f"cannot read configuration file {path}: it is not a regular file")
            text = stream.read(LONGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read configuration file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read configuration file {path}: it is not UTF-8 text") from None
    if len(text) > LONGEST_FILE:
        raise ConfigError(
            f"cannot read configuration file {path}: it has more than {format_size(LONGEST_FILE)}"
        )
    return text


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
