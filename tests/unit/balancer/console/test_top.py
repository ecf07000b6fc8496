"""`top` without a terminal: what rates come of two statuses, what keys do, and that an act is asked for first."""

import fcntl
import os
import pty
import struct
import termios
from typing import Any

import pytest

from balancer.console.top import VIEWS, Quit, Top, sparkline, visible
from balancer.ctl_top import names_of, once, plain_lines, size_of
from tests.unit.balancer.console.sample_status import backend, event, listener, status, worker


def of(new: int = 0, **more: Any) -> dict[str, Any]:
    """Three backends, of which web-2 gets the new sessions."""
    backends = [
        backend("web-1", sessions=5),
        backend("web-2", sessions_total=30 + new, bytes_in_total=4096 + 1024 * new),
        backend("db", state="down", connect_failures_total=7),
    ]
    return status(backends=backends, **more)


@pytest.fixture
def top() -> Top:
    """After two statuses, two seconds apart."""
    top = Top()
    top.feed(of(), 100.0)
    top.feed(of(new=8), 102.0)
    return top


def press(top: Top, *keys: str) -> list[list[str]]:
    """What is sent to the console."""
    return [words for key in keys if (words := top.press(key)) is not None]


def names(top: Top) -> list[str]:
    return [row.name for row in top.rows()]


def test_rates_come_from_two_statuses(top: Top) -> None:
    rows = {row.name: row.cells for row in top.rows()}
    assert rows["web-2"][3] == "4.0" and rows["web-2"][6] == "4.0 KiB" and rows["web-1"][3] == "0.0"
    first = Top()
    first.feed(of(), 1.0)
    assert {row.cells[3] for row in first.rows()} == {"-"}, "unknown is no 0"


def test_another_master_begins_at_0_and_is_no_negative_rate(top: Top) -> None:
    top.feed(of(new=-30), 103.0)
    assert {row.cells[3] for row in top.rows()} == {"0.0"}


def test_a_backend_that_is_new_has_no_rate_yet(top: Top) -> None:
    top.feed(status(backends=[backend("new")]), 103.0)
    assert names(top) == ["new"] and top.rows()[0].cells[3] == "-"


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([0, 0], "▁▁"), ([0, 4, 8], "▁▄█"), ([1] * 9, "█" * 5), ([9, 1, 1, 1, 1, 1], "█" * 5)],
)
def test_a_sparkline_has_the_last_values_against_the_greatest(values: list[float], bars: str) -> None:
    assert sparkline(values, 5) == bars


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_fits_80_by_24_and_keeps_its_foot(view: str) -> None:
    many = [backend(f"{'x' * 40}-{place}") for place in range(100)]
    top = Top()
    top.feed(
        status(
            backends=many, listeners=[listener(f"web-{n}") for n in range(50)], host="h" * 90,
            workers=[worker(n, pid=n) for n in range(64)], events=[event(text="t" * 300, serial=n) for n in range(20)],
        ),
        1.0,
    )  # fmt: skip
    press(top, str(VIEWS.index(view) + 1))
    lines = plain_lines(top.screen(80), 80, 24)
    assert len(lines) == 24 and max(map(len, lines)) <= 80
    assert "q quit" in lines[-1] and f"[{VIEWS.index(view) + 1} {view}]" in lines[3]
    press(top, *["down"] * 200)
    screen = top.screen(80)
    assert screen.selected == len(screen.rows) - 1
    assert screen.selected in [place for place, _ in visible(screen, 24)], "the selected row stays in sight"


def test_keys_sort_and_turn_round(top: Top) -> None:
    press(top, "s")
    assert names(top) == ["db", "web-1", "web-2"] and top.screen(80).sorted_by == 0
    press(top, "s", "s")
    assert names(top)[0] == "web-1", "most sessions first"
    press(top, "s")
    assert names(top)[0] == "web-2", "most new sessions first"
    press(top, "S")
    assert names(top)[-1] == "web-2"


def test_a_filter_is_typed_and_ended(top: Top) -> None:
    press(top, "/", "W", "e", "x", "backspace", "b", "q", "backspace")
    assert names(top) == ["web-1", "web-2"], "while it is typed, q is a letter"
    press(top, "enter")
    assert names(top) == ["web-1", "web-2"] and "filter: Web" in top.screen(80).foot
    press(top, "escape")
    assert len(names(top)) == 3


@pytest.mark.parametrize(("key", "act"), [("d", "drain"), ("r", "ready")])
def test_an_act_is_asked_for_and_done_on_y_only(top: Top, key: str, act: str) -> None:
    assert press(top, "j", key) == [] and top.screen(80).foot == f"{act} web-2? y/n"
    assert press(top, "n") == [] and "left as it is" in top.screen(80).foot
    assert press(top, key, "q") == [], "any other key is a no, and does not quit"
    assert press(top, key, "y") == [[act, "web-2", "--reason", "top"]]
    top.answered({"text": "web-2 done"})
    assert top.screen(80).foot == "web-2 done"
    assert press(top, "4", key, "y") == [] and "is for a backend" not in top.screen(80).foot


def test_an_act_names_the_pool_where_others_have_the_name(top: Top) -> None:
    rows = [backend("a"), backend("a", pool="api"), backend("b", pool="api")]
    top.feed(status(backends=rows), 103.0)
    sent = [words[1] for at in range(3) for words in press(top, *"kk", *"j" * at, "d", "y")]
    assert sent == ["main/a", "api/a", "api/b"]


def test_the_question_names_the_backend_that_was_selected_when_rows_move(top: Top) -> None:
    press(top, "j", "d")
    top.feed(status(backends=[backend("db"), backend("web-1")]), 103.0)
    assert press(top, "y") == [["drain", "web-2", "--reason", "top"]]


@pytest.mark.parametrize(
    ("serving", "reason", "said"),
    [
        (True, "", "clients are served"),
        (True, "pool a: every backend is down", "clients are served, but pool a: every backend is down"),
        (False, "no worker is ready", "NO CLIENT CAN BE SERVED: no worker is ready"),
    ],
)
def test_the_first_line_says_who_is_not_served(top: Top, serving: bool, reason: str, said: str) -> None:
    top.feed(status(serving=serving, reason=reason), 2.0)
    assert top.screen(80).title[0].endswith(f"  {said}")


def test_q_quits(top: Top) -> None:
    with pytest.raises(Quit):
        top.press("q")


def test_what_terminals_send_for_keys() -> None:
    assert names_of("\x1b[Aj\x1bOB\r\t\x7fé") == ["up", "j", "down", "enter", "tab", "backspace", "é"]
    assert names_of("\x1b") == ["escape"]
    assert names_of("\x1b[15~q\x1b[Cq") == ["q", "q"], "keys that mean nothing here are left out whole"


def test_names_steer_no_terminal(top: Top) -> None:
    top.feed(of(version="1\x1b[31m"), 104.0)
    assert not any("\x1b" in line for line in plain_lines(top.screen(80), 80, 24))


def test_without_a_terminal_all_views_are_printed_once() -> None:
    text = once(of(), 80)
    for word in ("web-1", "main", "LISTENER", "WORKER", "backend=a check=refused"):
        assert word in text


def test_no_character_of_a_keyboard_is_a_fault(top: Top) -> None:
    for key in (*map(chr, range(32, 0x250)), "²", "٣", "Ⅳ", "𝟝"):  # some are digits, but no numbers
        if key != "q":
            press(top, key, "escape", "n")
    press(top, "3", "²")
    assert top.view == "pools"


@pytest.mark.parametrize(("size", "found"), [((0, 0), (80, 24)), ((100, 0), (100, 24)), ((7, 3), (7, 3))])
def test_a_terminal_that_knows_no_size_gets_the_usual_one(
    size: tuple[int, int], found: tuple[int, int]
) -> None:
    outer, inner = pty.openpty()
    try:
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        assert size_of(inner) == found
    finally:
        os.close(outer)
        os.close(inner)
