"""The command line of balancerctl, and what it says without an answer."""

import socket
import threading
from pathlib import Path

import pytest

from balancer import ctl


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["status", "--json"], ["status"]),
        (["drain", "backend-2"], ["drain", "backend-2"]),
        (["-p", "7000", "weight", "a", "0"], ["weight", "a", "0"]),
        (["workers", "4"], ["workers", "4"]),
    ],
)
def test_the_console_is_sent_the_command_alone(argv: list[str], words: list[str]) -> None:
    assert ctl.words_of(ctl.build_parser().parse_args(argv)) == words


@pytest.mark.parametrize("argv", [[], ["dance"], ["weight", "a"], ["weight", "a", "much"]])
def test_misuse_exits_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        ctl.main(argv)
    assert stop.value.code == 2
    assert "usage: balancerctl" in capsys.readouterr().err


def test_no_balancer_there_is_one_sentence_and_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["--admin", str(tmp_path / "none.sock"), "status"]) == 1
    assert capsys.readouterr().err == (
        f"balancerctl: cannot reach a balancer at {tmp_path}/none.sock: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (b'{"text": "a is drain"}\n', 0, "a is drain\n"),
        (b'{"error": "no backend is called \'a\'"}\n', 1, "balancerctl: no backend is called 'a'\n"),
        (b"220 mail ready\n", 1, "is it a balancer's admin socket?"),
        (b"[]\n", 1, "not a JSON object"),
    ],
)
def test_the_answer_decides_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes, code: int, text: str
) -> None:
    path = str(tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            conn, _ = listener.accept()
            with conn, conn.makefile("rb") as lines:
                assert lines.readline() == b"drain a\n"
                conn.send(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert ctl.main(["--admin", path, "drain", "a"]) == code
        thread.join()
    out = capsys.readouterr()
    assert text in (out.err if code else out.out)


def test_the_socket_is_found_where_the_daemon_puts_it() -> None:
    environ = {"BALANCER_ADMIN": "/a.sock", "BALANCER_PORT": "7000", "XDG_RUNTIME_DIR": "/nowhere"}
    assert ctl.admin_of(None, environ) == "/a.sock"
    assert ctl.admin_of(8000, environ).endswith("-8000.sock")
    assert ctl.admin_of(None, {**environ, "BALANCER_ADMIN": ""}).endswith("-7000.sock")
    assert ctl.admin_of(None, {}).endswith("-9090.sock")


def test_a_full_queue_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A connect(2) that does not block fails with EAGAIN as soon as the queue of a unix socket is full."""
    path = str(tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(path)
        listener.listen(0)
        other.connect(path)

        def serve() -> None:
            listener.accept()[0].close()
            conn, _ = listener.accept()
            with conn, conn.makefile("rb") as lines:
                lines.readline()
                conn.send(b'{"text": "done"}\n')

        thread = threading.Timer(0.05, serve)
        thread.start()
        assert ctl.main(["--admin", path, "drain", "a"]) == 0
        thread.join()
    assert capsys.readouterr().out == "done\n"
