"""Texts within the width of a terminal: nothing sticks out, nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer import configuration, ctl_options
from balancer.config import layout
from workers.client import options as client_options
from workers.resizer import options as resizer_options

HELPS = {
    "balancer": configuration.help_text,
    "balancerctl": ctl_options.help_text,
    "resizer": resizer_options.help_text,
    "resize-client": client_options.help_text,
}


def at(columns: int) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    patch.setenv("COLUMNS", str(columns))
    return patch


@pytest.mark.parametrize("program", HELPS)
def test_every_help_fits_the_terminal(program: str) -> None:
    """Fails where a line is cut or wrapped by the terminal, in the middle of a word."""
    for columns in range(60, 201):
        patch = at(columns)
        text = HELPS[program]()
        patch.undo()
        assert max(map(len, text.splitlines())) <= min(columns, layout.WIDEST), columns


@pytest.mark.parametrize(("columns", "width"), [("1", 40), ("72", 72), ("100", 100), ("1000", 100)])
def test_the_width_has_bounds(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert layout.width() == width


def test_an_example_continues_behind_a_backslash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert layout.command("balancer -u '10.0.0.1:9 weight=2' -u b:9 --json").splitlines() == [
        "  balancer -u '10.0.0.1:9 weight=2' \\",
        "    -u b:9 --json",
    ]


TEXTS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=80)


@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, max_size=6))), st.integers(40, 120))
def test_two_columns_hold_every_word(rows: list[tuple[str, list[str]]], columns: int) -> None:
    patch = at(columns)
    text = layout.table((left, " ".join(words)) for left, words in rows)
    patch.undo()
    assert all(len(line) <= columns for line in text.splitlines())
    assert "".join(text.split()) == "".join(left + "".join(words) for left, words in rows)
