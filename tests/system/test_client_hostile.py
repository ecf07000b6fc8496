"""A server that means harm: the client opens nothing outside its output directory, and ends with a sentence."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.client_bench import COMMAND, ROOT, Bench, Done, environment
from tests.system.fake_resizer import Behave, FakeResizer, Talk, picture, right_answer
from workers.wire.frames import MAGIC, frame
from workers.wire.messages import Request, Response, encode_response


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def changed(**fields: object) -> Behave:
    def behave(talk: Talk, request: Request) -> None:
        answer = right_answer(request)
        for name, value in fields.items():
            setattr(answer, name, value)
        talk.send(answer)

    return behave


def raw(data: bytes) -> Behave:
    def behave(talk: Talk, request: Request) -> None:
        talk.sock.sendall(data)

    return behave


def twice(talk: Talk, request: Request) -> None:
    both = frame(encode_response(right_answer(request)))
    talk.sock.sendall(both + both)


def first_with_an_id_then_without(talk: Talk, request: Request) -> None:
    answer = right_answer(request)
    if talk.requests > 1:
        answer.id = 0
    talk.send(answer)


def wrong_format(talk: Talk, request: Request) -> None:
    answer = right_answer(request)
    answer.data = picture(20, 10, "PNG")
    talk.send(answer)


def snapshot(room: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for folder, folders, names in os.walk(room):
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file():
                found[str(path)] = path.read_bytes()
    return found


NAMES = ["../../x.jpg", "/tmp/evil.jpg", "a\0b.jpg", "..", "", "x" * 5000, "\x1b[2J\n-20x10.jpg"]
ATTACKS: dict[str, tuple[Behave, str]] = {
    "unknown ID": (changed(id=999_999), "unknown ID"),
    "no reply asked for": (raw(frame(encode_response(Response("x", id=2**64 - 1)))), "ID"),
    "repeated ID": (twice, "ID"),
    "ID lost on the way": (first_with_an_id_then_without, "with and without"),
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
    "status from nowhere": (changed(status=777, error="\x1b]0;owned\x07"), "777"),
}


def watched(bench: Bench, behave: Behave, *more: str) -> tuple[Done, dict[str, bytes | str], list[str]]:
    """The run, what it changed outside the output directory (nothing), and the names it wrote."""
    before = snapshot(bench.room)
    with FakeResizer(behave) as server:
        done, lines = bench.run_watched(server.address, *more)
    after = snapshot(bench.room)
    outside = {
        path: content
        for path, content in after.items()
        if before.get(path) != content
        and not path.startswith(str(bench.results))
        and "watched.log" not in path
    }
    assert before.keys() <= after.keys()
    return done, outside, lines


def check_written_names(bench: Bench, lines: list[str]) -> None:
    """Created and renamed: only the journal, partial files of our own making, and targets of our own choosing."""
    targets = {f"p{n:04}-20x10.jpg" for n in range(20)}
    for line in lines:
        event, _, rest = line.partition(" ")
        if event == "open":
            assert "resize-client" in rest or rest == "'/proc/self/fd/2'", line
        elif event == "os.rename":
            part, target = eval_names(rest)
            assert part.startswith(".resize-client-") and target in targets, line
        elif event == "os.mkdir":
            assert str(bench.results) in rest, line


def eval_names(text: str) -> tuple[str, str]:
    first, second = text.strip("()").split(", ")
    return first.strip("'"), second.strip("'")


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_ends_in_a_sentence_and_writes_nothing_elsewhere(bench: Bench, attack: str) -> None:
    behave, sentence = ATTACKS[attack]
    bench.fill(4)
    done, outside, lines = watched(bench, behave)
    assert done.code == 1, done.out
    assert sentence in done.err
    assert "\x1b" not in done.err + done.out
    assert outside == {}
    check_written_names(bench, lines)
    assert not bench.parts()


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_the_name_in_a_reply_chooses_no_path(bench: Bench, name: str) -> None:
    """With an ID the reply is ours whatever name it bears: it is saved where we said, or nowhere."""
    bench.fill(3)
    done, outside, lines = watched(bench, changed(original_name=name))
    assert done.code == 0, done.err
    assert sorted(bench.saved()) == [f"p000{n}-20x10.jpg" for n in range(3)]
    assert outside == {}
    check_written_names(bench, lines)


OPENED = re.compile(
    r'(?:openat|open|creat)\((?:AT_FDCWD|\d+)?(?:<(?P<folder>[^>]*)>)?,? ?"(?P<name>[^"]*)", (?P<how>[A-Z_|]+)'
)


def names_written(log: Path, cwd: Path) -> list[str]:
    """Absolute names that strace saw opened for writing."""
    found = []
    for line in log.read_text().splitlines():
        match = OPENED.search(line)
        if match and re.search("O_WRONLY|O_RDWR|O_CREAT", match["how"]) and " = -1 " not in line:
            found.append(os.path.normpath(os.path.join(cwd, match["folder"] or "", match["name"])))
    return found


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")
@pytest.mark.parametrize("attack", [*ATTACKS, *NAMES], ids=lambda attack: repr(attack)[:24])
def test_the_kernel_saw_nothing_opened_outside_the_output_directory(bench: Bench, attack: str) -> None:
    behave = ATTACKS[attack][0] if attack in ATTACKS else changed(original_name=attack)
    bench.fill(3)
    log = bench.room / "strace.log"
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
        command += [*COMMAND, *bench.arguments(server.address)]
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
        name for name in written if not name.startswith((str(bench.results), "/proc/self/fd", "/dev/"))
    ]
    assert outside == []


def plant_file_link(bench: Bench, elsewhere: Path) -> None:
    bench.results.mkdir()
    (bench.results / "p0000-20x10.jpg").symlink_to(elsewhere / "precious.txt")


def test_a_link_planted_as_a_result_is_replaced_not_followed(bench: Bench, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.txt").write_text("precious")
    bench.fill(2)
    plant_file_link(bench, elsewhere)
    with FakeResizer() as server:
        done = bench.run(server.address)
    assert done.code == 0, done.err
    assert (elsewhere / "precious.txt").read_text() == "precious"
    assert not (bench.results / "p0000-20x10.jpg").is_symlink()


@pytest.mark.parametrize(
    "plant", [lambda path, to: path.symlink_to(to), lambda path, to: path.write_text("a file")]
)
def test_a_sub_directory_that_is_a_link_or_a_file_is_refused(
    bench: Bench, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    bench.fill(2, "sub")
    bench.fill(1)
    bench.results.mkdir()
    plant(bench.results / "sub", elsewhere)
    with FakeResizer() as server:
        done = bench.run(server.address)
    assert done.code == 1
    assert done.err.count("cannot save") == 2
    assert list(elsewhere.iterdir()) == []
    assert (bench.results / "p0000-20x10.jpg").exists()


def test_a_link_planted_as_the_journal_is_refused(bench: Bench, tmp_path: Path) -> None:
    bench.fill(1)
    bench.results.mkdir()
    (bench.results / ".resize-client.journal").symlink_to(tmp_path / "precious.txt")
    with FakeResizer() as server:
        done = bench.run(server.address)
    assert done.code == 1
    assert not (tmp_path / "precious.txt").exists()
    assert len(done.err.strip().splitlines()) == 1


def test_links_in_the_input_do_not_make_circles(bench: Bench) -> None:
    bench.fill(2, "sub")
    (bench.pictures / "sub" / "again").symlink_to(bench.pictures)
    with FakeResizer() as server:
        assert bench.run(server.address).code == 0
    assert len(server.requests) == 2
