"""resize-client against a correct resizer: every picture is saved once in its place, and the statistics are right."""

import csv
import json
import os
import re
import time
from pathlib import Path
from unicodedata import normalize

import pytest

from tests.system.client_fixture import ClientExit, ClientFixture
from tests.system.fake_resizer import FakeResizer, ServerConnection, picture, right_answer
from workers.wire.messages import Request


@pytest.fixture
def client(tmp_path: Path) -> ClientFixture:
    return ClientFixture(tmp_path)


def requests(done: ClientExit) -> int:
    """The requests of the original's block: its rate times the time."""
    rate = re.search(r"^\tRequests Per Second: ([\d.]+)$", done.out, re.MULTILINE)
    pictures = re.search(r"^Pictures Per Second: ([\d.]+)$", done.out, re.MULTILINE)
    answered = re.search(r"^Pictures: +(\d+) answered", done.out, re.MULTILINE)
    assert rate and pictures and answered
    return round(float(rate[1]) * int(answered[1]) / float(pictures[1]))


def test_results_keep_the_sub_directories_of_their_sources(client: ClientFixture) -> None:
    client.fill(3)
    client.fill(4, "holiday/2024", "PNG")
    (client.pictures / "notes.txt").write_text("not a picture")
    with FakeResizer() as server:
        done = client.run(server.address)
    assert done.code == 0, done.err
    names = [f"p000{n}-20x10.jpg" for n in range(3)] + [f"holiday/2024/p000{n}-20x10.png" for n in range(4)]
    assert sorted(client.saved()) == sorted(names)
    assert client.saved()["p0000-20x10.jpg"] == picture(20, 10)
    assert len(server.requests) == 7


def test_the_statistics(client: ClientFixture) -> None:
    client.fill(5)
    with FakeResizer() as server:
        done = client.run(server.address, "--dry-run", "--times", "3")
    sent = re.fullmatch(
        r"-- \[ Network Statistics \] --\n\tbytes sent: (\d+\.\d{4}) Mb\n\tbytes received: (\d+\.\d{4}) Mb\n"
        r"\tRequests Per Second: (\d+\.\d\d)\n-- \[ Pictures \] --\n(.+)",
        done.out,
        re.DOTALL,
    )
    assert sent is not None, done.out
    figures = dict(re.findall(r"^([A-Z][A-Za-z0-9 ]+): +([\d.]+)", sent[4], re.MULTILINE))
    assert int(figures["Bytes sent"]) > 15 * 200
    assert int(figures["Bytes received"]) > 15 * 200
    assert abs(float(sent[1]) * 1e6 - int(figures["Bytes sent"])) <= 50
    assert abs(float(sent[2]) * 1e6 - int(figures["Bytes received"])) <= 50
    assert "15 answered, 0 saved" in done.out
    assert re.search(r"^ +15 +fake$", done.out, re.MULTILINE)
    assert not client.results.exists()


def test_flood_sends_the_directory_on_every_connection(client: ClientFixture) -> None:
    client.fill(6)
    with FakeResizer() as server:
        done = client.run(server.address, "--flood", "--maxconns", "5", "--times", "2", "--dry-run")
    assert done.code == 0, done.err
    assert server.by_connection == dict.fromkeys(range(1, 6), 12)
    assert requests(done) == 10


@pytest.mark.parametrize("processes", ["1", "3"])
def test_connections_and_processes_that_share_a_directory_make_one_request_of_a_pass(
    client: ClientFixture, processes: str
) -> None:
    client.fill(6)
    words = ["--minconns", "2", "--processes", processes, "--times", "8", "--dry-run"]
    with FakeResizer() as server:
        done = client.run(server.address, *words)
    assert done.code == 0, done.err
    assert requests(done) == 8


def test_several_requests_are_in_flight_on_one_connection(client: ClientFixture) -> None:
    client.fill(12)
    held: list[Request] = []

    def only_in_fours(connection: ServerConnection, request: Request) -> None:
        held.append(request)
        if len(held) == 4:
            for one in reversed(held):  # out of order
                connection.send(right_answer(one))
            held.clear()

    with FakeResizer(only_in_fours) as server:
        done = client.run(server.address, "--in-flight", "4")
    assert done.code == 0, done.err
    assert server.connections == 1
    assert len(client.saved()) == 12


def test_many_connections_at_once(client: ClientFixture) -> None:
    client.fill(20)
    with FakeResizer() as server:
        done = client.run(server.address, "--minconns", "8", "--maxconns", "8", "--times", "20", "--dry-run")
    assert done.code == 0, done.err
    assert server.at_once == 8
    assert len(server.requests) == 400
    assert min(server.by_connection.values()) > 10


def test_an_original_backend_answers_in_order_without_ids(client: ClientFixture) -> None:
    client.fill(10)

    def original(connection: ServerConnection, request: Request) -> None:
        answer = right_answer(request)
        answer.id, answer.status, answer.server, answer.workers = 0, 0, "", 0
        connection.send(answer)

    with FakeResizer(original) as server:
        done = client.run(server.address, "--maxconns", "2")
    assert done.code == 0, done.err
    assert len(client.saved()) == 10
    assert "10  (unnamed)" in done.out


def test_clashing_and_awkward_names_all_get_their_own_result(client: ClientFixture) -> None:
    client.pictures.joinpath("a").mkdir()
    client.pictures.joinpath("b").mkdir()
    names = ["x.jpg", "x.jpeg", "X.JPG", "x.png", "a/x.jpg", "b/x.jpg", "n" * 251 + ".jpg", "new\nline.jpg"]
    names += [normalize("NFC", "é.jpg"), normalize("NFD", "é.jpg"), "n" * 250 + "m.jpg", "~.jpg", "-w.jpg"]
    raw = [os.fsencode(name) for name in names] + [b"latin-\xe9.jpg"]
    for number, name in enumerate(raw):
        format = "PNG" if name.endswith(b"png") else "JPEG"
        Path(os.fsdecode(os.path.join(os.fsencode(client.pictures), name))).write_bytes(
            picture(40, 30, format, number)
        )

    def marked(connection: ServerConnection, request: Request) -> None:
        answer = right_answer(request)
        answer.data = bytes(answer.data) + b"%" + bytes(request.data[-40:])
        connection.send(answer)

    with FakeResizer(marked) as server:
        done = client.run(server.address)
    assert done.code == 0, done.err
    saved = client.saved()
    assert len(saved) == len(raw)
    assert len({normalize("NFC", name).casefold() for name in saved}) == len(raw)


def test_include_exclude_fit_format_quality(client: ClientFixture) -> None:
    client.fill(3)
    client.fill(3, "raw", "PNG")
    with FakeResizer() as server:
        done = client.run(
            server.address, "--include", "raw/*", "--exclude", "*1.png", "--format", "gif", "--quality", "50",
            "--fit", "cover",
        )  # fmt: skip
    assert done.code == 0, done.err
    assert sorted(client.saved()) == ["raw/p0000-20x10.gif", "raw/p0002-20x10.gif"]
    assert {(r.fit, r.format, r.quality) for r in server.requests} == {("cover", "gif", 50)}


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_the_report_has_a_row_for_each_picture(client: ClientFixture, ending: str) -> None:
    client.fill(3)
    client.pictures.joinpath("broken.jpg").write_bytes(picture(5, 5))

    def refuse_broken(connection: ServerConnection, request: Request) -> None:
        answer = right_answer(request)
        if request.original_name == "broken.jpg":
            answer.status, answer.error, answer.data = 422, "cannot be read", b""
        connection.send(answer)

    path = client.directory / f"report.{ending}"
    with FakeResizer(refuse_broken) as server:
        done = client.run(server.address, "--report", str(path))
    assert done.code == 1
    assert "failed: broken.jpg: 422: cannot be read" in done.err
    rows = json.loads(path.read_text()) if ending == "json" else list(csv.DictReader(path.open()))
    by_name = {row["picture"]: row for row in rows}
    assert len(by_name) == 4
    assert by_name["broken.jpg"]["error"] == "422: cannot be read"
    assert by_name["p0000.jpg"]["server"] == "fake"
    assert int(by_name["p0000.jpg"]["bytes_out"]) == len(picture(20, 10))


def test_processes_divide_the_pictures(client: ClientFixture) -> None:
    client.fill(11)
    with FakeResizer() as server:
        done = client.run(server.address, "--processes", "3")
    assert done.code == 0, done.err
    assert len(client.saved()) == 11
    assert len(server.requests) == 11
    assert server.connections == 3
    assert "11 answered, 11 saved" in done.out


def test_results_inside_the_input_are_not_pictures_the_next_time(client: ClientFixture) -> None:
    client.fill(3)
    client.results = client.pictures / "small"
    with FakeResizer() as server:
        for _ in range(2):
            assert client.run(server.address).code == 0
    assert len(server.requests) == 6
    assert len(client.saved()) == 3


def test_results_of_other_runs_inside_the_input_are_no_pictures(client: ClientFixture) -> None:
    client.fill(3)
    with FakeResizer() as server:
        for name in ("small", "large"):
            client.results = client.pictures / name
            done = client.run(server.address)
            assert done.code == 0, done.err
    assert len(server.requests) == 6
    assert re.search(r"^Left out:\n +1  directory of results: small/$", done.out, re.MULTILINE)


def test_what_is_left_out_is_counted_and_named_and_names_do_not_decide(client: ClientFixture) -> None:
    client.pictures.joinpath("CAM.JPG").write_bytes(picture(40, 30))
    client.pictures.joinpath("phone.jfif").write_bytes(picture(40, 30))
    client.pictures.joinpath("renamed.jpg").write_bytes(picture(40, 30, "PNG"))
    client.pictures.joinpath("cached").write_bytes(picture(40, 30))
    client.pictures.joinpath("scan.tiff").write_bytes(b"II*\0")
    client.pictures.joinpath("._CAM.JPG").write_bytes(picture(40, 30))
    with FakeResizer() as server:
        done = client.run(server.address)
        assert done.code == 0, done.err
        assert sorted(client.saved()) == [
            "CAM-20x10.JPG", "cached-20x10.jpg", "phone-20x10.jpg", "renamed-20x10.png",
        ]  # fmt: skip
        assert re.search(r"^ +1  not JPEG, PNG, GIF, WebP or AVIF: scan.tiff$", done.out, re.MULTILINE)
        assert re.search(r"^ +1  resource fork of macOS: ._CAM.JPG$", done.out, re.MULTILINE)
        client.results = client.directory / "again"
        assert client.run(server.address, "--include", "*.jpg").code == 0
    assert sorted(client.saved()) == ["CAM-20x10.JPG", "renamed-20x10.png"]


def test_preserve_gives_results_the_times_of_their_sources(client: ClientFixture) -> None:
    client.fill(2)
    os.utime(client.pictures / "p0000.jpg", ns=(1, 981_173_106_000_000_007))
    with FakeResizer() as server:
        assert client.run(server.address, "--preserve").code == 0
        assert os.stat(client.results / "p0000-20x10.jpg").st_mtime_ns == 981_173_106_000_000_007
        done = client.run(server.address, "--preserve", "--skip-existing")
    assert "0 answered, 0 saved, 2 skipped" in done.out


def test_what_a_result_lacks_is_told(client: ClientFixture) -> None:
    client.fill(3)
    sentence = "first of 9 frames: jpeg holds no animation"

    def noted(connection: ServerConnection, request: Request) -> None:
        answer = right_answer(request)
        answer.note = sentence if request.original_name != "p0000.jpg" else ""
        connection.send(answer)

    report = client.directory / "r.json"
    with FakeResizer(noted) as server:
        done = client.run(server.address, "--report", str(report))
    assert done.code == 0, done.err
    assert f"Notes:\n         2  {sentence}\n" in done.out
    notes = {row["picture"]: row["note"] for row in json.loads(report.read_text())}
    assert notes == {"p0000.jpg": "", "p0001.jpg": sentence, "p0002.jpg": sentence}


def test_skip_existing_asks_only_for_what_is_new_changed_or_gone(client: ClientFixture) -> None:
    client.fill(6)
    with FakeResizer() as server:
        assert client.run(server.address).code == 0
        assert client.run(server.address, "--skip-existing").code == 0
        assert len(server.requests) == 6
        client.pictures.joinpath("p0000.jpg").write_bytes(picture(50, 50))
        client.results.joinpath("p0001-20x10.jpg").unlink()
        client.results.joinpath("p0002-20x10.jpg").write_bytes(b"edited")
        client.pictures.joinpath("new.jpg").write_bytes(picture(9, 9))
        server.requests.clear()
        done = client.run(server.address, "--skip-existing")
        assert done.code == 0, done.err
        names = sorted(request.original_name for request in server.requests)
        assert names == ["new.jpg", "p0000.jpg", "p0001.jpg", "p0002.jpg"]
        assert "3 skipped" in done.out
        server.requests.clear()
        assert client.run(server.address, "--skip-existing", "--quality", "40").code == 0
        assert len(server.requests) == 7, "another quality makes another result"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--output", "{pictures}"], "is the input directory"),
        (["--input", "/nowhere/at/all"], "not a directory"),
        (["--maxconns", "many"], "many"),
        (["--no-such-option"], "no-such-option"),
    ],
)
def test_usage_errors_are_one_sentence_and_exit_2(
    client: ClientFixture, arguments: list[str], sentence: str
) -> None:
    done = client.run("127.0.0.1:1", *(one.format(pictures=client.pictures) for one in arguments))
    assert done.code == 2
    assert sentence in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_an_empty_directory_is_reported(client: ClientFixture) -> None:
    done = client.run("127.0.0.1:1")
    assert (done.code, done.out) == (1, "")
    assert "no pictures in" in done.err


def test_connections_grow_while_the_reply_rate_grows(client: ClientFixture) -> None:
    """This server takes 10 ms per request and connection, so more connections give more replies a second."""
    client.fill(10)

    def slow(connection: ServerConnection, request: Request) -> None:
        time.sleep(0.01)
        connection.send(right_answer(request))

    with FakeResizer(slow) as server:
        done = client.run(server.address, "--maxconns", "8", "--times", "60", "--dry-run")
    assert done.code == 0, done.err
    assert 4 <= server.at_once <= 8
