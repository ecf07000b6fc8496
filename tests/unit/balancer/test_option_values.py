"""Values that only options of `balancer` have."""

import hashlib
import os
from pathlib import Path

import pytest

from balancer.config.option import ConfigError
from balancer.configuration import parse
from balancer.option_values import LONGEST_TOKEN, SHORTEST_TOKEN, parse_token_file

TOKEN = b"correct-horse-battery"


def token_file(directory: Path, content: bytes = TOKEN, mode: int = 0o600) -> str:
    path = directory / "token"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("content", [TOKEN, TOKEN + b"\n", TOKEN + b"\r\n"])
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o660])
def test_a_token_is_kept_as_its_hash(tmp_path: Path, content: bytes, mode: int) -> None:
    found = parse_token_file(token_file(tmp_path, content, mode))
    assert found.digest == hashlib.sha256(TOKEN).digest()
    assert str(found) == found.path and TOKEN.decode() not in repr(found)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o644, 0o666, 0o777])
def test_a_token_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = token_file(tmp_path, mode=mode)
    with pytest.raises(
        ConfigError, match=rf"--metrics-admin-token: {path} has mode {mode:04o}: others may read"
    ):
        parse(["-u", "a:1", "--metrics-admin-token", path], {})


@pytest.mark.parametrize(
    ("mode", "is_refused"), [(0o777, True), (0o703, True), (0o1777, False), (0o770, False)]
)
@pytest.mark.parametrize("depth", [0, 1])
def test_a_token_that_others_may_replace_is_refused(
    tmp_path: Path, mode: int, is_refused: bool, depth: int
) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    own = tmp_path / "own"
    own.mkdir()
    real = token_file(inner)
    links = own / "link", inner / "link"  # to it from elsewhere, and from there to elsewhere
    links[0].symlink_to(real)
    links[1].symlink_to(token_file(own))
    open_one = inner if depth == 0 else inner.parent
    open_one.chmod(mode)
    for path in (real, *map(str, links)):
        if not is_refused:
            assert parse_token_file(path).path == path
            continue
        with pytest.raises(
            ValueError, match=rf"put another file in the place of {path}: chmod o-w {open_one}$"
        ):
            parse_token_file(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        TOKEN[: SHORTEST_TOKEN - 1] + b"\n\n\n",
        b"x" * (LONGEST_TOKEN + 1),
        b"x" * 100_000,
        b"two " + TOKEN,
        TOKEN + b"\n" + TOKEN,
        TOKEN + b"\xc3\xa9",
        TOKEN + b"\0",
        b" " + TOKEN,
    ],
)
def test_what_is_no_token_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    path = token_file(tmp_path, content)
    with pytest.raises(ValueError, match=path) as caught:
        parse_token_file(path)
    assert TOKEN.decode() not in str(caught.value)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path, tmp_path / "fifo", "/dev/null", tmp_path / "none", f"{tmp_path}/a\0b"):
        with pytest.raises(ValueError, match=r"cannot read|is no file"):
            parse_token_file(str(path))


@pytest.mark.parametrize(
    ("arguments", "notes"),
    [
        ((), ["no effect without metrics"]),
        (("--metrics", "127.0.0.1:1"), []),
        (("--metrics", "unix:/run/x"), []),
        (("--metrics", "0.0.0.0:1"), ["has no password", "reads the token"]),
    ],
)
def test_what_is_worth_a_note(tmp_path: Path, arguments: tuple[str, ...], notes: list[str]) -> None:
    path = token_file(tmp_path)
    found = parse(["-u", "a:1", *arguments, "--metrics-admin-token", path], {})
    assert found.process.metrics_admin_token == parse_token_file(path)
    assert len(found.notes) == len(notes)
    assert all(part in note for part, note in zip(notes, found.notes, strict=True))
