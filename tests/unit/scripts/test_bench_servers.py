"""The clients that ask picture services, and the section of the document that a run writes."""

import socket
from pathlib import Path

import pytest

from scripts.bench_servers import FIGURES, HEADING, table, write_section
from scripts.benchlib.http_crowd import CrowdClient
from scripts.picture_peers import PicturePeer, Thumbor

ANSWER = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 3\r\nContent-Length: 5\r\n\r\nfull\n"


@pytest.mark.parametrize("cut", [1, 20, len(ANSWER) - 6, len(ANSWER) - 5, len(ANSWER) - 1])
def test_an_answer_in_two_parts_is_complete_with_its_last_byte(cut: int) -> None:
    client = CrowdClient(b"")
    client.sock.close()
    client.sock, server = socket.socketpair()
    with client.sock, server:
        server.sendall(ANSWER[:cut])
        assert not client.receive()
        server.sendall(ANSWER[cut:])
        assert client.receive()
        assert (client.status, client.retry_after) == ("429", 3.0)
        client.begin()
        server.close()
        with pytest.raises(ConnectionResetError):
            client.receive()


def test_the_section_of_the_last_run_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    document = tmp_path / "versus.md"
    document.write_text("# Proxies\n\nA table.\n")
    for number in (1, 2):
        write_section(document, f"{HEADING}\n\nrun {number}\n")
        assert document.read_text() == f"# Proxies\n\nA table.\n\n{HEADING}\n\nrun {number}\n"


def test_a_figure_that_a_peer_lacks_is_a_dash() -> None:
    figure, words = next(iter(FIGURES.items()))
    text = table({"ours": {figure: 1234.4}, "other": {}, "third": {figure: float("nan")}})
    assert f"| {words} | 1,234 | - | - |" in text


def test_requests_name_the_picture_its_size_and_the_format(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"picture")
    request = PicturePeer(tmp_path).request("a.jpg", (16, 9), "avif")
    assert request.startswith(b"POST /resize?w=16&h=9&format=avif HTTP/1.1\r\n")
    assert request.endswith(b"Content-Length: 7\r\n\r\npicture")
    assert (
        Thumbor(tmp_path)
        .request("a.jpg", (16, 9), "avif")
        .startswith(b"GET /unsafe/16x9/filters:format(avif)/a.jpg HTTP/1.1\r\n")
    )
