"""A whole run from the options to the statistics: scan, name, skip what is done, divide, run, report.

RULES: every path that will be written, and the process that writes it, is fixed here before the first byte is sent.
"""

import contextlib
import cProfile
import os

from balancer.config.units import Address, resolve
from balancer.eventloop.log import Log
from balancer.eventloop.log_format import LogSettings
from balancer.eventloop.loop import Loop
from balancer.prefork.limits import raise_file_limit
from workers.client.forking import run_forked
from workers.client.job_tracker import RunSpec
from workers.client.journal import Journal
from workers.client.local_run import LocalRun
from workers.client.naming import target_names
from workers.client.options import ClientOptions
from workers.client.output import OutputDirectory
from workers.client.report import Statistics
from workers.client.report_file import ReportFile
from workers.client.run import ClientRun
from workers.client.scan import ScanResult, scan

OWN_FILES = 16  # descriptors: streams, epoll, log, journal, profile, directories, a picture, a result


class StartError(Exception):
    """The run did not start; the text says why, in one sentence."""


def resize_directory(options: ClientOptions) -> Statistics:
    """Run with `options` and return the statistics. Raises OSError, or StartError with a sentence."""
    check_descriptors(options, raise_file_limit())
    try:
        addresses = () if options.local else resolve(options.proxy)
    except OSError as error:
        raise StartError(f"--proxy: cannot resolve {options.proxy}: {error.strerror or error}") from None
    log = Log("resize-client", options.log, program="resize-client")
    log.apply(log_settings(options))
    if log.problem:
        raise StartError(f"--log: {log.problem}")
    if options.debug:
        os.makedirs(options.debug_dir, exist_ok=True)
    report = ReportFile(options.report)
    try:
        report.open()
    except OSError as error:
        raise StartError(f"--report: cannot write {options.report}: {error.strerror}") from None
    with contextlib.closing(report):
        statistics = _resize_all(options, addresses, log)
        try:
            report.write(statistics.rows)
        except OSError as error:
            statistics.add_stop(f"cannot write the report {options.report}: {error.strerror}")
        return statistics


def log_settings(options: ClientOptions) -> LogSettings:
    """How the options have the log written."""
    return LogSettings(options.loglevel, options.log_format, options.log_sessions)


def _resize_all(options: ClientOptions, addresses: tuple[Address, ...], log: Log) -> Statistics:
    found = scan(options.input, options.include, options.exclude, "" if options.dry_run else options.output)
    if not found.pictures and not found.problems:
        raise StartError(f"no pictures in {options.input}{_summary(found)}")
    formats = {picture.path: picture.format for picture in found.pictures}
    targets = target_names(formats, options.width, options.height, options.format)
    output = None if options.dry_run else OutputDirectory(options.output, options.fsync)
    job = f"{options.width}x{options.height} {options.fit} {options.format or 'as-is'} {options.quality}"
    job += f" {options.parameters}" if options.parameters else ""
    journal = Journal(output, job) if output is not None else None
    pictures = found.pictures
    if output is not None and journal is not None:
        if journal.is_alone:
            output.sweep({os.path.dirname(target) for target in targets.values()})
        journal.share()
        if options.resume or options.skip_existing:
            pictures = [p for p in pictures if not journal.is_done(p, targets[p.path])]

    parent = os.getpid() if options.processes > 1 else 0

    def work(index: int) -> Statistics:
        share = pictures if options.flood else pictures[index :: options.processes]
        return _run(RunSpec(options, addresses, share, targets, output, journal, index == 0, parent), log)

    statistics = work(0) if options.processes == 1 else run_forked(options.processes, work)
    statistics.pictures = len(pictures)
    _add_scan(statistics, found, len(found.pictures) - len(pictures))
    return statistics


def check_descriptors(options: ClientOptions, limit: int) -> None:
    """Raises StartError when `limit` open files are too few: without descriptors no picture can be read or saved."""
    wanted = max(options.minconns, options.maxconns)
    if wanted > limit - OWN_FILES:
        raise StartError(
            f"--maxconns: {wanted} connections do not fit {limit} open files (ulimit -n), "
            f"{OWN_FILES} of which are for pictures and results"
        )


def _summary(found: ScanResult) -> str:
    """What a directory without pictures has instead."""
    counts = [f"{len(paths)} left out: {reason}" for reason, paths in sorted(found.left_out.items())]
    return f" ({'; '.join(counts)})" if counts else ""


def _add_scan(statistics: Statistics, found: ScanResult, skipped: int) -> None:
    statistics.skipped += skipped
    statistics.left_out = found.left_out
    for problem in found.problems:
        path, _, sentence = problem.partition(": ")
        statistics.add_failure(path, f"cannot scan: {sentence}")


def _run(spec: RunSpec, log: Log) -> Statistics:
    options = spec.options
    profile = cProfile.Profile() if options.debug else None
    if profile is not None:
        profile.enable()
    loop = Loop()
    try:
        run = (_local_run if options.local else ClientRun)(
            spec, loop, log.child("resize-client", log_settings(options))
        )
        run.tracker.watch_signals()
        statistics = run.go()
    finally:
        loop.close()
    if profile is not None:
        profile.disable()
        try:
            profile.dump_stats(os.path.join(options.debug_dir, f"client-{os.getpid()}.pstats"))
        except OSError as error:
            statistics.add_stop(f"cannot write the profile: {error.strerror}")
    return statistics


def _local_run(spec: RunSpec, loop: Loop, log: Log) -> LocalRun:
    from workers.client.local_process import reap, spawn, work_of  # Pillow, which only --local needs here

    work = work_of(spec.options)
    return LocalRun(spec, loop, log, lambda: spawn(work), reap)
