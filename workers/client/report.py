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
MAX_LATENCIES = 1_000_000  # 8 MB; a longer run keeps every n-th
ROW = ("picture", "target", "bytes_in", "bytes_out", "ms", "server", "retries", "error")


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

    def is_clean(self) -> bool:
        """True when no picture failed and no peer violated the protocol."""
        return not self.failed and not self.violations

    def dump(self) -> bytes:
        """JSON for the pipe to the parent process."""
        return json.dumps(vars(self)).encode()

    def merge(self, raw: bytes) -> None:
        """Add the statistics that another process dumped. Raises ValueError."""
        other = json.loads(raw)
        for name in ("sent", "received", "replies", "saved", "skipped", "retries", "failed"):
            setattr(self, name, getattr(self, name) + other[name])
        self.elapsed = max(self.elapsed, other["elapsed"])
        self.latencies += other["latencies"]
        self.servers.update(other["servers"])
        self.reasons.update(other["reasons"])
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
        f"{statistics.failed} failed, {counted(statistics.retries, 'retry', 'retries')}",
        f"Pictures Per Second: {statistics.replies / seconds:.2f}",
        f"Bytes sent:          {statistics.sent}",
        f"Bytes received:      {statistics.received}",
        f"Latency p50:         {percentile(latencies, 0.50) * 1000:.1f} ms",
        f"Latency p99:         {percentile(latencies, 0.99) * 1000:.1f} ms",
        f"Elapsed:             {statistics.elapsed:.2f} s",
    ]
    for title, counts in (("Failures", statistics.reasons), ("Servers", statistics.servers)):
        if counts:
            lines.append(f"{title}:")
            lines += [
                f"  {count:>8}  {printable(name) or '(unnamed)'}" for name, count in counts.most_common(50)
            ]
    return "\n".join(lines)


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


def format_rows(rows: Sequence[dict[str, Any]], as_csv: bool) -> bytes:
    """The content of the --report file."""
    if not as_csv:
        return (json.dumps(list(rows), indent=1) + "\n").encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, ROW, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
