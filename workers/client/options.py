"""Every option of `resize-client`, declared once, and the checks across options.

RULES: a frozen record. Nothing is opened here, and only --check-config resolves the proxy. Imports neither Pillow nor
the machinery of a daemon.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from balancer import __version__
from balancer.config import usage
from balancer.config.common import ALL_SECTIONS, QUESTIONS, CommonOptions, check_debug
from balancer.config.cpus import available_cores
from balancer.config.loader import answer_early, answer_late, load, notes_near_misses
from balancer.config.machine import look_up_all, why_no_directory, why_not_writable
from balancer.config.option import (
    SectionSettings,
    UsageError,
    at_least,
    between,
    build,
    options_in,
    options_of,
)
from balancer.config.units import Address, parse_address, parse_positive_duration, parse_size

ABOUT = "sends a directory of pictures through a balancer to its resizers and saves the results"
EXAMPLE = "resize-client --proxy localhost:9090 --input photos --output small -w 800 -h 600 --maxconns 8"
HIGHEST_SIDE = 65535
LOOKUP_SECONDS = 5.0

_task = options_in("What to do")
_sending = options_in("How to send")
_files = options_in("Files")


def parse_cpus(text: str) -> int:
    """A count, or `auto`. Raises ValueError."""
    return available_cores() if text == "auto" else _count(text)


_count = between(1, 1024)


@dataclass(frozen=True)
class ClientOptions(CommonOptions):
    """The client's configuration, checked. Times are seconds, sizes bytes, sides pixels (0: keep the aspect ratio)."""

    input: str = _task(
        "", "directory of the pictures, searched with its sub-directories", metavar="DIR", unset="required"
    )
    output: str = _task(
        "resized", "directory of the results, which keep their sub-directories", metavar="DIR"
    )
    width: int = _task(
        "0",
        "width of the results; 0 follows from the height",
        between(0, HIGHEST_SIDE),
        short="w",
        metavar="PIXELS",
    )
    height: int = _task(
        "0",
        "height of the results; 0 follows from the width",
        between(0, HIGHEST_SIDE),
        short="h",
        metavar="PIXELS",
    )
    fit: str = _task(
        "stretch",
        "stretch to the exact size, contain within it, or cover it and cut the rest",
        choices=("stretch", "contain", "cover"),
    )
    format: str = _task(
        "",
        "format of the results",
        choices=("jpeg", "png", "gif", "webp", "avif"),
        unset="each source's own",
    )
    quality: int = _task(
        "0",
        "quality of JPEG, WebP and AVIF results, 1 to 100; 0 leaves it to the resizer (75, AVIF 63)",
        between(0, 100),
        metavar="Q",
    )
    gravity: str = _task(
        "",
        "side of the picture that cover keeps",
        choices=(
            "center",
            "north",
            "south",
            "east",
            "west",
            "northeast",
            "northwest",
            "southeast",
            "southwest",
        ),
        unset="the centre",
    )
    enlarge: bool = _task("yes", "results may be larger than their sources", flag=True)
    icc: str = _task(
        "",
        "colours that are not sRGB: convert them, keep the profile, or drop it",
        choices=("keep", "srgb", "drop"),
        unset="as the resizer is set",
    )
    subsampling: str = _task(
        "",
        "subsampling of colours in JPEG and AVIF results",
        choices=("auto", "420", "444"),
        unset="auto, which is 444 from quality 90 on",
    )
    keep: tuple[str, ...] = _task(
        "", "metadata that the results keep", choices=("exif", "xmp", "copyright"), repeat=True
    )
    tolerant: bool = _task("no", "show files that end early as far as they go", flag=True)
    times: int = _task(
        "1",
        "go through the directory this many times; each is a request of the statistics",
        at_least(1),
        metavar="N",
    )
    dry_run: bool = _task("no", "ask for replies without any picture work and save nothing", flag=True)
    flood: bool = _task(
        "no",
        "every connection sends the whole directory, as the original program's did, to make load",
        flag=True,
    )
    local: bool = _task("no", "resize here, in a pool of processes, without balancer and resizers", flag=True)
    cpus: int = _task(
        "auto",
        "processes of --local; auto is one for each CPU this process may use (affinity and cgroup quota)",
        parse_cpus,
        metavar="N",
    )
    sandbox: str = _task(
        "auto",
        "what processes of --local give up: auto is every layer that the machine has, require is no start without one of "
        "them (the network namespace excepted), off is none",
        choices=("auto", "off", "require"),
    )
    proxy: Address = _sending(  # noqa: RUF009 - a dataclass field
        "localhost:9090",
        "balancer or resizer to send to: host:port, [v6]:port or unix:/path",
        parse_address,
        metavar="ADDRESS",
    )
    minconns: int = _sending(
        "1", "connections to begin with; they share the directory", between(1, 10_000), metavar="N"
    )
    maxconns: int = _sending(
        "0",
        "connections at most; more are opened while that pays, with --flood all at once; 0 is as minconns",
        between(0, 10_000),
        metavar="N",
    )
    processes: int = _sending("1", "client processes, to make load", between(1, 64), metavar="N")
    in_flight: int = _sending("4", "requests under way on each connection", between(1, 1024), metavar="N")
    retries: int = _sending(
        "3", "further tries after a busy or draining reply or a lost connection", at_least(0), metavar="N"
    )
    timeout: float = _sending("30s", "time one picture's reply may take", parse_positive_duration)
    max_frame: int = _sending(
        "32m", "biggest request or reply", between(1024, 1 << 30, parse_size), metavar="SIZE"
    )
    include: tuple[str, ...] = _files(
        "",
        "only files whose name or path matches, as *.jpg, in any letter case",
        metavar="GLOB",
        repeat=True,
        commas=False,
        unset="every picture",
    )
    exclude: tuple[str, ...] = _files(
        "",
        "no files whose name or path matches, in any letter case",
        metavar="GLOB",
        repeat=True,
        commas=False,
    )
    skip_existing: bool = _files(
        "no", "leave out pictures whose result is there and whose source has not changed since", flag=True
    )
    resume: bool = _files("no", "go on where a run that was ended had got to", flag=True)
    fsync: bool = _files("no", "fsync each result before it is renamed into place", flag=True)
    preserve: bool = _files("no", "give each result the modification time of its source", flag=True)
    report: str = _files("", "write one row for each picture to FILE.json or FILE.csv", metavar="FILE")
    notes: tuple[str, ...] = ()  # things worth a warning

    @property
    def parameters(self) -> str:
        """What else is asked for, as in Request.parameters; "" when nothing is, so that any resizer understands it."""
        asked = {
            "gravity": self.gravity,
            "enlarge": "" if self.enlarge else "no",
            "icc": self.icc,
            "subsampling": self.subsampling,
            "keep": ",".join(self.keep),
            "tolerant": "yes" if self.tolerant else "",
        }
        return "&".join(f"{name}={value}" for name, value in asked.items() if value)


OPTIONS = (*options_of(ClientOptions), *QUESTIONS)


@notes_near_misses("resize-client", OPTIONS)
def parse_client(argv: Sequence[str], environ: Mapping[str, str]) -> ClientOptions:
    """The client's options. Raises ConfigError with one sentence, or CommandLineAnswer when the command line asks a
    question."""
    answer_early(argv, f"resize-client {__version__}", help_text)
    settings = load("resize-client", OPTIONS, argv, environ, neighbours=ALL_SECTIONS)
    maxconns = settings.values["maxconns"] or settings.values["minconns"]
    options = build(ClientOptions, settings, maxconns=maxconns, notes=settings.notes)
    if not options.input:
        raise UsageError("no input: name the directory of the pictures with --input DIR")
    if not os.path.isdir(options.input):
        raise settings.refuse("input", f"{options.input} is not a directory")
    if not options.dry_run and os.path.realpath(options.output) == os.path.realpath(options.input):
        sentence = f"{options.output} is the input directory; results would be found as pictures"
        raise settings.refuse("output", sentence)
    if not options.width and not options.height:
        raise UsageError("no size: give the width with -w, the height with -h, or both")
    check_local(settings, options)
    if options.maxconns < options.minconns:
        raise settings.refuse("maxconns", f"{options.maxconns} is below minconns, {options.minconns}")
    if options.report and not options.report.endswith((".json", ".csv")):
        raise settings.refuse("report", f"{options.report} ends neither in .json nor in .csv")
    check_debug(settings)
    check_files(settings, options)
    notes = options.notes
    if settings.values["check-config"] and isinstance(found := look_up(options.proxy), str):
        notes += (f"{settings.where('proxy')}: {options.proxy} has no address: {found}",)
    answer_late("resize-client", OPTIONS, settings, {"maxconns": str(options.maxconns)}, notes=notes)
    return options


def check_local(settings: SectionSettings, options: ClientOptions) -> None:
    """Raises ConfigError for what asks a server where there is none."""
    asked = {"dry-run": options.dry_run, "flood": options.flood, "processes": options.processes > 1}
    for name, is_asked in asked.items():
        if options.local and is_asked:
            raise settings.refuse(name, "asks a server, and --local has none")


def check_files(settings: SectionSettings, options: ClientOptions) -> None:
    """Raises ConfigError for a file that could not be written: the run would find that out after its work. The output
    directory, which a run makes before its work, is looked at by --check-config only."""
    for name, path in (("log", options.log), ("report", options.report)):
        if path and (why := why_not_writable(path)):
            raise settings.refuse(name, why)
    if options.dry_run or not settings.values["check-config"]:
        return
    directory = options.output
    while not os.path.lexists(directory) and (above := os.path.dirname(directory)):
        directory = above
    if why := why_no_directory(directory):
        raise settings.refuse("output", why)


def look_up(proxy: Address) -> tuple[Address, ...] | str:
    """The numeric addresses of the proxy, or why there are none."""
    return look_up_all([proxy], LOOKUP_SECONDS)[proxy]


def help_text() -> str:
    """What `resize-client --help` prints (-h is the height, as in the original program)."""
    return usage.help_text("resize-client", ABOUT, EXAMPLE, "resize-client", OPTIONS)
