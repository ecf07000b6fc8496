"""`balancerctl top` in a real pseudo-terminal of 80 x 24: drawn by rich, and as plain text."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from scripts.lab.backends import Echo
from scripts.lab.network import text_of
from scripts.lab.process import ROOT, clean_environment
from scripts.lab.waiting import is_readable, wait_for
from tests.system.harness import Balancer

COLUMNS, LINES = 80, 24
WITHOUT_RICH = "import sys; sys.modules['rich'] = None; sys.modules['rich.console'] = None; "
MAIN = "from balancer.ctl import main; sys.exit(main(sys.argv[1:]))"
FORMS = {"rich": "import sys; " + MAIN, "plain": WITHOUT_RICH + MAIN}


class Window:
    """A terminal with `top` in it. `lines()` is what a person sees."""

    def __init__(self, lb: Balancer, program: str, term: str) -> None:
        pyte = pytest.importorskip("pyte")
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self.fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.before = termios.tcgetattr(inner)
        self._inner = inner
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "top", "--admin", str(lb.admin)],
            cwd=ROOT, env=clean_environment({"TERM": term, "LANG": "C.UTF-8"}),
            stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
        )  # fmt: skip

    def lines(self) -> list[str]:
        while is_readable(self.fd):
            self._stream.feed(os.read(self.fd, 65536))
        return list(self._screen.display)

    def press(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def shows(self, what: str, is_met: Callable[[list[str]], bool]) -> list[str]:
        def seen() -> list[str] | None:
            shown = self.lines()
            return shown if is_met(shown) else None

        return wait_for(seen, what, 20, every=0.02)

    def shows_text(self, text: str) -> list[str]:
        return self.shows(text, lambda lines: text in "\n".join(lines))

    def is_as_before(self) -> bool:
        """Whether the terminal has the modes that it had, and shows the cursor."""
        self.lines()
        return termios.tcgetattr(self._inner) == self.before and not self._screen.cursor.hidden

    def can_be_stopped(self) -> bool:
        """Whether Ctrl-Z stops what runs there."""
        return bool(termios.tcgetattr(self._inner)[6][termios.VSUSP] != b"\0")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self._inner)


@contextmanager
def window(lb: Balancer, form: str, term: str = "xterm-256color") -> Iterator[Window]:
    if form == "rich":
        pytest.importorskip("rich")
    found = Window(lb, FORMS[form], term)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def lb() -> Iterator[Balancer]:
    with Echo() as one, Echo() as two:
        upstreams = [f"{text_of(one.address)} name=web-1", f"{text_of(two.address)} name=web-2"]
        with Balancer(upstreams=upstreams, workers=2, check="none") as balancer:
            yield balancer


@pytest.mark.parametrize("form", FORMS)
def test_what_a_person_sees_and_does(lb: Balancer, form: str) -> None:
    with window(lb, form) as top:
        shown = top.shows_text("web-2")
        assert len(shown) == LINES and "clients are served" in shown[0] and "[1 backends]" in shown[3]
        assert form == "rich" or "pip install 'prefork-balancer[top]'" in shown[-1]
        top.shows("rates", lambda lines: "0.0" in next(line for line in lines if "web-1" in line))
        for key, word in (("2", "LISTENER"), ("3", "SERVES"), ("4", "PID"), ("5", "WHAT"), ("\t", "BACKEND")):
            top.press(key)
            top.shows_text(word)
        top.press("/web-2\r")
        top.shows("the filter", lambda lines: not any("web-1" in line for line in lines[4:]))
        top.press("d")
        top.shows_text("drain web-2? y/n")
        top.press("n")
        top.shows_text("left as it is")
        assert lb.backend("web-2")["state"] == "up"
        top.press("dy")
        top.shows_text("takes no new sessions (drain)")
        top.shows(
            "its new state", lambda lines: any("web-2" in line and "drain" in line for line in lines[5:22])
        )
        assert lb.backend("web-2")["state"] == "drain" and "reason=top" in lb.ctl("events").stdout
        top.press("ry")
        top.shows_text("takes sessions again")
        top.press("q")
        assert top.process.wait(30) == 0 and top.is_as_before()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(lb: Balancer, ending: signal.Signals) -> None:
    for form in FORMS:
        with window(lb, form) as top:
            top.shows_text("web-1")
            assert not top.can_be_stopped(), "Ctrl-Z would leave it so"
            os.kill(top.process.pid, ending)
            assert top.process.wait(30) == 128 + ending and top.is_as_before()


def test_a_balancer_that_has_gone_is_a_sentence(tmp_path: object) -> None:
    with Echo() as one, Balancer(upstreams=[one.address], workers=1) as lb, window(lb, "plain") as top:
        top.shows_text("clients are served")
        lb.stop()
        top.shows_text("cannot reach a balancer")
        top.press("q")
        assert top.process.wait(30) == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_terminal_without_a_screen_gets_the_views_once(lb: Balancer, form: str) -> None:
    with window(lb, form, "dumb") as top:
        assert top.process.wait(30) == 0
        top.shows_text("WORKER")
