"""A figure in a document that is a constant of the sources is that constant."""

import re
from pathlib import Path

import pytest

from balancer.checks import check, talk
from balancer.console import admin, answers, web
from balancer.ctl_options import COMMANDS
from balancer.discovery import lookups
from balancer.edge import hello, proxy_protocol
from balancer.eventloop import log_sink
from balancer.options import MOST_LISTENERS, MOST_POOLS, POLICIES
from balancer.pool import backend, board, health
from balancer.prefork import generations, upgrade
from balancer.relay import half, pipes, preread
from balancer.relay.framed import client, connection, connection_pool, transfer
from balancer.relay.tls import handshakes
from balancer.shm import events, layout, source_names

DOCS = Path(__file__).resolve().parents[2] / "docs"
# Page, sentence with the figure in its group, and what it says in the unit of the sentence.
FIGURES = (
    ("LIMITS", r"\| workers \| (\d+) \|", layout.MAX_SLOTS),
    ("LIMITS", r"\| listeners, pools \| (\d+), \d+ \|", MOST_LISTENERS),
    ("LIMITS", r"\| listeners, pools \| \d+, (\d+) \|", MOST_POOLS),
    ("LIMITS", r"four times those of the start, at least ([\d,]+)", board.LEAST_BACKENDS),
    ("LIMITS", r"bytes held back per direction \| (\d+) KiB", half.LIMIT / 1024),
    ("LIMITS", r"or a pipe of at most (\d) MiB", pipes.BIG / 1024**2),
    ("LIMITS", r"\| addresses of one name \| (\d+) \|", board.MOST_ADDRESSES),
    ("LIMITS", r"has up to ([\d,]+) slots", backend.MOST_SLOTS),
    ("LIMITS", r"\| a line of the log \| ([\d,]+) bytes", log_sink.LONGEST_LINE),
    ("LIMITS", r"\| events kept \| the last (\d+)", events.KEPT),
    ("LIMITS", r"\| (\d+) over HTTP, \d+ of balancerctl", web.CLIENT_LIMIT),
    ("LIMITS", r"\| \d+ over HTTP, (\d+) of balancerctl", admin.CLIENT_LIMIT),
    ("OPERATING", r"the last (\d+) events, then each as it happens", events.KEPT),
    ("METRICS", r"at most ([\d.]+) s old", answers.FRESH),
    ("METRICS", r"that is longer; (\d+) s at most", answers.LONGEST_REUSE),
    ("CHECKS", r"At most (\d+) lines, and \d KB of answer", check.MOST_STEPS),
    ("CHECKS", r"At most \d+ lines, and (\d) KB of answer", talk.MOST_BYTES / 1024),
    ("CHECKS", r"up to (\d+) printable\s+characters", talk.SHOWN),
    ("CHECKS", r"\((\d) % more or less", health.JITTER * 100),
    ("CHECKS", r"each time for one more, up to (\d) minutes", health.LONGEST_PAUSE / 60),
    ("PROXY", r"and ([\d,]+) bytes \(version\s+2\)", proxy_protocol.MOST),
    ("PROXY", r"are a sample: (\d+) with many sessions", source_names.PLACES),
    ("TLS", r"At most ([\d,]+) are unfinished in each worker", handshakes.MOST),
    ("TLS", r"handshakes get\s+(\d) ms of each turn", handshakes.TURN * 1000),
    ("TLS", r"(\d+) KB, and \d+ parses", hello.MOST_HANDSHAKE / 1024),
    ("TLS", r"\d+ KB, and (\d+) parses", preread.LOOKS),
    ("FRAMED", r"A request up to (\d+) KiB is read whole", connection_pool.BEGUN / 1024),
    ("FRAMED", r"trusts a backend after ([\d,]+) replies", connection_pool.TRUSTED),
    ("FRAMED", r"until it is one of (\d+) at rest", connection.RESTING),
    ("FRAMED", r"Frames of more than (\d+) KiB are copied", transfer.BULK / 1024),
    ("DISCOVERY", r"no sooner than (\d) s and no later", lookups.AGAIN),
    ("SIGNALS", r"dies before that, or (\d+) s pass", generations.READY_WITHIN),
    ("SIGNALS", r"delays the report until it is\s+killed, (\d) s at most", generations.SETTLE_WITHIN),
    ("SIGNALS", r"is not ready within (\d+) s, is killed", upgrade.GIVE_UP_AFTER),
)  # fmt: skip


@pytest.mark.parametrize(("page", "sentence", "value"), FIGURES)
def test_each_figure_is_the_constant(page: str, sentence: str, value: float) -> None:
    found = re.findall(sentence, (DOCS / f"{page}.md").read_text())
    assert len(found) == 1, sentence
    assert float(found[0].replace(",", "")) == value


def test_what_pages_say_in_words() -> None:
    framed, signals = ((DOCS / f"{name}.md").read_text() for name in ("FRAMED", "SIGNALS"))
    assert client.PAUSE == 60 and "it is ended after a minute, or `frame-timeout`" in framed
    assert connection_pool.SUSPICION == 60 and "for a minute each connection to this backend" in framed
    assert connection_pool.REST == 0.25 and "rests for a quarter\nof a second" in framed
    assert generations.MOST_GENERATIONS == 16 and "At most sixteen generations" in signals


def measured() -> dict[str, dict[str, list[str]]]:
    """work -> proxy -> cells behind its name, of the first table of docs/BENCHMARKS.md."""
    table = (DOCS / "BENCHMARKS.md").read_text().split("<!-- bench -->")[1].split("<!-- /bench -->")[0]
    found: dict[str, dict[str, list[str]]] = {}
    work = ""
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) > 5 and cells[1] not in ("proxy", "---"):
            work = cells[0] or work
            found.setdefault(work, {})[cells[1]] = cells[2:]
    return found


def test_the_readmes_costs_are_those_that_were_measured() -> None:
    costs = (DOCS.parent / "README.md").read_text().split("## What it costs")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in costs.splitlines()
        if " us |" in line
    ]
    assert len(rows) == 3
    for work, ours, *ratios in rows:
        [there] = [peers for name, peers in measured().items() if name.startswith(work)]
        assert ours == f"{there['ours'][3]} us", work
        assert ratios == [there[peer][6] for peer in ("haproxy", "nginx", "envoy")], work


def test_the_number_of_machines_is_reckoned_from_what_was_measured() -> None:
    text = (DOCS / "SCALING.md").read_text()
    order = ("keep-alive request", "one connection per request", "100 KB reply")
    ours = [
        next(peers["ours"] for name, peers in measured().items() if name.startswith(work)) for work in order
    ]
    [costs] = re.findall(r"^\| c, us of CPU \| (.*) \|$", text, re.MULTILINE)
    assert costs.split(" | ") == [cells[3] for cells in ours]
    [rates] = re.findall(r"^\| those two cores, .*? \| (.*) \|$", text, re.MULTILINE)
    assert [rate.removesuffix(" /s") for rate in rates.split(" | ")] == [cells[0] for cells in ours]
    [alone] = re.findall(r"^\| 8 cores for the balancer alone \| (.*) \|$", text, re.MULTILINE)
    for rate, cells in zip(alone.split(" | "), ours, strict=True):
        assert (
            int(float(rate.removesuffix(" /s").replace(",", ""))) == int(8e6 / float(cells[3])) // 1000 * 1000
        )


# Page, heading of the part that has to name them all, and the words.
LISTS = (
    ("CHECKS.md", "Health checks", [kind for kind in check.KINDS if kind != "script"]),
    (
        "CHECKS.md",
        "Health checks",
        ["port", "address", "sni", "proxy", "timeout", "expect", "host", "role", "user"],
    ),
    ("DISCOVERY.md", "Backends that come and go", list(backend.SET_WORDS)),
    ("PROXY.md", "To a backend", list(proxy_protocol.EXTRAS)),
    ("OPERATING.md", "Commands", [name for name, command in COMMANDS.items() if command.is_act]),
    ("../README.md", "What it does", list(POLICIES)),
)


@pytest.mark.parametrize(("page", "heading", "words"), LISTS)
def test_a_page_names_every_word_of_a_list(page: str, heading: str, words: list[str]) -> None:
    text = (DOCS / page).read_text()
    part = re.search(rf"^(#+) {heading}\n(.*?)(?=^\1 |\Z)", text, re.DOTALL | re.MULTILINE)
    assert part is not None
    assert [word for word in words if not re.search(rf"\b{word}\b", part[2])] == []
