"""Figures as Prometheus reads them: text exposition format 0.0.4, or OpenMetrics 1.0.

RULES: pure. A figure that is not known has no line; it is never 0. In OpenMetrics a counter's family is its name without
`_total`, so no gauge may be called that: one set of names serves both formats.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Labels = Mapping[str, str]
Value = int | float | bool | None
Sample = tuple[str, Labels, Value]  # suffix of the family's name, labels, value
Family = tuple[str, str, str, Iterable[Sample]]

_SPECIAL = re.compile(r'[\\"\n]')
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}


def exposition_text(families: Iterable[Family], is_open_metrics: bool = False) -> str:
    """The text of families of (name, TYPE, HELP, samples)."""
    lines: list[str] = []
    for name, kind, about, samples in families:
        known = [line(name + suffix, labels, value) for suffix, labels, value in samples if value is not None]
        if known:
            family = name.removesuffix("_total") if is_open_metrics and kind == "counter" else name
            lines += (f"# HELP {family} {about}", f"# TYPE {family} {kind}", *known)
    if is_open_metrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def histogram_samples(
    bounds: Sequence[float], labels: Labels, counts: Sequence[int], seconds: float
) -> Iterator[Sample]:
    """The samples of one histogram: `counts` has one figure per bound, and one for what is above them; none is zeros."""
    up_to = list(accumulate(counts or (0,) * (len(bounds) + 1)))
    for bound, count in zip((*map(repr, bounds), "+Inf"), up_to, strict=True):
        yield "_bucket", {**labels, "le": bound}, count
    yield "_sum", labels, seconds
    yield "_count", labels, up_to[-1]


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
