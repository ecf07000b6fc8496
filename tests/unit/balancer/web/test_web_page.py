"""The page that the daemons share, as far as the pages of balancer and resizer do not show it."""

from balancer.web.page import TEMPLATE, filled, page, table, tile


def test_every_part_of_the_template_has_its_place_once() -> None:
    html = page("good", "h", "f", [], [tile("k", "label", 5, "count")], "CONTENT", ("a", "b"), "host")
    assert html.count("CONTENT") == 1 and '<a href="a">a</a>, <a href="b">b</a>' in html
    assert "{{" not in html and "{{content}}" in TEMPLATE
    assert filled("{{x}}-{{y}}", {"x": "{{y}}", "y": "2"}) == "{{y}}-2", "a part is not a template"


def test_columns_of_numbers_are_to_the_right() -> None:
    assert '<th>name</th><th class="n">count</th>' in table(("name", "#count"), ("<tr></tr>",))
