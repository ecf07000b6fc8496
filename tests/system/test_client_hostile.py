"""A hostile server: the client opens no file outside its output directory for writing and reports a sentence."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.client_fixture import COMMAND, ROOT, ClientExit, ClientFixture, environment
from tests.system.fake_resizer import Behaviour, FakeResizer, ServerConnection, picture, right_answer
from workers.wire.frames import MAGIC, frame
from workers.wire.messages import Request, Response, encode_response


@pytest.fixture
def client(tmp_path: Path) -> ClientFixture:
    return ClientFixture(tmp_path)


def changed(**fields: object) -> Behaviour:
    def behave(connection: ServerConnection, request: Request) -> None:
        answer = right_answer(request)
        for name, value in fields.items():
            setattr(answer, name, value)
        connection.send(answer)

    return behave


def raw(data: bytes) -> Behaviour:
    def behave(connection: ServerConnection, request: Request) -> None:
        connection.sock.sendall(data)

    return behave


def twice(connection: ServerConnection, request: Request) -> None:
    both = frame(encode_response(right_answer(request)))
    connection.sock.sendall(both + both)


def first_with_an_id_then_without(connection: ServerConnection, request: Request) -> None:
    answer = right_answer(request)
    if connection.requests > 1:
        answer.id = 0
    connection.send(answer)


def wrong_format(connection: ServerConnection, request: Request) -> None:
    answer = right_answer(request)
    answer.data = picture(20, 10, "PNG")
    connection.send(answer)


def snapshot(directory: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for folder, folders, names in os.walk(directory):
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file():
                found[str(path)] = path.read_bytes()
    return found


NAMES = ["../../x.jpg", "/tmp/evil.jpg", "a\0b.jpg", "..", "", "x" * 5000, "\x1b[2J\n-20x10.jpg"]
ATTACKS: dict[str, tuple[Behaviour, str]] = {
    "unknown ID": (changed(id=999_999), "unknown ID"),
    "a reply without a request": (raw(frame(encode_response(Response("x", id=2**64 - 1)))), "ID"),
    "repeated ID": (twice, "ID"),
    "an ID once, then none": (first_with_an_id_then_without, "with and without"),
    "missing ID and another name": (changed(id=0, original_name="../../x"), "without ID"),
    "4 GB length": (raw(MAGIC + (4 << 30).to_bytes(8, "big")), "over the limit"),
    "2^63 length": (raw(MAGIC + (1 << 63).to_bytes(8, "big")), "over the limit"),
    "empty frame": (raw(MAGIC + bytes(8)), "empty frame"),
    "HTTP": (raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "not a frame"),
    "no gob": (raw(frame(b"\xff" * 40)), "not a response"),
    "wrong format": (wrong_format, "is png, not jpeg"),
    "no picture": (changed(data=b"#!/bin/sh\n"), "no picture"),
    "no data": (changed(data=b""), "no picture"),
    "wrong size": (changed(data=picture(21, 10), resized_width=21), "21x10"),
    "lies about its size": (changed(data=picture(21, 10)), "21x10"),
    "unknown status": (changed(status=777, error="\x1b]0;owned\x07"), "777"),
}


def watched(
    client: ClientFixture, behave: Behaviour, *more: str
) -> tuple[ClientExit, dict[str, bytes | str], list[str]]:
    """The run, the files it changed outside the output directory, and the names it wrote."""
    before = snapshot(client.directory)
    with FakeResizer(behave) as server:
        done, lines = client.run_watched(server.address, *more)
    after = snapshot(client.directory)
    outside = {
        path: content
        for path, content in after.items()
        if before.get(path) != content
        and not path.startswith(str(client.results))
        and "watched.log" not in path
    }
    assert before.keys() <= after.keys()
    return done, outside, lines


def check_written_names(client: ClientFixture, lines: list[str]) -> None:
    """Only the journal, partial files and the targets chosen by the client are created or renamed."""
    targets = {f"p{n:04}-20x10.jpg" for n in range(20)}
    for line in lines:
        event, _, rest = line.partition(" ")
        if event == "open":
            assert "resize-client" in rest or rest == "'/proc/self/fd/2'", line
        elif event == "os.rename":
            part, target = eval_names(rest)
            assert part.startswith(".resize-client-") and target in targets, line
        elif event == "os.mkdir":
            assert str(client.results) in rest, line


def eval_names(text: str) -> tuple[str, str]:
    first, second = text.strip("()").split(", ")
    return first.strip("'"), second.strip("'")


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_reported_in_a_sentence_and_writes_nothing_elsewhere(
    client: ClientFixture, attack: str
) -> None:
    behave, sentence = ATTACKS[attack]
    client.fill(4)
    done, outside, lines = watched(client, behave)
    assert done.code == 1, done.out
    assert sentence in done.err
    assert "\x1b" not in done.err + done.out
    assert outside == {}
    check_written_names(client, lines)
    assert not client.parts()


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_the_name_in_a_reply_chooses_no_path(client: ClientFixture, name: str) -> None:
    """A reply with an ID is matched by the ID, whatever name it carries; the client chose the path before."""
    client.fill(3)
    done, outside, lines = watched(client, changed(original_name=name))
    assert done.code == 0, done.err
    assert sorted(client.saved()) == [f"p000{n}-20x10.jpg" for n in range(3)]
    assert outside == {}
    check_written_names(client, lines)


OPENED = re.compile(
    r'(?:openat|open|creat)\((?:AT_FDCWD|\d+)?(?:<(?P<folder>[^>]*)>)?,? ?"(?P<name>[^"]*)", (?P<how>[A-Z_|]+)'
)


def names_written(log: Path, cwd: Path) -> list[str]:
    """Absolute names of the files opened for writing, from the strace log."""
    found = []
    for line in log.read_text().splitlines():
        match = OPENED.search(line)
        if match and re.search("O_WRONLY|O_RDWR|O_CREAT", match["how"]) and " = -1 " not in line:
            found.append(os.path.normpath(os.path.join(cwd, match["folder"] or "", match["name"])))
    return found


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")
@pytest.mark.parametrize("attack", [*ATTACKS, *NAMES], ids=lambda attack: repr(attack)[:24])
def test_strace_shows_nothing_opened_outside_the_output_directory(client: ClientFixture, attack: str) -> None:
    behave = ATTACKS[attack][0] if attack in ATTACKS else changed(original_name=attack)
    client.fill(3)
    log = client.directory / "strace.log"
    command = [
        "strace",
        "-f",
        "-qq",
        "-y",
        "-e",
        "trace=open,openat,creat",
        "-e",
        "signal=none",
        "-o",
        str(log),
    ]
    with FakeResizer(behave) as server:
        command += [*COMMAND, *client.arguments(server.address)]
        env = environment() | {"PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, errors="replace"
        )
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:100]}")
    assert done.returncode == (1 if attack in ATTACKS else 0), done.stderr
    written = names_written(log, ROOT)
    assert any("resize-client" in name for name in written), "the journal at least"
    outside = [
        name for name in written if not name.startswith((str(client.results), "/proc/self/fd", "/dev/"))
    ]
    assert outside == []


def plant_file_link(client: ClientFixture, elsewhere: Path) -> None:
    client.results.mkdir()
    (client.results / "p0000-20x10.jpg").symlink_to(elsewhere / "precious.txt")


def test_a_link_planted_as_a_result_is_replaced_not_followed(client: ClientFixture, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.txt").write_text("precious")
    client.fill(2)
    plant_file_link(client, elsewhere)
    with FakeResizer() as server:
        done = client.run(server.address)
    assert done.code == 0, done.err
    assert (elsewhere / "precious.txt").read_text() == "precious"
    assert not (client.results / "p0000-20x10.jpg").is_symlink()


@pytest.mark.parametrize(
    "plant", [lambda path, to: path.symlink_to(to), lambda path, to: path.write_text("a file")]
)
def test_a_sub_directory_that_is_a_link_or_a_file_is_refused(
    client: ClientFixture, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    client.fill(2, "sub")
    client.fill(1)
    client.results.mkdir()
    plant(client.results / "sub", elsewhere)
    with FakeResizer() as server:
        done = client.run(server.address)
    assert done.code == 1
    assert done.err.count("cannot save") == 2
    assert list(elsewhere.iterdir()) == []
    assert (client.results / "p0000-20x10.jpg").exists()


def test_a_link_planted_as_the_journal_is_refused(client: ClientFixture, tmp_path: Path) -> None:
    client.fill(1)
    client.results.mkdir()
    (client.results / ".resize-client.journal").symlink_to(tmp_path / "precious.txt")
    with FakeResizer() as server:
        done = client.run(server.address)
    assert done.code == 1
    assert not (tmp_path / "precious.txt").exists()
    assert len(done.err.strip().splitlines()) == 1


def test_links_in_the_input_do_not_make_circles(client: ClientFixture) -> None:
    client.fill(2, "sub")
    (client.pictures / "sub" / "again").symlink_to(client.pictures)
    with FakeResizer() as server:
        assert client.run(server.address).code == 0
    assert len(server.requests) == 2
