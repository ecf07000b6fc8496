"""What came of a run: figures while it goes, the block at its end, a row per picture for --report.

RULES: counts and formats; asks nobody the time. Figures of several processes add up: a Statistics goes through a pipe as
JSON and is merged. Every text that a peer chose is made printable before a person sees it.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LISTED = 100  # failures printed by name
KEPT_LATENCIES = 1_000_000  # 8 MB; a longer flood keeps every n-th
ROW = ("picture", "target", "bytes_in", "bytes_out", "ms", "server", "retries", "error")


def printable(text: str) -> str:
    """`text` without anything a terminal would obey, 300 characters at most."""
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text[:300]
    )
    return shown.encode("utf-8", "backslashreplace").decode()


@dataclass
class Statistics:
    """The figures. Latencies in seconds, from a job's first request to its last reply."""

    sent: int = 0
    received: int = 0
    replies: int = 0
    passes: float = 0.0  # times that one connection has been through the directory, under --flood
    saved: int = 0
    skipped: int = 0
    retries: int = 0
    elapsed: float = 0.0
    is_flood: bool = False
    latencies: list[float] = field(default_factory=list)
    servers: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)  # (path, sentence), the first LISTED
    failed: int = 0
    violations: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add_latency(self, seconds: float) -> None:
        """Keep it, thinned out when there are too many."""
        if len(self.latencies) >= KEPT_LATENCIES:
            del self.latencies[::2]
        self.latencies.append(seconds)

    def add_failure(self, path: str, sentence: str) -> None:
        """One picture that did not make it; the words before the first colon are the reason it is counted under."""
        self.failed += 1
        self.reasons[printable(sentence.partition(":")[0])[:60]] += 1
        if len(self.failures) < LISTED:
            self.failures.append((path, sentence))

    def is_clean(self) -> bool:
        """True when everything that was asked for was done, and every peer kept to the protocol."""
        return not self.failed and not self.violations

    def dump(self) -> bytes:
        """For the pipe to the parent."""
        return json.dumps(vars(self)).encode()

    def merge(self, raw: bytes) -> None:
        """Add what another process dumped. Raises ValueError."""
        other = json.loads(raw)
        for name in ("sent", "received", "replies", "passes", "saved", "skipped", "retries", "failed"):
            setattr(self, name, getattr(self, name) + other[name])
        self.elapsed = max(self.elapsed, other["elapsed"])
        self.is_flood |= other["is_flood"]
        self.latencies += other["latencies"]
        self.servers.update(other["servers"])
        self.reasons.update(other["reasons"])
        self.failures += [(path, sentence) for path, sentence in other["failures"]]
        self.violations += other["violations"]
        self.rows += other["rows"]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of `values` (sorted) do not exceed; 0 when there are none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def format_statistics(figures: Statistics) -> str:
    """The block at the end of a run."""
    seconds = figures.elapsed or 1e-9
    waits = sorted(figures.latencies)
    lines = [
        "-- [ Network Statistics ] --",
        f"Bytes sent:          {figures.sent}",
        f"Bytes received:      {figures.received}",
        f"Requests Per Second: {figures.replies / seconds:.2f}",
    ]
    if figures.is_flood:
        lines.append(f"Jobs Per Second:     {figures.passes / seconds:.2f}")
    lines += [
        f"Latency p50:         {percentile(waits, 0.50) * 1000:.1f} ms",
        f"Latency p99:         {percentile(waits, 0.99) * 1000:.1f} ms",
        f"Elapsed:             {figures.elapsed:.2f} s",
        f"Pictures:            {figures.replies} answered, {figures.saved} saved, {figures.skipped} skipped, "
        f"{figures.failed} failed, {figures.retries} retries",
    ]
    for title, counts in (("Failures", figures.reasons), ("Servers", figures.servers)):
        if counts:
            lines.append(f"{title}:")
            lines += [
                f"  {count:>8}  {printable(name) or '(unnamed)'}" for name, count in counts.most_common(50)
            ]
    return "\n".join(lines)


def format_failures(figures: Statistics) -> str:
    """A line for each violation and each failed picture, as many as a person reads."""
    lines = [f"protocol violation: {printable(sentence)}" for sentence in figures.violations[:LISTED]]
    shown = figures.failures[:LISTED]
    lines += [f"failed: {printable(path)}: {printable(sentence)}" for path, sentence in shown]
    if figures.failed > len(shown):
        lines.append(f"... and {figures.failed - len(shown)} more")
    return "\n".join(lines)


def format_rows(rows: Sequence[dict[str, Any]], as_csv: bool) -> bytes:
    """The --report file."""
    if not as_csv:
        return (json.dumps(list(rows), indent=1) + "\n").encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, ROW, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
