"""The report of a run: its block, its list of failures, its rows, its progress."""

import csv
import io
import json
from collections import Counter

import pytest

from workers.client import progress
from workers.client.report import (
    LISTED,
    ROW,
    Statistics,
    format_failures,
    format_rows,
    format_statistics,
    percentile,
    printable,
)


def figures() -> Statistics:
    made = Statistics(sent=1000, received=500, replies=200, elapsed=4.0, saved=190, skipped=7)
    for number in range(200):
        made.add_latency(number / 1000)
    made.servers.update({"b1": 150, "b2": 50})
    return made


def test_the_original_s_block_comes_first_and_letter_for_letter() -> None:
    """As the original's README shows it: 100 times the directory in 0.0929 s."""
    made = Statistics(sent=6_440_000, received=7_010_000, replies=600, pictures=6, elapsed=100 / 1076.02)
    assert format_statistics(made).startswith(
        "-- [ Network Statistics ] --\n"
        "\tbytes sent: 6.4400 Mb\n"
        "\tbytes received: 7.0100 Mb\n"
        "\tRequests Per Second: 1076.02\n"
        "-- [ Pictures ] --\n"
    )


def test_our_block() -> None:
    made = figures()
    made.add_failure("a.jpg", "busy: 64 wait")
    made.add_failure("b.jpg", "busy: 65 wait")
    lines = format_statistics(made).splitlines()
    lines = lines[lines.index("-- [ Pictures ] --") + 1 :]
    assert lines[:6] == [
        "Pictures:            200 answered, 190 saved, 7 skipped, 2 failed, 0 retries",
        "Pictures Per Second: 50.00",
        "Bytes sent:          1000",
        "Bytes received:      500",
        "Latency p50:         100.0 ms",
        "Latency p99:         198.0 ms",
    ]
    assert lines[lines.index("Failures:") + 1].split() == ["2", "busy"]
    assert [line.split() for line in lines[lines.index("Servers:") + 1 :]] == [["150", "b1"], ["50", "b2"]]


def test_an_empty_run_divides_by_nothing() -> None:
    assert "\tRequests Per Second: 0.00" in format_statistics(Statistics())


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 3), (0.99, 4), (1.0, 4)])
def test_percentiles(share: float, value: float) -> None:
    assert percentile([1, 2, 3, 4], share) == value
    assert percentile([], share) == 0


def test_a_peer_s_text_cannot_command_a_terminal() -> None:
    made = Statistics()
    made.add_failure("a\x1b[2J\n.jpg", "500: \x1b]0;owned\x07 \udce9")
    made.servers["\x1b[31m"] += 1
    made.violations.append("1.2.3.4:5: \r\n")
    for text in (format_failures(made), format_statistics(made)):
        assert all(line.removeprefix("\t").isprintable() for line in text.splitlines())
    assert printable("é \udce9 \x00") == "é \\udce9 \\x00"
    assert len(printable("x" * 10_000)) == 300


def test_the_list_of_failures_is_bounded_and_says_so() -> None:
    made = Statistics()
    for number in range(LISTED + 5):
        made.add_failure(f"{number}.jpg", "lost: reset")
    lines = format_failures(made).splitlines()
    assert len(lines) == LISTED + 1
    assert lines[-1] == "... and 5 more"
    assert not made.is_clean()


def test_a_violation_is_not_clean_even_when_nothing_failed() -> None:
    assert Statistics().is_clean()
    assert not Statistics(violations=["x"]).is_clean()


def test_statistics_of_processes_add_up() -> None:
    one, two = figures(), figures()
    two.elapsed = 5.0
    two.add_failure("\udce9.jpg", "lost: reset")
    two.violations.append("v")
    two.rows.append(dict.fromkeys(ROW, 1))
    one.merge(two.dump())
    assert (one.sent, one.replies, one.elapsed, one.failed) == (2000, 400, 5.0, 1)
    assert one.servers == Counter(b1=300, b2=100)
    assert one.failures == [("\udce9.jpg", "lost: reset")]
    assert len(one.latencies) == 400
    with pytest.raises(json.JSONDecodeError):
        one.merge(b"")


def test_rows() -> None:
    rows = [dict(zip(ROW, ("a,b\udce9.jpg", "t", 1, 2, 3.5, "s", 0, ""), strict=True))]
    assert json.loads(format_rows(rows, as_csv=False)) == rows
    text = format_rows(rows, as_csv=True).decode("utf-8", "surrogateescape")
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["picture"] == "a,b\udce9.jpg"
    assert row["ms"] == "3.5"


def test_a_million_latencies_are_thinned_out() -> None:
    made = Statistics()
    for number in range(1000):
        made.add_latency(number, most=100)
    assert len(made.latencies) <= 100


def test_progress_on_a_terminal_fits_its_width() -> None:
    servers = Counter({"backend-1": 30, "backend-2": 20, "": 1})
    shown = progress.bar(51, 100, 2, 10.0, servers, 120)
    assert shown.startswith("[#")
    assert "51/100 5.1/s 10 s left 2 failed backend-1:30 backend-2:20 (unnamed):1" in shown
    for width in (1, 10, 40, 80):
        assert len(progress.bar(51, 100, 2, 10.0, servers, width)) <= max(width - 1, 1)
    assert "waiting" in progress.bar(0, 100, 0, 0.0, Counter(), 80)


def test_progress_in_a_log_is_a_line() -> None:
    assert progress.line(5, 10, 0, 2.0, Counter(b=5)) == "done 5/10 failed 0 rate 2.5/s left 2 s b:5"
    assert progress.line(0, 10, 0, 2.0, Counter()) == "done 0/10 failed 0 rate 0.0/s left unknown"
