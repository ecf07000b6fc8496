"""Every option of `resizer`, declared once, and what its processes derive from them.

RULES: a frozen record, readers of single values, and the checks across options. Nothing is opened, bound or resolved, so
that the same reading serves the boot, --check-config and a reload. The defaults of the picture limits are those of
workers.imaging, which a test compares.
"""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

from balancer import __version__
from balancer.config import usage
from balancer.config.common import ALL_SECTIONS, DAEMON_QUESTIONS, check_debug
from balancer.config.cpus import available_cores
from balancer.config.loader import answer_early, answer_late, load, notes_near_misses
from balancer.config.option import SectionSettings, at_least, between, build, options_in, options_of
from balancer.config.units import (
    Address,
    format_size,
    parse_count,
    parse_duration,
    parse_positive_duration,
    parse_size,
    parse_timeout,
)
from balancer.prefork.options import DaemonOptions, addresses_of, binds, parse_processes
from balancer.prefork.preflight import Machine, listening_of, try_addresses, try_files, try_user
from workers.imaging.limits import PictureLimits

ABOUT = "resizes pictures for many clients at once, one CPU process per core"
EXAMPLE = "resizer -p 9001 --name backend-1 --cpus 4 --max-pixels 100m"
HIGHEST_SIDE = 65535
HEADROOM = 64 * 1024  # bytes of a slot beyond the biggest frame
LEAST_MEMORY = 256 << 20  # bytes: of the program 140 MB, and room for pictures of some megapixels

_clients = options_in("Clients")
_pictures = options_in("Pictures")
_work = options_in("Work")


def parse_name(text: str) -> str:
    """A name for titles, logs and replies: printable, without blanks, at most 64 characters."""
    if len(text) > 64 or not text.isprintable() or any(c.isspace() for c in text):
        raise ValueError(f"{text!r} is not a name: at most 64 printable characters and no blanks")
    return text


@dataclass(frozen=True)
class ResizerOptions(DaemonOptions):
    """The resizer's configuration, checked. Times in seconds, sizes in bytes; 0 is "none" where the help says so."""

    addresses: tuple[Address, ...] = addresses_of("9000", group="Clients")
    name: str = _clients(
        "", "this resizer's name in titles, logs and replies", parse_name, unset="HOSTNAME-PORT"
    )
    backlog: int = _clients(
        "1024",
        "clients that may wait to be accepted, for each front and address",
        at_least(1, parse_count),
        metavar="N",
    )
    maxconns: int = _clients(
        "4096",
        "clients at once that may ask for work, for each front; health requests are answered beyond it",
        at_least(1, parse_count),
        metavar="N",
    )
    pipeline: int = _clients(
        "32", "requests of one client in work or waiting at once", at_least(1), metavar="N"
    )
    http: bool = _clients(
        "yes",
        "answer HTTP on the same port: POST /resize, GET /, /ready, /live, /agent, /status, /metrics",
        flag=True,
    )
    frame_timeout: float = _clients(
        "10s", "time a client has to send a request it has begun", parse_positive_duration
    )
    idle_timeout: float = _clients(
        "10m", "close a client after this time without a request; 0 is never", parse_timeout
    )
    drain_timeout: float = _clients(
        "30s", "time requests have to end on a stop or reload before they are cut", parse_duration
    )
    max_frame: int = _pictures(
        "32m", "biggest request or reply", between(1024, 1 << 30, parse_size), metavar="SIZE"
    )
    max_pixels: int = _pictures(
        "50m",
        "pixels of a source picture (decimal: 50m is 50 megapixels)",
        at_least(1, parse_count),
        metavar="PIXELS",
    )
    max_side: int = _pictures(
        "16383", "longest side of source and target", between(1, HIGHEST_SIDE), metavar="PIXELS"
    )
    max_target_pixels: int = _pictures(
        "32m", "pixels of a resized picture (decimal)", at_least(1, parse_count), metavar="PIXELS"
    )
    max_enlarge: int = _pictures(
        "4",
        "times that a request over HTTP may enlarge a side of its picture; 0 is any. Peers of frames may enlarge as "
        "with the original program",
        at_least(0),
        metavar="TIMES",
    )
    max_frames: int = _pictures("1000", "frames of an animation", at_least(1, parse_count), metavar="N")
    max_scans: int = _pictures(
        "32", "scans of a progressive JPEG; encoders write about ten", at_least(1), metavar="N"
    )
    orient: str = _pictures(
        "auto",
        "turn pictures upright by their EXIF tag; auto does it for peers that send an ID, which the original "
        "program's do not",
        choices=("auto", "yes", "no"),
    )
    icc: str = _pictures(
        "srgb",
        "colours that are not sRGB: convert them, keep the profile, or drop it; requests may say otherwise",
        choices=("keep", "srgb", "drop"),
    )
    cpus: int = _work(
        "auto",
        "CPU processes that resize; auto is one for each CPU this process may use (affinity and cgroup quota)",
        parse_processes,
        metavar="N",
    )
    fronts: int = _work(
        "1",
        "front processes that own the client sockets; one carries some 30 CPU processes",
        between(1, 64),
        metavar="N",
    )
    queue: int = _work(
        "64",
        "pictures that may wait for a CPU process, for each front, which may use what others leave; beyond it a request "
        "is answered busy",
        at_least(1),
        metavar="N",
    )
    express_bytes: int = _work(
        "512k",
        "pictures up to this size that are reckoned to be quick are small: they overtake big ones, in the express "
        "process while a CPU process has a big one",
        parse_size,
    )
    job_timeout: float = _work(
        "10s",
        "time one picture may take before its CPU process is killed and the request refused",
        parse_positive_duration,
    )
    recycle: int = _work(
        "0",
        "pictures after which a CPU process is replaced, give or take a tenth; 0 is never",
        at_least(0, parse_count),
        metavar="N",
    )
    memory_limit: int = _work(
        "2g",
        "address space of a CPU process; a picture that is reckoned to need more is refused, a decoder that runs away is "
        "ended; at least 256m and twice max-frame, 0 is no limit",
        parse_size,
        metavar="SIZE",
    )
    sandbox: str = _work(
        "auto",
        "what CPU processes give up: auto is every layer that the machine has, require is no start without one of them "
        "(the network namespace excepted), off is none; off with --debug, whose profiles are files",
        choices=("auto", "off", "require"),
    )
    nice: int = _work(
        "0",
        "nice value of the CPU processes; fronts and express processes keep theirs",
        between(0, 19),
        metavar="N",
    )
    affinity: bool = _work("no", "bind each CPU process to a CPU of its own", flag=True)
    fills_machine: bool = False  # there are as many CPU processes as cores, or more
    notes: tuple[str, ...] = ()  # to be logged as warnings at boot

    @cached_property
    def limits(self) -> PictureLimits:
        """What a picture may be."""
        others = {each.name for each in fields(PictureLimits)} - {"max_bytes", "max_memory"}
        named = {name: getattr(self, name) for name in others}
        return PictureLimits(max_bytes=self.max_frame, **named)

    @property
    def most_queued(self) -> int:
        """Pictures that may wait in one front: what the others leave of the room of all, up to four queues."""
        return self.queue * min(self.fronts, 4)

    @property
    def slots(self) -> int:
        """Slots of one front: for all that may wait or be worked on, and some to arrive in or leave from."""
        processes = self.cpus // self.fronts + 1  # of one front, the express one included
        return self.most_queued + self.most_queued // 8 + processes * 2 + max(16, processes * 2)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return self.max_frame + HEADROOM

    @property
    def wants_sandbox(self) -> bool:
        """Whether CPU processes enter the sandbox."""
        return self.sandbox != "off" and not self.debug

    @cached_property
    def parameters(self) -> str:
        """The parameters of a request that says none."""
        return f"icc={self.icc}"

    def wants_upright(self, has_id: bool) -> bool:
        """Whether the EXIF orientation is obeyed for this peer: the original program ignores it."""
        return has_id if self.orient == "auto" else self.orient == "yes"


OPTIONS = (*options_of(ResizerOptions), *DAEMON_QUESTIONS)


@notes_near_misses("resizer", OPTIONS)
def parse_resizer(argv: Sequence[str], environ: Mapping[str, str]) -> ResizerOptions:
    """The resizer's options. Raises ConfigError with one sentence, or CommandLineAnswer when the command line asks a
    question."""
    answer_early(argv, f"resizer {__version__}", help_text, OPTIONS)
    settings = load("resizer", OPTIONS, argv, environ, neighbours=ALL_SECTIONS)
    options = build(
        ResizerOptions,
        settings,
        addresses=binds(settings),
        name=settings.values["name"] or default_name(settings.values["port"]),
        fills_machine=settings.values["cpus"] >= available_cores(),
        notes=settings.notes,
    )
    if options.fronts > options.cpus:
        raise settings.refuse(
            "fronts", f"{options.fronts} fronts need as many CPU processes, cpus is {options.cpus}"
        )
    if options.express_bytes > options.max_frame:
        raise settings.refuse("express-bytes", "is above max-frame, so every request would be small")
    least = LEAST_MEMORY + 2 * options.slot_bytes
    if 0 < options.memory_limit < least:
        limit, needed = format_size(options.memory_limit), f"{-(-least >> 20)}m"
        raise settings.refuse(
            "memory-limit", f"{limit} leaves no room for pictures: write {needed} or more, or 0"
        )
    check_debug(settings)
    notes = options.notes + (try_out(settings, options) if settings.values["check-config"] else ())
    resolved = {"cpus": str(options.cpus), "name": options.name}
    answer_late("resizer", OPTIONS, settings, resolved, notes=notes)
    return options


def try_out(settings: SectionSettings, options: ResizerOptions) -> tuple[str, ...]:
    """What --check-config finds on this machine: notes. Raises ConfigError."""
    machine = Machine.this()
    try_files(settings, "log", "pidfile")
    return try_user(settings, machine) + try_addresses(listening_of(settings, options.addresses), machine)


def default_name(port: int) -> str:
    """HOSTNAME-PORT."""
    return f"{socket.gethostname().partition('.')[0]}-{port}"


def help_text() -> str:
    """What `resizer --help` prints."""
    return usage.help_text("resizer", ABOUT, EXAMPLE, "resizer", OPTIONS)
