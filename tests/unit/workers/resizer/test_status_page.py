"""The resizer's status page: the figures of the status, what needs attention, nothing that could break the page."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, PID, make_shared
from balancer.web.page import page
from workers.resizer import counters
from workers.resizer.counters import status_document
from workers.resizer.options import ResizerOptions
from workers.resizer.rates import Rates
from workers.resizer.status_page import status_changes, status_view, sums_of

OPTIONS = ResizerOptions(name="here", queue=10)


def document(**changed: Any) -> dict[str, Any]:
    shared = make_shared(counters.COLUMNS)
    shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + 1
    front = shared.rows.row(FIRST_LEASE)
    front[PID], front[counters.WORKERS], front[counters.PICTURES_AS["webp"]] = 4711, 2, 1234
    for _ in range(99):
        counters.observe(front, counters.WORK, 0.004)
    counters.observe(front, counters.WORK, 0.4)
    return status_document(shared, "here", "1.2") | changed


def words(html: str) -> str:
    return " ".join(re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", html, flags=re.DOTALL).split())


def level(html: str) -> str:
    found = re.search(r'<main class="level-(\w+)"', html)
    assert found
    return found[1]


def test_the_figures_of_the_status() -> None:
    html = page(status_view(document(), OPTIONS, "", Rates()))
    shown = words(html)
    assert level(html) == "good" and "Nothing needs attention." in shown
    assert "2 CPU processes, 0 pictures at work, 0 waiting" in shown
    assert "in a CPU process 100 5 ms 5 ms 5 ms" in shown and "waiting 0 - - -" in shown
    assert "front 0" in shown and "4711" in shown and "1,234" in shown
    assert "{{" not in html


@pytest.mark.parametrize(
    ("changed", "reason", "expected", "sentence"),
    [
        ({}, "no CPU process is there", "bad", "No picture can be taken: no CPU process is there."),
        ({"queued": 10}, "", "warn", "The queue is full (10 of 10)"),
        ({"slots": 500}, "", "warn", "places for pictures are in use"),
    ],
)
def test_what_needs_attention(changed: dict[str, Any], reason: str, expected: str, sentence: str) -> None:
    html = page(status_view(document(**changed), OPTIONS, reason, Rates()))
    assert level(html) == expected and sentence in words(html)


def test_names_cannot_break_the_page_and_every_element_is_closed() -> None:
    html = page(status_view(document(name='<script>alert("x")</script>'), OPTIONS, "<b>", Rates()))
    assert html.count("<script>") == 1

    class Balance(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "link", "input"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    balance = Balance()
    balance.feed(html)
    assert not balance.open


def test_tiles_tell_rates_once_there_are_two_samples() -> None:
    rates = Rates()
    first = document()
    rates.note(100.0, sums_of(first))
    assert "pictures 1,234 in all" in words(page(status_view(first, OPTIONS, "", rates)))
    second = document(pictures={"webp": 1334})
    rates.note(110.0, sums_of(second))
    view = status_view(second, OPTIONS, "", rates)
    assert "pictures 10.0 / s 1,334 in all" in words(page(view))
    assert "1,334 in all" in json.dumps(status_changes(view))
    rates.note(165.0, sums_of(second))  # the first sample is more than a minute old
    assert "pictures 0 / s 1,334 in all" in words(page(status_view(second, OPTIONS, "", rates)))


def test_a_chart_has_the_growth_from_each_sample_to_the_next() -> None:
    rates = Rates()
    for now, count in ((10.0, 0), (10.5, 8), (12.0, 8), (14.0, 8)):
        rates.note(now, {"pictures": count})
    assert rates.chart("pictures") == "116,2 117,2 118,26 119,26"
