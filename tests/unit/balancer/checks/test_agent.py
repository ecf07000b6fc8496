"""Agents: their words as HAProxy reads them, and how they are fetched."""

import pytest

from balancer.checks.agent import MOST_LINE, AgentWords, first_line, listen, request
from balancer.checks.talk import Dialogue


@pytest.mark.parametrize(
    "line, words",
    [
        (b"75%", AgentWords(weight=75)),
        (b"weight:30%", AgentWords(weight=30)),
        (b"weight:1", AgentWords(weight=50)),
        (b"0%", AgentWords(weight=0)),
        (b"up 100%", AgentWords()),
        (b"maxconn:30", AgentWords(maxconn=30)),
        (b"DRAIN\tmaxconn:3, 20%", AgentWords(mode="drain", maxconn=3, weight=20)),
        (b"maint", AgentWords(mode="maint")),
        *((word + b" # no memory", AgentWords(is_down=True, reason="no memory")) for word in
          (b"down", b"fail", b"failed", b"stopped")),
        (b"down#x", AgentWords(is_down=True, reason="x")),
        (b"down # \x1b[31m\xff", AgentWords(is_down=True, reason=".[31m?")),
        (b"", AgentWords()),
        (b"nonsense 99999% weight:x \xff", AgentWords()),
    ],
)  # fmt: skip
def test_words_are_read_as_haproxy_reads_them(line: bytes, words: AgentWords) -> None:
    assert AgentWords().then(line, 2) == words


def test_what_is_not_said_stays_and_only_ready_ends_a_drain() -> None:
    said = AgentWords().then(b"drain 50%", 1)
    assert said.then(b"up", 1) == AgentWords("drain", weight=50)
    assert said.then(b"ready", 1) == AgentWords(weight=50)
    assert AgentWords().then(b"down", 1).then(b"30%", 1) == AgentWords(is_down=True, weight=30)
    assert AgentWords().then(b"down #x", 1).then(b"up", 1) == AgentWords()


@pytest.mark.parametrize("size", [1, 3, 999])
@pytest.mark.parametrize(
    "said, line",
    [
        (b"up 75%\n", b"up 75%"),
        (b"drain\r\nmore", b"drain"),
        (b"x" * 600, b""),
        (b"up" + b" " * (MOST_LINE - 12) + b"maxconn:3000\n", b"up" + b" " * (MOST_LINE - 12)),
        (b"up" + b"," * (MOST_LINE - 4) + b"7500%\n", b"up" + b"," * (MOST_LINE - 4)),
        (b"down#" + b"x" * 600, b"down#" + b"x" * (MOST_LINE - 5)),
        (b"up 75%" + b" " * (MOST_LINE - 7) + b"\n", b"up 75%" + b" " * (MOST_LINE - 7)),
    ],
)
def test_one_line_is_read_of_an_agent(said: bytes, line: bytes, size: int) -> None:
    dialogue = Dialogue(listen)
    assert dialogue.advance() == b""
    for at in range(0, len(said), size):
        if not dialogue.outcome:
            dialogue.advance(said[at : at + size])
    assert dialogue.outcome == "ok" and first_line(dialogue.rest) == line


@pytest.mark.parametrize("was_reset, outcome", [(False, "ok"), (True, "closed")])
@pytest.mark.parametrize("said", [b"up maxconn:3", b"75%", b"dr"])
def test_a_line_may_end_with_the_connection_but_not_with_a_reset(
    said: bytes, was_reset: bool, outcome: str
) -> None:
    dialogue = Dialogue(listen)
    dialogue.advance()
    dialogue.advance(said)
    dialogue.ended(was_reset)
    assert dialogue.outcome == outcome


@pytest.mark.parametrize("size", [1, 999])
def test_over_http_it_is_the_first_line_of_the_body(size: int) -> None:
    dialogue = Dialogue(lambda talk: request(talk, "/agent", "a:80"))
    assert dialogue.advance().startswith(b"GET /agent HTTP/1.0\r\nHost: a:80\r\n")
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nX: y\r\n\r\nup 50%\n"
    for at in range(0, len(said), size):
        dialogue.advance(said[at : at + size])
    assert dialogue.outcome == "ok" and first_line(dialogue.rest) == b"up 50%"
    broken = Dialogue(lambda talk: request(talk, "/agent", "a:80"))
    broken.advance()
    broken.advance(b"HTTP/1.1 404 Not Found\r\n\r\n50%\n")
    assert broken.outcome == "status"


@pytest.mark.parametrize("configured", [1, 2, 100, 199, 200, 201, 256])
def test_only_the_weight_0_takes_no_sessions(configured: int) -> None:
    assert AgentWords().then(b"weight:0", configured).weight == 0
    assert all(AgentWords().then(b"weight:%d" % n, configured).weight > 0 for n in range(1, configured + 1))
