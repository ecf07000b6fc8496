"""The results of a run: statistics while it goes, the block at its end, one row per picture for --report.

RULES: counts and formats; time comes in as an argument. Statistics of several processes are added up: each goes through
a pipe as JSON and is merged. Text that a peer chose is made printable before it is shown.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from balancer.config.units import counted

LISTED = 100  # failures that are printed by name
NAMED = 5  # files that are left out for one reason and named
MAX_LATENCIES = 1_000_000  # 8 MB; a longer run keeps every n-th
ROW = ("picture", "target", "bytes_in", "bytes_out", "ms", "server", "retries", "error", "note")


def printable(text: str) -> str:
    """`text` with control characters escaped, at most 300 characters."""
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text[:300]
    )
    return shown.encode("utf-8", "backslashreplace").decode()


@dataclass
class Statistics:
    """Counts and samples. Latencies in seconds, from a job's first request to its last reply."""

    sent: int = 0
    received: int = 0
    replies: int = 0
    pictures: int = 0  # of one pass through the directory
    saved: int = 0
    skipped: int = 0
    retries: int = 0
    elapsed: float = 0.0
    latencies: list[float] = field(default_factory=list)
    servers: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)  # (path, sentence), the first LISTED
    failed: int = 0
    unfinished: int = 0  # neither answered nor failed when the run ended
    stops: list[str] = field(default_factory=list)  # why it ended before its time, sentences
    signal: int = 0  # that ended it
    notes: Counter[str] = field(default_factory=Counter)  # what results lack, as their resizers say
    left_out: dict[str, list[str]] = field(default_factory=dict)  # paths by reason
    violations: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add_latency(self, seconds: float, most: int = MAX_LATENCIES) -> None:
        """Keep a latency; when there are `most` already, drop every second one first."""
        if len(self.latencies) >= most:
            del self.latencies[::2]
        self.latencies.append(seconds)

    def add_failure(self, path: str, sentence: str) -> None:
        """Count a failed picture under the words of `sentence` before its first colon."""
        self.failed += 1
        self.reasons[printable(sentence.partition(":")[0])[:60]] += 1
        if len(self.failures) < LISTED:
            self.failures.append((path, sentence))

    def add_stop(self, sentence: str) -> None:
        """Note why the run ends, or what of its reports is lost. Several processes mostly have the same reason."""
        if sentence not in self.stops:
            self.stops.append(sentence)

    def exit_code(self) -> int:
        """0 when all is done, 1 when a picture failed or a peer violated the protocol, 128 + the signal that ended the
        run, as shells tell it."""
        if self.signal:
            return 128 + self.signal
        return int(bool(self.failed or self.unfinished or self.stops or self.violations))

    def dump(self) -> bytes:
        """JSON for the pipe to the parent process."""
        return json.dumps(vars(self)).encode()

    def merge(self, raw: bytes) -> None:
        """Add the statistics that another process dumped. Raises ValueError."""
        other = json.loads(raw)
        for name in ("sent", "received", "replies", "saved", "skipped", "retries", "failed", "unfinished"):
            setattr(self, name, getattr(self, name) + other[name])
        self.elapsed = max(self.elapsed, other["elapsed"])
        self.signal = max(self.signal, other["signal"])
        for sentence in other["stops"]:
            self.add_stop(sentence)
        self.latencies += other["latencies"]
        self.servers.update(other["servers"])
        self.reasons.update(other["reasons"])
        self.notes.update(other["notes"])
        self.failures += [(path, sentence) for path, sentence in other["failures"]]
        self.violations += other["violations"]
        self.rows += other["rows"]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of `values` (sorted) do not exceed; 0 when there are none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def format_statistics(statistics: Statistics) -> str:
    """The block that is printed at the end of a run: the original program's, as its readers expect it, then the rest."""
    seconds = statistics.elapsed or 1e-9
    latencies = sorted(statistics.latencies)
    lines = [
        *format_original(statistics),
        "-- [ Pictures ] --",
        f"Pictures:            {statistics.replies} answered, {statistics.saved} saved, {statistics.skipped} skipped, "
        f"{statistics.failed} failed, {counted(statistics.retries, 'retry', 'retries')}"
        + (f", {statistics.unfinished} not done" if statistics.unfinished else ""),
        f"Pictures Per Second: {statistics.replies / seconds:.2f}",
        f"Bytes sent:          {statistics.sent}",
        f"Bytes received:      {statistics.received}",
        f"Latency p50:         {percentile(latencies, 0.50) * 1000:.1f} ms",
        f"Latency p99:         {percentile(latencies, 0.99) * 1000:.1f} ms",
        f"Elapsed:             {statistics.elapsed:.2f} s",
    ]
    tables = (
        ("Failures", statistics.reasons),
        ("Notes", statistics.notes),
        ("Servers", statistics.servers),
    )
    for title, counts in tables:
        if counts:
            lines.append(f"{title}:")
            lines += [
                f"  {count:>8}  {printable(name) or '(unnamed)'}" for name, count in counts.most_common(50)
            ]
    if statistics.left_out:
        lines.append("Left out:")
        lines += [_left_out(reason, paths) for reason, paths in sorted(statistics.left_out.items())]
    return "\n".join(lines)


def _left_out(reason: str, paths: Sequence[str]) -> str:
    names = ", ".join(printable(path) for path in paths[:NAMED]) + (", ..." if len(paths) > NAMED else "")
    return f"  {len(paths):>8}  {reason}: {names}"


def format_original(statistics: Statistics) -> list[str]:
    """The lines that the original program ends with. Its request is one connection's pass through the whole directory, so
    that passes that connections share count once. A Mb is 1,000,000 bytes."""
    requests = statistics.replies / (statistics.pictures or 1)
    return [
        "-- [ Network Statistics ] --",
        f"\tbytes sent: {statistics.sent / 1e6:.4f} Mb",
        f"\tbytes received: {statistics.received / 1e6:.4f} Mb",
        f"\tRequests Per Second: {requests / (statistics.elapsed or 1e-9):.2f}",
    ]


def format_failures(statistics: Statistics) -> str:
    """A line for each violation and each failed picture, at most LISTED of each."""
    lines = [f"protocol violation: {printable(sentence)}" for sentence in statistics.violations[:LISTED]]
    shown = statistics.failures[:LISTED]
    lines += [f"failed: {printable(path)}: {printable(sentence)}" for path, sentence in shown]
    if statistics.failed > len(shown):
        lines.append(f"... and {statistics.failed - len(shown)} more")
    return "\n".join(lines)


def format_end(statistics: Statistics) -> str:
    """Why the run ended before its time, and what of it is lost, in one sentence; "" when nothing is."""
    parts = [printable(sentence) for sentence in statistics.stops]
    if statistics.unfinished:
        parts.append(f"{counted(statistics.unfinished, 'picture')} not done")
    return "; ".join(parts)


def format_rows(rows: Sequence[dict[str, Any]], as_csv: bool) -> bytes:
    """The content of the --report file."""
    if not as_csv:
        return (json.dumps(list(rows), indent=1) + "\n").encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, ROW, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
