"""Answers and complaints on streams that are closed, full, read by nobody, or know ASCII only."""

import os
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path

import pytest

from balancer.config.streams import answer, complain, is_terminal, open_streams, wait_for_reader

TEXT = "héllo \u2192 \udcff"  # with a byte of a file name that is no UTF-8
Make = Callable[[], TextIOWrapper | None]


def closed_pipe() -> TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", encoding="ascii")


def full_disk() -> TextIOWrapper:
    return open("/dev/full", "w", encoding="ascii")


def closed_at_the_start() -> None:
    """What the interpreter makes of a descriptor that is not open."""


@pytest.mark.parametrize(
    ("make", "code", "sentence"),
    [
        (closed_pipe, 0, ""),
        (full_disk, 1, "p: cannot write to standard output: No space left on device\n"),
        (closed_at_the_start, 1, "p: standard output is closed\n"),
    ],
)
def test_an_answer_that_cannot_be_written(
    make: Make, code: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = make()
    with (tmp_path / "err").open("w") as errors:
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr("sys.stderr", errors)
        open_streams()
        assert answer("p", TEXT) == code
    assert (tmp_path / "err").read_text() == sentence
    if stream is not None:
        stream.close()  # as the interpreter does at its exit: writes once more what was left


@pytest.mark.parametrize("is_noticed", [False, True])
def test_a_reader_that_has_gone_is_noticed(is_noticed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where `balancerctl events --follow | head -1` runs for ever: after a write, too."""
    reader, writer = os.pipe()
    with open(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert wait_for_reader(0.0)
        os.close(reader)
        if is_noticed:
            assert answer("p", "x") == 0
        assert not wait_for_reader(0.0)
    monkeypatch.setattr("sys.stdout", None)
    assert not wait_for_reader(0.0)


@pytest.mark.parametrize("make", [closed_pipe, full_disk, closed_at_the_start])
def test_a_complaint_that_cannot_be_written_is_lost(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = make()
    monkeypatch.setattr("sys.stderr", stream)
    open_streams()
    complain("p", TEXT)
    assert not is_terminal(stream)
    if stream is not None:
        stream.close()


def test_what_a_terminal_cannot_show_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        (tmp_path / "out").open("w", encoding="ascii") as output,
        (tmp_path / "err").open("w", encoding="ascii") as errors,
    ):
        monkeypatch.setattr("sys.stdout", output)
        monkeypatch.setattr("sys.stderr", errors)
        open_streams()
        assert answer("p", TEXT) == 0
        complain("p", TEXT)
    escaped = r"h\xe9llo \u2192 \udcff"
    assert (tmp_path / "out").read_text() == f"{escaped}\n"
    assert (tmp_path / "err").read_text() == f"p: {escaped}\n"
