"""The options of `resizer` and of `resize-client`, read and checked; the tables are in option_tables.

RULES: frozen dataclasses and the checks across options. Nothing is opened, bound or resolved here, so that
the same reading serves the boot, --check-config and a reload."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from balancer import __version__
from balancer.config import usage
from balancer.config.common import ALL_SECTIONS, check_debug
from balancer.config.loader import ConfigError, answer_early, answer_late, load
from balancer.config.units import Address
from balancer.prefork.options import binds
from workers.option_tables import CLIENT, CLIENT_EXAMPLE, RESIZER, RESIZER_EXAMPLE


@dataclass(frozen=True, slots=True)
class ResizerOptions:
    """The resizer's configuration, checked. Times in seconds, sizes in bytes; 0 is "none" where the help says
    so."""

    port: int
    bind: tuple[Address, ...]
    name: str
    backlog: int
    maxconns: int
    pipeline: int
    http: bool
    frame_timeout: float
    idle_timeout: float
    drain_timeout: float
    max_frame: int
    max_pixels: int
    max_side: int
    max_target_pixels: int
    max_frames: int
    max_scans: int
    orient: str
    icc: str
    cpus: int
    fronts: int
    queue: int
    express_bytes: int
    job_timeout: float
    recycle: int
    memory_limit: int
    nice: int
    affinity: bool
    pidfile: str
    user: str
    group: str
    log: str
    loglevel: int
    debug: bool
    debug_dir: str
    config: str
    notes: tuple[str, ...] = ()  # to be logged as warnings at boot


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """The client's configuration, checked. Times in seconds, sizes in bytes, sides in pixels (0: keep the
    aspect ratio)."""

    input: str
    output: str
    width: int
    height: int
    fit: str
    format: str
    quality: int
    times: int
    dry_run: bool
    flood: bool
    proxy: Address
    minconns: int
    maxconns: int
    processes: int
    in_flight: int
    retries: int
    timeout: float
    max_frame: int
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    skip_existing: bool
    resume: bool
    fsync: bool
    report: str
    log: str
    loglevel: int
    debug: bool
    debug_dir: str
    config: str
    notes: tuple[str, ...] = ()


def parse_resizer(argv: Sequence[str], environ: Mapping[str, str]) -> ResizerOptions:
    """The resizer's options. Raises ConfigError with one sentence, or Answer when the command line asks a
    question."""
    answer_early(argv, f"resizer {__version__}", resizer_help)
    settings = load("resizer", "resizer", RESIZER, argv, environ, neighbours=ALL_SECTIONS)
    values = settings.fields(ResizerOptions.__slots__)
    values["bind"] = binds(settings)
    values["name"] = values["name"] or f"{socket.gethostname().partition('.')[0]}-{values['port']}"
    if values["fronts"] > values["cpus"]:
        raise settings.refuse(
            "fronts", f"{values['fronts']} fronts need as many CPU processes, cpus is {values['cpus']}"
        )
    if values["express_bytes"] > values["max_frame"]:
        raise settings.refuse("express-bytes", "is above max-frame, so every request would be small")
    check_debug(settings)
    answer_late("resizer", RESIZER, settings, {"cpus": str(values["cpus"]), "name": values["name"]})
    return ResizerOptions(**values, notes=settings.notes)


def parse_client(argv: Sequence[str], environ: Mapping[str, str]) -> ClientOptions:
    """The client's options. Raises ConfigError with one sentence, or Answer when the command line asks a
    question."""
    answer_early(argv, f"resize-client {__version__}", client_help)
    settings = load("resize-client", "resize-client", CLIENT, argv, environ, neighbours=ALL_SECTIONS)
    values = settings.fields(ClientOptions.__slots__)
    if not values["input"]:
        raise ConfigError("no input: name the directory of the pictures with --input DIR")
    if not os.path.isdir(values["input"]):
        raise settings.refuse("input", f"{values['input']} is not a directory")
    if not values["width"] and not values["height"]:
        raise ConfigError("no size: give the width with -w, the height with -h, or both")
    values["maxconns"] = values["maxconns"] or values["minconns"]
    if values["maxconns"] < values["minconns"]:
        raise settings.refuse("maxconns", f"{values['maxconns']} is below minconns, {values['minconns']}")
    if values["report"] and not values["report"].endswith((".json", ".csv")):
        raise settings.refuse("report", f"{values['report']} ends neither in .json nor in .csv")
    check_debug(settings)
    answer_late("resize-client", CLIENT, settings, {"maxconns": str(values["maxconns"])})
    return ClientOptions(**values, notes=settings.notes)


def resizer_help() -> str:
    """What `resizer --help` prints."""
    about = "resizes pictures for many clients at once, one CPU process per core"
    return usage.help_text("resizer", about, RESIZER_EXAMPLE, "resizer", RESIZER)


def client_help() -> str:
    """What `resize-client --help` prints (-h is the height, as in the original program)."""
    about = "sends a directory of pictures through a balancer to its resizers and saves the results"
    return usage.help_text("resize-client", about, CLIENT_EXAMPLE, "resize-client", CLIENT)
