"""The progress of a run as a bar of any width and as a line of a log."""

import ast
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm.utils import disp_len

from workers.client.progress import ProgressState, bar, line

ROOT = Path(__file__).resolve().parents[4]
STATE = ProgressState(51, 100, 2, 35_100_000, 10.0, Counter({"backend-1": 30, "backend-2": 20, "": 1}))


def test_a_bar_has_count_failures_time_left_rate_bytes_and_servers() -> None:
    shown = bar(STATE, 120)
    assert shown.startswith(" 51%|\u2588")
    assert shown.endswith(
        "| 51/100 2 failed 00:09 left  5.10/s, 35.1MB backend-1:30 backend-2:20 (unnamed):1"
    )
    assert disp_len(shown) == 120
    assert " failed" not in bar(replace(STATE, failed=0), 120)
    assert bar(STATE, 120, is_ascii=True).isascii()


@given(
    st.builds(
        ProgressState,
        st.integers(0, 10**9),
        st.integers(0, 10**9),
        st.integers(0, 10**6),
        st.integers(0, 10**15),
        st.floats(0, 1e9),
        st.dictionaries(st.text(max_size=64), st.integers(1, 10**9), max_size=6).map(Counter),
    ),
    st.integers(1, 300),
)
def test_a_bar_fits_any_width_and_is_one_line(state: ProgressState, width: int) -> None:
    shown = bar(state, width)
    assert disp_len(shown) <= width
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("width", "visible"), [(10, " 51%|"), (16, "51/100"), (26, "2 failed"), (40, "00:09 left")]
)
def test_what_matters_most_stays_the_longest(width: int, visible: str) -> None:
    assert visible in bar(STATE, width)


def test_a_run_of_nothing_and_one_that_has_not_begun_divide_by_nothing() -> None:
    assert "0/0" in bar(ProgressState(0, 0, 0, 0, 0.0), 80)
    assert "? left" in bar(ProgressState(0, 9, 0, 0, 0.0), 80)


def test_a_line_of_a_log() -> None:
    state = ProgressState(5, 10, 0, 1200, 2.0, Counter(b=5))
    assert line(state) == "done 5/10 failed 0 bytes 1200 rate 2.5/s left 2 s b:5"
    assert line(ProgressState(0, 10, 0, 0, 0.0)) == "done 0/10 failed 0 bytes 0 rate 0.0/s left unknown"


def test_only_a_bar_loads_the_library() -> None:
    """Daemons and runs without a terminal start without its 38 ms."""
    users = [path for package in ("balancer", "workers") for path in (ROOT / package).rglob("*.py")]
    users = [path for path in users if "tqdm.std" in path.read_text()]
    assert users == [ROOT / "workers/client/progress.py"]
    tree = ast.parse(users[0].read_text())
    assert not [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "tqdm.std"]
