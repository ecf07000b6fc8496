"""A status page for a browser: one HTML page, complete in itself.

RULES
- Pure: text in, text out. Everything that comes from outside passes `text()`.
- What needs attention comes first, as sentences. No meaning is in a colour alone.
- A page is rendered here only: the script in page.html fetches it again and replaces the content, so that it shows the
  same with and without script. The script adds rates, which need two samples: an element with `data-key` has the figure
  in `data-value` and the format of its rate in `data-as`.
- The page loads nothing, and its Content-Security-Policy allows this script and this style only.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files

from balancer.web.figures import human_bytes, human_number

CONTENT_TYPE = "text/html; charset=utf-8"
TEMPLATE = files(__package__).joinpath("page.html").read_text("utf-8")
GOOD, WARN, BAD = "good", "warn", "bad"


def _policy() -> str:
    """Content-Security-Policy of the page: its own script and style by their hashes."""
    allowed = []
    for name in ("script", "style"):
        found = re.search(rf"<{name}>(.*?)</{name}>", TEMPLATE, re.DOTALL)
        assert found is not None
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        allowed.append(f"{name}-src 'sha256-{digest}'")
    return "; ".join(
        ("default-src 'none'", *allowed, "img-src data:", "connect-src 'self'", "frame-ancestors 'none'")
    )


HEADERS = (("Content-Security-Policy", _policy()), ("Referrer-Policy", "no-referrer"))


def text(value: object) -> str:
    """Anything as it may stand in HTML, also between the quotes of an attribute."""
    return escape(str(value), quote=True)


def filled(template: str, parts: Mapping[str, str]) -> str:
    """`template` with a part in the place of each {{name}}."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def page(
    level: str,
    headline: str,
    facts: str,
    problems: Iterable[tuple[str, str]],
    tiles: Iterable[str],
    content: str,
    links: Iterable[str],
    host: str,
) -> str:
    """The whole page. `level` is the worst of the `problems`, which are (level, sentence); `content` is HTML; `links` are
    paths beside the page."""
    parts = {
        "level": level,
        "title": text(f"{host}: {headline}"),
        "headline": text(headline),
        "facts": text(facts),
        "problems": problem_items(problems),
        "tiles": "\n".join(tiles),
        "content": content,
        "links": ", ".join(f'<a href="{link}">{link}</a>' for link in links),
    }
    return filled(TEMPLATE, parts)


def problem_items(problems: Iterable[tuple[str, str]]) -> str:
    words = {BAD: "alarm", WARN: "warning", "note": "note"}
    items = [
        f'<li class="{level}"><b>{words[level]}</b> {text(sentence)}</li>' for level, sentence in problems
    ]
    return "\n".join(items) or '<li class="calm">Nothing needs attention.</li>'


# -- the figures


def tile(key: str, label: str, value: int, kind: str) -> str:
    """An important figure; the script adds its rate over time. `kind`: gauge, count or bytes."""
    shown = human_bytes(value) if kind == "bytes" else human_number(value)
    total = "" if kind == "gauge" else " in all"
    return (
        f'<div class="tile {kind}"><h3>{label}</h3>'
        f'<p class="rate" data-key="{key}" data-value="{value}" data-as="{kind}"></p>'
        f'<p class="sum"><b>{shown}</b>{total}</p>'
        f'<svg data-history="{key}" viewBox="0 0 120 28" preserveAspectRatio="none" aria-hidden="true">'
        "<polyline></polyline></svg></div>"
    )


def table(head: Iterable[str], rows: Iterable[str]) -> str:
    """A table with a head of words; those of numbers begin with `#`."""
    words = "".join(
        f'<th class="n">{word[1:]}</th>' if word[:1] == "#" else f"<th>{word}</th>" for word in head
    )
    body = "\n".join(rows)
    return f'<div class="table"><table>\n<thead><tr>{words}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def row(*cells: str) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def cell(shown: str, kind: str = "") -> str:
    return f'<td class="n {kind}">{text(shown)}</td>'


def figure(key: str, value: int, kind: str) -> str:
    """A cell with a total, and an element for its rate below."""
    shown = human_bytes(value) if kind == "bytes" else human_number(value)
    return f'<td class="n">{shown}{rate_of(key, value, kind)}</td>'


def rate_of(key: str, value: int, kind: str) -> str:
    return f'<small data-key="{text(key)}" data-value="{value}" data-as="{kind}"></small>'


def pill(word: str, level: str) -> str:
    return f'<span class="pill {level}">{text(word)}</span>'


def bar_cell(shown: str, part: float, limit: float) -> str:
    """A figure over a bar of its share of a limit, without a bar where there is none. SVG: the policy forbids styles on
    elements."""
    if not limit:
        return f'<td class="bar">{text(shown)}</td>'
    width = round(100 * min(part / limit, 1.0), 1)
    rects = f'<rect class="of" width="100%"></rect><rect width="{width}%"></rect>'
    return f'<td class="bar">{text(shown)}<svg aria-hidden="true">{rects}</svg></td>'
