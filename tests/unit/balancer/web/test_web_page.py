"""The page that the daemons share, as far as the pages of balancer and resizer do not show it."""

from math import isnan, nan

from balancer.web.history import BLOCK, STEPS, History, points
from balancer.web.page import TEMPLATE, filled, page
from balancer.web.view import Cell, PageRow, PageTable, View, words


def view(rows: int) -> View:
    table = PageTable(
        "t", "T", ("name", "#count"), [PageRow(str(n), (words("x"), Cell("1"))) for n in range(rows)]
    )
    return View("host", "h", (), (), (), (table,), ("a", "b"), "status?")


def test_every_part_of_the_template_has_its_place_once() -> None:
    html = page(view(1))
    assert '<a href="a">a</a>, <a href="b">b</a>' in html and "{{" not in html and "{{tables}}" in TEMPLATE
    assert '<th scope="col">name</th><th scope="col" class="n">count</th>' in html
    assert filled("{{x}}-{{y}}", {"x": "{{y}}", "y": "2"}) == "{{y}}-2", "a part is not a template"


def test_a_table_is_folded_beyond_20_rows() -> None:
    assert '<label class="fold" hidden>' in page(view(20))
    assert '<label class="fold">' in page(view(21)) and "show all <b>21</b>" in page(view(21))


def test_the_history_is_one_hour_of_steps_with_gaps() -> None:
    history = History(memoryview(bytearray(8 * BLOCK)).cast("f"))
    history.write(1, 1000.0, [5.0])
    history.write(1, 1020.0, [7.0])
    values = history.read(1, 0, 1025.0)
    assert len(values) == STEPS and values[-1] == 7 and isnan(values[-2]) and values[-3] == 5
    assert all(map(isnan, history.read(0, 0, 1025.0))), "another thing"
    assert all(map(isnan, history.read(1, 0, 1025.0 + 3600))), "older than an hour"
    history.clear(1)
    assert all(map(isnan, history.read(1, 0, 1025.0)))


def test_a_chart_goes_from_zero_to_the_highest() -> None:
    assert points([0.0, 0.0, 0.0, 1.0, 4.0, nan]) == "0,26 1,2" and points([nan] * 6) == ""
