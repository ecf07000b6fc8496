"""The report of a run: its block, its list of failures, its rows, its end."""

import csv
import io
import json
import signal
from collections import Counter

import pytest

from workers.client.report import (
    LISTED,
    ROW,
    Statistics,
    format_end,
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


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (Statistics(), 0),
        (Statistics(replies=3, skipped=2, left_out={"no": ["x"]}, notes=Counter({"first frame": 3})), 0),
        (Statistics(failed=1), 1),
        (Statistics(unfinished=1), 1),
        (Statistics(stops=["cannot write the report"]), 1),
        (Statistics(violations=["x"]), 1),
        (Statistics(signal=signal.SIGINT, unfinished=3, failed=1), 130),
        (Statistics(signal=signal.SIGTERM, unfinished=3), 143),
    ],
)
def test_exit_codes(made: Statistics, code: int) -> None:
    assert made.exit_code() == code


def test_a_note_and_what_is_left_out_are_counted_and_named() -> None:
    made = Statistics(notes=Counter({"first of 9 frames: jpeg holds no animation": 2}))
    made.left_out = {"not wanted": [f"{n}.jpg" for n in range(7)], "directory of results": ["small\x1b/"]}
    lines = format_statistics(made).splitlines()
    at = lines.index("Notes:")
    assert lines[at + 1] == "         2  first of 9 frames: jpeg holds no animation"
    assert lines[lines.index("Left out:") + 1 :] == [
        "         1  directory of results: small\\x1b/",
        "         7  not wanted: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, ...",
    ]


def test_the_end_is_one_sentence() -> None:
    assert format_end(Statistics(replies=3)) == ""
    made = Statistics(stops=["cannot connect to 127.0.0.1:9: Connection refused"], unfinished=300)
    assert format_end(made) == "cannot connect to 127.0.0.1:9: Connection refused; 300 pictures not done"
    assert "not done" in format_statistics(made)
    assert format_failures(made) == ""


def test_statistics_of_processes_add_up() -> None:
    one, two = figures(), figures()
    two.elapsed = 5.0
    two.add_failure("\udce9.jpg", "lost: reset")
    two.violations.append("v")
    for each in (one, two):
        each.add_stop("gone")
        each.unfinished, each.notes["n"] = 3, 1
    two.signal = 2
    two.rows.append(dict.fromkeys(ROW, 1))
    one.merge(two.dump())
    assert (one.sent, one.replies, one.elapsed, one.failed) == (2000, 400, 5.0, 1)
    assert (one.stops, one.unfinished, one.signal, one.notes["n"]) == (["gone"], 6, 2, 2)
    assert one.servers == Counter(b1=300, b2=100)
    assert one.failures == [("\udce9.jpg", "lost: reset")]
    assert len(one.latencies) == 400
    with pytest.raises(json.JSONDecodeError):
        one.merge(b"")


def test_rows() -> None:
    rows = [dict(zip(ROW, ("a,b\udce9.jpg", "t", 1, 2, 3.5, "s", 0, "", "n"), strict=True))]
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
