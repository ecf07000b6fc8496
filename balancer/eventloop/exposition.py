"""Figures as Prometheus reads them: text exposition format 0.0.4.

RULES: pure. A figure that is not known has no line; it is never 0.
"""

import re
from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]
Value = int | float | bool | None
Family = tuple[str, str, str, Iterable[tuple[str, Labels, Value]]]

_SPECIAL = re.compile(r'[\\"\n]')
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}


def exposition_text(families: Iterable[Family]) -> str:
    """The text of families of (name, TYPE, HELP, samples). A sample is (suffix of the name, labels, value)."""
    lines: list[str] = []
    for name, kind, about, samples in families:
        known = [line(name + suffix, labels, value) for suffix, labels, value in samples if value is not None]
        if known:
            lines += (f"# HELP {name} {about}", f"# TYPE {name} {kind}", *known)
    return "\n".join(lines) + "\n"


def line(name: str, labels: Labels, value: int | float | bool) -> str:
    """One sample."""
    pairs = ",".join(f'{key}="{escape(text)}"' for key, text in labels.items())
    return f"{name}{{{pairs}}} {number(value)}" if pairs else f"{name} {number(value)}"


def escape(value: str) -> str:
    """A label's value as it stands between its quotes."""
    return _SPECIAL.sub(lambda found: _ESCAPES[found[0]], value)


def number(value: int | float | bool) -> str:
    """A value; six decimals are enough."""
    return str(int(value)) if isinstance(value, int) else repr(round(value, 6))
