"""Texts for people laid out within the width of their terminal: paragraphs, two columns, an example command.

RULES: text in, text out; the width is asked for once per call. No line is longer than the width, down to 40 characters.
"""

import re
import shutil
import textwrap
from collections.abc import Iterable

NARROWEST, WIDEST = 40, 100  # lines longer than 100 characters are hard to read
_LEFT = 30  # of two columns, where there is room


def width() -> int:
    """Characters in a line: COLUMNS, or the terminal's, within bounds; the widest where there is no terminal."""
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))


def filled(text: str, indent: str = "") -> str:
    """A paragraph."""
    return "\n".join(_wrap(text, width() - len(indent), indent))


def command(text: str) -> str:
    """An example command, indented; a long one continues behind a backslash, at its options."""
    lines, room = [""], width() - 4
    for part in re.split(r" (?=-)", text):
        if lines[-1] and len(lines[-1]) + 1 + len(part) > room - 2:
            lines.append(part)
        else:
            lines[-1] = f"{lines[-1]} {part}".strip()
    return "  " + " \\\n    ".join(lines)


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Two columns; the text of a row begins on the next line where the left word takes its place."""
    room = width()
    indent = min(_LEFT, room * 2 // 5)
    lines: list[str] = []
    for left, text in rows:
        body = _wrap(text, room - indent)
        head = f"  {left}"
        if len(head) < indent - 1 and body:
            lines.append(head.ljust(indent) + body.pop(0))
        else:
            lines += _wrap_choices(head, room)
        lines += [" " * indent + line for line in body]
    return "\n".join(lines)


def _wrap(text: str, room: int, indent: str = "") -> list[str]:
    """Broken at blanks; a longer word behind one of its own signs, or in the middle."""
    pieces = [_shortened(word, room) for word in text.split()]
    return [indent + line for line in textwrap.wrap(" ".join(pieces), room, break_on_hyphens=False)]


def _shortened(word: str, room: int) -> str:
    """A word that fits: one that is too long gets a blank behind a comma, a slash or an underscore."""
    parts = [word]
    while len(parts[-1]) > room:
        cut = max((parts[-1].rfind(sign, 0, room) for sign in ",/_|"), default=-1) + 1
        parts[-1:] = [parts[-1][: cut or room], parts[-1][cut or room :]]
    return " ".join(parts)


def _wrap_choices(head: str, room: int) -> list[str]:
    """The left word of a row on lines of its own: `--balance leastconn|roundrobin|...` is broken behind a bar."""
    if len(head) <= room:
        return [head]
    cut = head.rfind("|", 0, room) + 1 or room
    return [head[:cut], *_wrap_choices(" " * 8 + head[cut:].strip(), room)]
