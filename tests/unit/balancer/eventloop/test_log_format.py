"""The forms of a line: the same keys in logfmt and JSON, values that come back as they were, priorities, samples."""

import json
import re
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.common import parse_level, parse_sessions
from balancer.eventloop.log_format import LineFormat, SessionSample, fields_in, value_text

KEYS = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
HEAD = {"time", "level", "process", "pid", "verb", "then"}
FIELDS = st.dictionaries(
    KEYS.filter(lambda key: key not in HEAD), st.text() | st.integers(-(10**17), 10**17), max_size=5
)


def text_of(fields: dict[str, Any]) -> str:
    return " ".join(f"{key}={value_text(value)}" for key, value in fields.items())


def line(form: str, text: str, then: object = None, destination: str = "") -> str:
    made = LineFormat(form, "worker 2", 4711, destination)
    found = made.line("2026-11-27T12:00:00.123", "warning", "refuse", text, then)
    assert found.endswith("\n") and found.count("\n") == 1
    return found[:-1]


@given(FIELDS, st.none() | st.text())
def test_json_and_logfmt_have_the_same_keys_and_the_values_as_they_were(
    fields: dict[str, Any], then: str | None
) -> None:
    head = {
        "time": "2026-11-27T12:00:00.123Z",
        "level": "warning",
        "process": "worker 2",
        "pid": 4711,
        "verb": "refuse",
    }
    wanted = head | fields | ({} if then is None else {"then": then})
    read = json.loads(line("json", text_of(fields), then))
    assert read.keys() == wanted.keys()
    assert {key: str(value) for key, value in read.items()} == {
        key: str(value) for key, value in wanted.items()
    }
    logfmt = line("logfmt", text_of(fields), then)
    assert logfmt.isprintable() and fields_in(logfmt) == read


def test_whole_numbers_are_numbers_in_json() -> None:
    read = json.loads(
        line("json", 'in=12 connect=0.3ms retries=1+ name="12" backend=007 pool=-0 reason="a \\"b\\" c"')
    )
    assert (read["in"], read["connect"], read["retries"], read["name"]) == (12, "0.3ms", "1+", "12")
    assert (read["backend"], read["pool"]) == ("007", "-0"), "names, which a number would not give back"
    assert read["reason"] == 'a "b" c'


@pytest.mark.parametrize("form", ["text", "logfmt", "json"])
def test_a_destination_puts_its_head_before_the_line(form: str) -> None:
    assert line(form, "a=1", destination="journal") == "<4>" + line(form, "a=1")
    syslog = line(form, "a=1", "close", destination="syslog")
    assert syslog.startswith("<28>1 2026-11-27T12:00:00.123Z - balancer 4711 refuse - ")
    if form == "text":
        assert syslog.endswith(" - worker 2 refuse a=1 then=close")
    else:
        assert syslog.endswith(line(form, "a=1", "close"))


@pytest.mark.parametrize(
    ("sessions", "clean", "bad"),
    [("all", [True] * 6, [True] * 2), ("bad", [False] * 6, [True] * 2), ("none", [False] * 6, [False] * 2),
     ("1/3", [False, False, True] * 2, [True] * 2), ("1/1", [True] * 6, [True] * 2)],
)  # fmt: skip
def test_samples(sessions: str, clean: list[bool], bad: list[bool]) -> None:
    sample = SessionSample(parse_sessions(sessions))
    assert [sample.has(True) for _ in clean] == clean
    assert [sample.has(False) for _ in bad] == bad


@pytest.mark.parametrize("text", ["", "some", "1/0", "2/3", "1/x", "1/-1"])
def test_a_sample_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_sessions(text)


def test_levels_have_names() -> None:
    assert [parse_level(text) for text in ("0", "info", "1", "sessions", "2", "debug")] == [0, 0, 1, 1, 2, 2]


def test_fields_are_read_of_text_that_was_cut_anywhere() -> None:
    whole = " ".join(
        f"k{at}={value_text(text)}"
        for at, text in enumerate(("a\x1bb", "\u202e", 'q"\\', "é \n", "\U000e0001"))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # half an escape
        for end in range(len(whole)):
            for tail in ("", "..."):
                assert fields_in(whole[:end] + tail).keys() <= {f"k{at}" for at in range(5)}
