"""The option tables of `resizer` and of `resize-client`: flag, INI key, environment name, default, help,
once.

RULES: tables and readers of single values. The limits' defaults are those of workers.imaging, which a test
compares: the client must not load Pillow to know its options."""

from typing import Any

from balancer.config.common import LOG_OPTIONS
from balancer.config.loader import COMMON_OPTIONS, Option
from balancer.config.option import at_least, between
from balancer.config.units import (
    parse_address,
    parse_count,
    parse_duration,
    parse_port,
    parse_positive_duration,
    parse_size,
)
from balancer.prefork.options import PROCESS_OPTIONS, parse_bind, parse_processes

HIGHEST_SIDE = 65535
_LISTEN: dict[str, Any] = {"group": "Clients"}
_LIMITS: dict[str, Any] = {"group": "Pictures"}
_WORK: dict[str, Any] = {"group": "Work"}
_WHAT: dict[str, Any] = {"group": "What to do"}
_HOW: dict[str, Any] = {"group": "How to send"}
_FILES: dict[str, Any] = {"group": "Files"}


def parse_name(text: str) -> str:
    """A name for titles, logs and replies: printable, without blanks, at most 64 characters."""
    if len(text) > 64 or not text.isprintable() or any(c.isspace() for c in text):
        raise ValueError(f"{text!r} is not a name: at most 64 printable characters and no blanks")
    return text


RESIZER: tuple[Option, ...] = (
    Option("port", "9000", "port to listen on; 0 lets the kernel choose", parse_port, short="p", **_LISTEN),
    Option(
        "bind", "", "address to listen on: host, [v6], host:port, [v6]:port or unix:/path; --port where it "
        "has none",
        parse_bind, metavar="ADDRESS", repeat=True, unset="every IPv4 address", **_LISTEN,
    ),
    Option(
        "name", "", "this resizer's name in titles, logs and replies",
        parse_name, unset="HOSTNAME-PORT", **_LISTEN,
    ),
    Option(
        "backlog", "1024", "clients that may wait to be accepted, for each front and address",
        at_least(1, parse_count), metavar="N", **_LISTEN,
    ),
    Option(
        "maxconns", "4096", "clients at once that may ask for work, for each front; health requests are "
        "answered beyond it",
        at_least(1, parse_count), metavar="N", **_LISTEN,
    ),
    Option(
        "pipeline", "32", "requests of one client in work or waiting at once",
        at_least(1), metavar="N", **_LISTEN,
    ),
    Option(
        "http", "yes", "answer HTTP on the same port: POST /resize, GET /health, GET /status",
        flag=True, **_LISTEN,
    ),
    Option(
        "frame-timeout", "10s", "time a client has to send a request it has begun",
        parse_positive_duration, **_LISTEN,
    ),
    Option(
        "idle-timeout", "10m", "close a client after this time without a request; 0 is never",
        parse_duration, **_LISTEN,
    ),
    Option(
        "drain-timeout", "30s", "time requests have to end on a stop or reload before they are cut",
        parse_duration, **_LISTEN,
    ),
    Option(
        "max-frame", "32m", "biggest request or reply",
        between(1024, 1 << 30, parse_size), metavar="SIZE", **_LIMITS,
    ),
    Option(
        "max-pixels", "50m", "pixels of a source picture (decimal: 50m is 50 megapixels)",
        at_least(1, parse_count), metavar="PIXELS", **_LIMITS,
    ),
    Option(
        "max-side", "16383", "longest side of source and target",
        between(1, HIGHEST_SIDE), metavar="PIXELS", **_LIMITS,
    ),
    Option(
        "max-target-pixels", "32m", "pixels of a resized picture (decimal)",
        at_least(1, parse_count), metavar="PIXELS", **_LIMITS,
    ),
    Option("max-frames", "1000", "frames of an animation", at_least(1, parse_count), metavar="N", **_LIMITS),
    Option(
        "max-scans", "32", "scans of a progressive JPEG; encoders write about ten",
        at_least(1), metavar="N", **_LIMITS,
    ),
    Option(
        "orient", "auto", "turn pictures upright by their EXIF tag; auto does it for peers that send an ID, "
        "which the original program's do not",
        choices=("auto", "yes", "no"), **_LIMITS,
    ),
    Option(
        "icc", "drop", "colour profile: keep it, convert to sRGB, or drop it",
        choices=("keep", "srgb", "drop"), **_LIMITS,
    ),
    Option(
        "cpus", "auto", "CPU processes that resize; auto is one for each CPU this process may use (affinity "
        "and cgroup quota)",
        parse_processes, metavar="N", **_WORK,
    ),
    Option(
        "fronts", "1", "front processes that own the client sockets; one carries some 30 CPU processes",
        between(1, 64), metavar="N", **_WORK,
    ),
    Option(
        "queue", "64", "pictures that may wait for a CPU process, for each front; beyond it a request is "
        "answered busy",
        at_least(1), metavar="N", **_WORK,
    ),
    Option(
        "express-bytes", "512k", "pictures up to this size are small: they pass the big ones by, in the "
        "express process while a CPU process has one",
        parse_size, **_WORK,
    ),
    Option(
        "job-timeout", "10s", "time one picture may take before its CPU process is killed and the request "
        "refused",
        parse_positive_duration, **_WORK,
    ),
    Option(
        "recycle", "0", "pictures after which a CPU process is replaced, give or take a tenth; 0 is never",
        at_least(0, parse_count), metavar="N", **_WORK,
    ),
    Option(
        "memory-limit", "2g", "address space of a CPU process, a fuse against a decoder gone wild; 0 is none",
        parse_size, metavar="SIZE", **_WORK,
    ),
    Option(
        "nice", "5", "nice value of the CPU processes but express, which like the fronts takes none",
        between(0, 19), metavar="N", **_WORK,
    ),
    Option("affinity", "no", "bind each CPU process to a CPU of its own", flag=True, **_WORK),
    *PROCESS_OPTIONS,
    *LOG_OPTIONS,
    *COMMON_OPTIONS,
)  # fmt: skip

CLIENT: tuple[Option, ...] = (
    Option(
        "input", "", "directory of the pictures, searched with its sub-directories",
        metavar="DIR", unset="required", **_WHAT,
    ),
    Option(
        "output", "resized", "directory of the results, which keep their sub-directories",
        metavar="DIR", **_WHAT,
    ),
    Option(
        "width", "0", "width of the results; 0 follows from the height",
        between(0, HIGHEST_SIDE), short="w", metavar="PIXELS", **_WHAT,
    ),
    Option(
        "height", "0", "height of the results; 0 follows from the width",
        between(0, HIGHEST_SIDE), short="h", metavar="PIXELS", **_WHAT,
    ),
    Option(
        "fit", "stretch", "stretch to the exact size, contain within it, or cover it and cut the rest",
        choices=("stretch", "contain", "cover"), **_WHAT,
    ),
    Option(
        "format", "", "format of the results",
        choices=("", "jpeg", "png", "gif", "webp", "avif"), metavar="jpeg|png|gif|webp|avif",
        unset="each source's own", **_WHAT,
    ),
    Option(
        "quality", "0", "quality of JPEG, WebP and AVIF results, 1 to 100; 0 leaves it to the resizer (75)",
        between(0, 100), metavar="Q", **_WHAT,
    ),
    Option("times", "1", "go through the directory this many times", at_least(1), metavar="N", **_WHAT),
    Option("dry-run", "no", "ask for replies without any picture work and save nothing", flag=True, **_WHAT),
    Option("flood", "no", "every connection sends the whole directory, to make load", flag=True, **_WHAT),
    Option(
        "proxy", "localhost:9090", "balancer or resizer to send to: host:port, [v6]:port or unix:/path",
        parse_address, metavar="ADDRESS", **_HOW,
    ),
    Option("minconns", "1", "connections to begin with", between(1, 10_000), metavar="N", **_HOW),
    Option(
        "maxconns", "0", "connections at most; more are opened while that pays; 0 is as minconns",
        between(0, 10_000), metavar="N", **_HOW,
    ),
    Option("processes", "1", "client processes, to make load", between(1, 64), metavar="N", **_HOW),
    Option("in-flight", "4", "requests under way on each connection", between(1, 1024), metavar="N", **_HOW),
    Option(
        "retries", "3", "further tries after a busy or draining reply or a lost connection",
        at_least(0), metavar="N", **_HOW,
    ),
    Option("timeout", "30s", "time one picture's reply may take", parse_positive_duration, **_HOW),
    Option(
        "max-frame", "32m", "biggest request or reply",
        between(1024, 1 << 30, parse_size), metavar="SIZE", **_HOW,
    ),
    Option(
        "include", "", "only files whose name or path matches, as *.jpg",
        metavar="GLOB", repeat=True, commas=False, unset="every picture", **_FILES,
    ),
    Option(
        "exclude", "", "no files whose name or path matches",
        metavar="GLOB", repeat=True, commas=False, **_FILES,
    ),
    Option(
        "skip-existing", "no", "leave out pictures whose result is there and whose source has not changed "
        "since",
        flag=True, **_FILES,
    ),
    Option("resume", "no", "go on where a run that was ended had got to", flag=True, **_FILES),
    Option("fsync", "no", "have each result on the disk before it gets its name", flag=True, **_FILES),
    Option("report", "", "write one row for each picture to FILE.json or FILE.csv", metavar="FILE", **_FILES),
    *LOG_OPTIONS,
    *COMMON_OPTIONS,
)  # fmt: skip
RESIZER_EXAMPLE = "resizer -p 9001 --name backend-1 --cpus 4 --max-pixels 100m"
CLIENT_EXAMPLE = (
    "resize-client --proxy localhost:9090 --input photos --output small -w 800 -h 600 --maxconns 8"
)
