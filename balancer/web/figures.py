"""Figures as a person reads them.

RULES: pure.
"""

from typing import Any


def human_bytes(count: int | None) -> str:
    """1536 -> '1.5 KiB'; None -> '-'."""
    if count is None:
        return "-"
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def human_age(seconds: float) -> str:
    """93784.2 -> '1d 2h'; two units at most, for a person."""
    left = int(seconds)
    parts: list[str] = []
    for name, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= length or (name == "s" and not parts):
            parts.append(f"{left // length}{name}")
            left %= length
    return " ".join(parts[:2])


def human_number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def of_limit(count: int, limit: int) -> str:
    """3 -> "3", and "3/64" where there is a limit."""
    return f"{human_number(count)}/{human_number(limit)}" if limit else human_number(count)
