"""The command line of balancerctl: commands, options in any order, and the texts about them.

RULES: pure. Every refusal is a UsageError of one sentence; --help and --version end in a CommandLineAnswer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from balancer import __version__
from balancer.config import layout
from balancer.config.ini import did_you_mean
from balancer.config.option import CommandLineAnswer, UsageError
from balancer.config.units import parse_duration

PROGRAM = "balancerctl"
ABOUT = "looks into a running balancer and steers it"


@dataclass(frozen=True, slots=True)
class Command:
    """`arguments`: the words behind it; `is_act`: it changes something, so it takes a reason."""

    arguments: tuple[str, ...]
    help: str
    is_act: bool = True


COMMANDS = {
    "status": Command((), "listeners, pools, backends and workers, and whether clients can be served", False),
    "top": Command(
        (),
        "a live view: rates, listeners, pools, backends, workers, events; keys sort, filter, drain and ready",
        False,
    ),
    "events": Command((), "the last 500 events: what went up or down, and what operators did", False),
    "sources": Command(
        (), "clients with the most sessions and refused ones, where a listener has source limits", False
    ),
    "sessions": Command((), "the sessions that are open, of all workers", False),
    "explain": Command(
        (),
        "which way a client would go, and why: route, pool, each backend; or where an option's value is from",
        False,
    ),
    "info": Command((), "version, configuration, processes", False),
    "listeners": Command((), "the listeners of the status", False),
    "pools": Command((), "its pools", False),
    "backends": Command((), "its backends", False),
    "dns": Command(
        (), "sets of backends (dns:, srv:): server, last answer, TTL left, error, backends", False
    ),
    "certificates": Command((), "each certificate: names, issuer, when it expires, who presents it", False),
    "errors": Command(
        (),
        "how many sessions were refused or failed, the last of them with the reason, and what failed at backends",
        False,
    ),
    "wait": Command(
        ("[NAME...]", "CONDITION"),
        "return when it is so: ready (a client can be served), idle (no session is open), or of backends NAME... up, "
        "down, drained (no session is left)",
        False,
    ),
    "kill": Command(("[ID]",), "close sessions: the one of an ID, or all that the options name"),
    "drain": Command(("NAME...",), "no new sessions for these backends; open ones go on"),
    "ready": Command(("NAME...",), "take new sessions again, with the configured weight and maxconn"),
    "maint": Command(("NAME...",), "as drain, and they are not checked"),
    "weight": Command(("NAME", "N"), "change a backend's weight, 0 to 256; 0 is no new sessions"),
    "maxconn": Command(
        ("NAME", "N"),
        "change how many sessions a backend takes, until a reload changes something; 0 is no limit",
    ),
    "add": Command(
        ("POOL", "ADDRESS", "[weight=N]"),
        "give a pool one more backend until the next reload: 10.0.0.9:80, [2001:db8::9]:80",
    ),
    "remove": Command(("POOL", "ADDRESS|NAME"), "take such a backend away again; its open sessions go on"),
    "workers": Command(("[N]",), "the workers; with N, set their number without losing a connection"),
    "record": Command(
        ("TIME",), "record the elections of sessions for this time, for explain --session; 0 ends it"
    ),
    "reload": Command(
        ("[certificates]",),
        "read the configuration again; tells what changed, or why the old one stays; with certificates only those, into "
        "the living workers",
    ),
}
VIEWS = ("info", "listeners", "pools", "backends", "dns", "errors", "workers")  # parts of the status
ACTS = tuple(name for name, command in COMMANDS.items() if command.is_act)


STATES = ("drain", "ready", "maint")
WAITS_OF_BALANCER = ("ready", "idle")
WAITS_OF_BACKENDS = ("up", "down", "drained")


@dataclass(frozen=True, slots=True)
class Flag:
    """An option; `value` is the word for its value in texts, empty where it takes none. `commands`: those it goes with,
    empty for all."""

    name: str
    help: str
    value: str = ""
    short: str = ""
    commands: tuple[str, ...] = ()

    @property
    def spelling(self) -> str:
        short = f"-{self.short}, " if self.short else ""
        return f"{short}--{self.name}{' ' if self.value else ''}{self.value}"


FLAGS = (
    Flag("admin", "the admin socket, or BALANCER_ADMIN; unset, it is found by the port", "PATH"),
    Flag("port", "the balancer's port, or BALANCER_PORT", "N", "p"),
    Flag("json", "print what the balancer answers as JSON, for scripts"),
    Flag("reason", "why, for the log and the events", "TEXT", commands=ACTS),
    Flag("pool", "sessions of this pool", "NAME", commands=("sessions", "kill")),
    Flag("backend", "sessions of this backend", "NAME", commands=("sessions", "kill")),
    Flag("client", "sessions of this address or network", "ADDRESS", commands=("sessions", "kill")),
    Flag("older", "sessions of this age and above: 90s, 5m, 1h", "TIME", commands=("sessions", "kill")),
    Flag("draining", "sessions of workers that a reload has replaced", commands=("sessions", "kill")),
    Flag("listener", "the client's listener; the only one needs no name", "NAME", commands=("explain",)),
    Flag("source", "the client's address", "ADDRESS", commands=("explain",)),
    Flag("sni", "the name that it asks for with TLS", "NAME", commands=("explain",)),
    Flag("session", "what the elections of this session saw, if recorded", "ID", commands=("explain",)),
    Flag(
        "option",
        "where the value of this option comes from, and what it replaces",
        "NAME",
        commands=("explain",),
    ),
    Flag(
        "wait",
        "return when no session is left there (drain, maint), or when it is up (ready)",
        commands=STATES,
    ),
    Flag("timeout", "of wait and --wait: give up after this time", "TIME", commands=("wait", *STATES)),
    Flag("follow", "go on with what happens from now on, until Ctrl-C", short="f", commands=("events",)),
    Flag("version", "print the version and exit"),
    Flag("help", "print this and exit", short="h"),
)
CONDITIONS = (
    "pool",
    "backend",
    "client",
    "older",
    "draining",
    "listener",
    "source",
    "sni",
    "option",
    "session",
)
EXAMPLES = (
    "balancerctl status",
    "balancerctl -p 9090 status --json",
    "balancerctl drain web-2 --reason 'new disk'",
    "balancerctl drain 'api/*' --wait",
    "balancerctl sessions --backend web-2 --older 1h",
    "balancerctl explain --source 10.0.0.9",
    "balancerctl explain --option idle-timeout",
    "balancerctl weight web-1 4",
    "balancerctl add web 10.0.0.9:80 weight=2 --reason 'sale'",
    "balancerctl wait ready --timeout 30s",
    "balancerctl events --follow",
    "balancerctl sources",
)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """`words`: the command and its arguments; `options`: name -> value, "" of a flag."""

    words: tuple[str, ...]
    options: dict[str, str] = field(default_factory=dict)

    @property
    def command(self) -> str:
        return self.words[0]

    @property
    def port(self) -> int | None:
        return int(self.options["port"]) if "port" in self.options else None


def parse(argv: Sequence[str]) -> CommandLine:
    """Raises UsageError, or CommandLineAnswer for --help and --version."""
    words: list[str] = []
    options: dict[str, str] = {}
    rest = list(reversed(argv))
    while rest:
        word = rest.pop()
        if word == "--":
            words += reversed(rest)
            break
        if word[:1] != "-" or word == "-" or word[1:2].isdigit():  # -1 is a weight that the balancer refuses
            words.append(word)
            continue
        flag, given = flag_of(word)
        if not flag.value and given is not None:
            raise UsageError(f"--{flag.name} takes no value")
        if flag.value and given is None:
            if not rest:
                raise UsageError(f"--{flag.name} needs a value ({flag.value})")
            given = rest.pop()
        options[flag.name] = given or ""
    if "help" in options:
        raise CommandLineAnswer(help_text())
    if "version" in options:
        raise CommandLineAnswer(f"{PROGRAM} {__version__}")
    line = CommandLine(tuple(words), options)
    check(line)
    return line


def flag_of(word: str) -> tuple[Flag, str | None]:
    """The option of a word, and the value that it carries. Raises UsageError."""
    name, equals, value = word.lstrip("-").partition("=")
    for flag in FLAGS:
        if name == flag.name or (name == flag.short and not word.startswith("--")):
            return flag, value if equals else None
        if flag.value and flag.short and word[1] == flag.short:  # -p9090
            return flag, word[2:].removeprefix("=")
    near = did_you_mean(name, [flag.name for flag in FLAGS], "--")
    raise UsageError(f"option {word.partition('=')[0]} is unknown{near}")


def check(line: CommandLine) -> None:
    """Raises UsageError when the words and the options do not go together."""
    if not line.words:
        raise UsageError(f"no command; there are: {', '.join(COMMANDS)}")
    command = COMMANDS.get(line.command)
    if command is None:
        near = did_you_mean(line.command, COMMANDS)
        raise UsageError(f"unknown command {line.command!r}{near or '; there are: ' + ', '.join(COMMANDS)}")
    least = sum(not one.startswith("[") for one in command.arguments)
    most = inf if any("..." in one for one in command.arguments) else len(command.arguments)
    if not least <= len(line.words) - 1 <= most:
        raise UsageError(f"usage: {' '.join((PROGRAM, line.command, *command.arguments))}")
    if any("\n" in word for word in line.words):
        raise UsageError("a name has no line end in it")
    for flag in FLAGS:
        if flag.name in line.options and flag.commands and line.command not in flag.commands:
            raise UsageError(f"--{flag.name} goes with {', '.join(flag.commands)}, not with {line.command}")
    times = {f"--{name}": line.options[name] for name in ("older", "timeout") if name in line.options}
    if line.command == "record":
        times["record"] = line.words[1]
    for name, text in times.items():
        try:
            parse_duration(text)
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from None
    if "timeout" in line.options and line.command != "wait" and "wait" not in line.options:
        raise UsageError("--timeout goes with --wait")
    if line.command == "wait":
        check_wait(line.words[1:-1], line.words[-1])
    kinds = [name for name in ("option", "session") if name in line.options]
    if len(kinds) + bool(line.options.keys() & {"listener", "source", "sni"}) > 1:
        raise UsageError(f"--{kinds[0]} asks for something of its own: give it alone")
    if line.command == "kill" and not conditions_of(line):
        raise UsageError(
            "kill needs the ID of a session, or --client, --backend, --pool, --older or --draining"
        )
    if "admin" in line.options and "port" in line.options:
        raise UsageError("--admin and --port both say which balancer: give one of them")
    port = line.options.get("port", "1")
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise UsageError(f"--port: {port!r} is no port from 1 to 65535")


def check_wait(names: Sequence[str], condition: str) -> None:
    """Raises UsageError for words behind `wait` that are no condition."""
    if condition not in (WAITS_OF_BACKENDS if names else WAITS_OF_BALANCER):
        ways = f"wait {' | '.join(WAITS_OF_BALANCER)}, or wait NAME... {' | '.join(WAITS_OF_BACKENDS)}"
        raise UsageError(f"{condition!r} is no condition here: {ways}")


def conditions_of(line: CommandLine) -> list[str]:
    """The sessions, or for `explain` the client, that the options name: key=value words for the console."""
    given = {
        flag.name: line.options[flag.name]
        for flag in FLAGS
        if flag.name in line.options and flag.name in CONDITIONS
    }
    if "older" in given:
        given["older"] = str(parse_duration(given["older"]))
    found = [f"{name}={value}" for name, value in given.items() if name != "draining"]
    found += [f"id={word}" for word in line.words[1:] if line.command == "kill"]
    return found + (["draining"] if "draining" in given else [])


def help_text() -> str:
    """What --help prints, within the width of the terminal."""
    commands = [(" ".join((name, *one.arguments)), one.help) for name, one in COMMANDS.items()]
    flags = [(flag.spelling if flag.short else f"    {flag.spelling}", flag.help) for flag in FLAGS]
    parts = [
        layout.filled(f"{PROGRAM}: {ABOUT}"),
        f"Usage:\n  {PROGRAM} COMMAND [OPTION ...]",
        "Commands:\n" + layout.table(commands),
        "Options, in any order:\n" + layout.table(flags),
        "Examples:\n" + "\n".join(layout.command(example) for example in EXAMPLES),
        layout.filled(
            "NAME is a backend's name, POOL/NAME where another pool has one of that name, or a pattern of them in "
            "quotes: 'web-*', 'api/*'. Exit code: 0 done, 1 "
            "refused by the balancer, not answered by every worker, or no balancer there, 2 a wrong command line."
        ),
    ]
    return "\n\n".join(parts)
