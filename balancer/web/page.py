"""A status page for a browser: one HTML page, complete in itself.

RULES
- Pure: a View in, text out. Everything that comes from outside passes `text()`.
- What needs attention comes first, as sentences. No meaning is in a colour alone.
- The page is whole without its script: tables are folded by a box to tick, a view of its own has a path of its own. The
  script asks for what has changed (changes.py), sorts and filters.
- The page loads nothing, and its Content-Security-Policy allows this script and this style only, and forms only where it
  has some. A page with forms is not loaded again without a script: what is typed would be lost.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files

from balancer.web.view import BAD, WARN, ActForm, Cell, PageRow, PageTable, Problem, Tile, View

CONTENT_TYPE = "text/html; charset=utf-8"
TEMPLATE = files(__package__).joinpath("page.html").read_text("utf-8")
MOST_ROWS = 20  # of a table before it is folded
LEVEL_WORDS = {BAD: "alarm", WARN: "warning", "note": "note"}


ACTS = ("drain", "ready", "maint", "weight")
AGAIN = '<meta http-equiv="refresh" content="10">'
BY_HAND = (
    '<noscript><p class="facts">As it was when this page was loaded. Without script, load it again to see what has '
    "changed.</p></noscript>"
)


def _policy(form_action: str) -> str:
    """Content-Security-Policy of the page: its own script and style by their hashes."""
    allowed = []
    for name in ("script", "style"):
        found = re.search(rf"<{name}>(.*?)</{name}>", TEMPLATE, re.DOTALL)
        assert found is not None
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        allowed.append(f"{name}-src 'sha256-{digest}'")
    rest = ("img-src data:", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'")
    return "; ".join(("default-src 'none'", *allowed, *rest, f"form-action {form_action}"))


HEADERS = (("Content-Security-Policy", _policy("'none'")), ("Referrer-Policy", "no-referrer"))
# With no-referrer a browser would say `Origin: null` of a form.
HEADERS_OF_FORMS = (("Content-Security-Policy", _policy("'self'")), ("Referrer-Policy", "same-origin"))


def headers(view: View) -> tuple[tuple[str, str], ...]:
    """What stands above a page over HTTP."""
    return HEADERS if view.acts is None else HEADERS_OF_FORMS


def text(value: object) -> str:
    """Anything as it may stand in HTML, also between the quotes of an attribute."""
    return escape(str(value), quote=True)


def filled(template: str, parts: Mapping[str, str]) -> str:
    """`template` with a part in the place of each {{name}}."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def page(view: View, version: str = "") -> str:
    """The whole page. `version`: what the script has, so that it asks for what changes after it."""
    parts = {
        "level": view.level,
        "title": text(view.title),
        "headline": text(view.headline),
        "facts": "".join(f"<li>{text(fact)}</li>" for fact in view.facts),
        "problems": problem_items(view.problems),
        "tiles": "\n".join(map(tile_html, view.tiles)),
        "tables": "\n".join(table_html(table, view.acts) for table in view.tables),
        "again": AGAIN if view.acts is None else "",
        "by_hand": "" if view.acts is None else BY_HAND,
        "form": "" if view.acts is None else f'<template id="act">{act_html("", "", view.acts)}</template>',
        "links": " ".join(f'<a href="{text(path)}">{text(word)}</a>' for path, word in view.links),
        "documents": ", ".join(f'<a href="{view.base}{path}">{path}</a>' for path in view.documents),
        "source": text(view.source),
        "version": text(version),
    }
    return filled(TEMPLATE, parts)


def problem_items(problems: Iterable[Problem]) -> str:
    items = [
        f'<li class="{level}"><b>{LEVEL_WORDS[level]}</b> {text(sentence)}</li>'
        for level, sentence in problems
    ]
    return "".join(items) or '<li class="calm">Nothing needs attention.</li>'


def tile_html(tile: Tile) -> str:
    return (
        f'<div class="tile" data-tile="{text(tile.key)}"><h3>{text(tile.label)}</h3>'
        f"<p>{text(tile.shown)}</p><small>{text(tile.small)}</small>{chart(tile.points)}</div>"
    )


def chart(points: str) -> str:
    return (
        '<svg class="chart" viewBox="0 0 120 28" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline points="{text(points)}"></polyline></svg>'
    )


def table_html(table: PageTable, acts: ActForm | None = None) -> str:
    rows = sorted(table.rows, key=lambda row: row.place)
    heads = "".join(
        f'<th scope="col" class="n">{text(word[1:])}</th>'
        if word[:1] == "#"
        else f'<th scope="col">{text(word)}</th>'
        for word in table.head
    )
    name, hidden = text(table.name), "" if len(rows) > MOST_ROWS else " hidden"
    fold = (
        f'<label class="fold"{hidden}><input type="checkbox"> show all <b>{len(rows):,}</b> and not the first '
        f"{MOST_ROWS}</label>"
    )
    body = "\n".join(row_html(row, acts) for row in rows)
    return (
        f'<section id="{name}"><h2 id="h-{name}">{text(table.title)}</h2>{fold}\n'
        f'<div class="table" role="region" tabindex="0" aria-labelledby="h-{name}">'
        f'<table class="{name}" data-table="{name}">\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div></section>"
    )


def row_html(row: PageRow, acts: ActForm | None) -> str:
    first, *others = row.cells
    place = json.dumps(row.place)
    cells = f'<th scope="row"{cell_html(first, acts)}</th>' + "".join(
        f"<td{cell_html(one)}</td>" for one in others
    )
    return f'<tr data-key="{text(row.key)}" data-place="{place}">{cells}</tr>'


def cell_html(cell: Cell, acts: ActForm | None = None) -> str:
    """The rest of its tag, and what is in it. The script builds the same (`fill`)."""
    look = f' class="{text(cell.look)}"' if cell.look else ""
    order = f' data-order="{text(cell.order)}"' if cell.order != "" else ""
    shown = text(cell.text)
    if cell.link:
        shown = f'<a href="{text(cell.link)}">{shown}</a>'
    if cell.look.startswith("pill"):
        shown = f"<span>{shown}</span>"
    if cell.small:
        shown += f"<small>{text(cell.small)}</small>"
    if cell.part >= 0:
        rects = f'<rect class="of" width="100%"></rect><rect width="{cell.part}%"></rect>'
        shown += f'<svg aria-hidden="true">{rects}</svg>'
    if cell.points:
        shown += chart(cell.points)
    if cell.act and acts is not None:
        shown += act_html(cell.act, cell.text, acts)
    return f"{look}{order}>{shown}"


def act_html(name: str, shown: str, acts: ActForm) -> str:
    """The form of one backend. Without a choice Enter sends nothing: the first act is no default."""
    choices = "".join(f"<option>{act}</option>" for act in ACTS)
    return (
        f'<details class="act"><summary aria-label="change {text(shown)}">change</summary>'
        f'<form method="post" action="{text(acts.path)}"><input type="hidden" name="name" value="{text(name)}">'
        f'<input type="hidden" name="view" value="{text(acts.view)}">'
        f'<label>do <select name="act" required><option value="">choose</option>{choices}</select></label>'
        '<label class="weight">weight <input type="number" name="weight" min="0" max="256"></label>'
        '<label>reason <input name="reason" maxlength="500" autocomplete="off"></label>'
        '<label>token <input type="password" name="token" required autocomplete="current-password"></label>'
        "<button>apply</button><output></output></form></details>"
    )
