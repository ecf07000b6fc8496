"""Every end of a session, driven over real sockets: the log, the counter of the end and the sums agree on it."""

import os
import re
import resource
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from balancer.relay import ends
from scripts.lab.backends import Echo, Scripted, Stuck
from scripts.lab.load import receive
from scripts.lab.network import close_with_reset, free_port
from scripts.lab.waiting import wait_for
from tests.system.test_console_web import WithMetrics, ask

SECONDS = 20.0
SAMPLE = re.compile(r'^balancer_sessions_total\{listener="main",end="(..)"\} (\d+)$', re.MULTILINE)
COUNTS_AS = {
    "sQ": "refused",
    "RC": "refused",
    "PR": "refused",
    "cR": "refused",
    "SC": "failed",
    "sC": "failed",
    "KD": "cut",
}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test opens, the balancer first: its clients are closed before it stops."""
    with ExitStack() as stack:
        yield stack


def start(
    stack: ExitStack,
    *upstreams: str,
    prepare: Callable[[WithMetrics], object] = lambda lb: None,
    **options: object,
) -> WithMetrics:
    defaults = {"check": "none", "workers": 1, "loglevel": 1, "metrics": "127.0.0.1:0", "retries": 0}
    lb = WithMetrics(upstreams=upstreams, **(defaults | options))
    prepare(lb)
    return stack.enter_context(lb)


def connect(stack: ExitStack, lb: WithMetrics) -> socket.socket:
    return stack.enter_context(socket.create_connection(lb.address, SECONDS))


def relaying(stack: ExitStack, lb: WithMetrics) -> socket.socket:
    """A client whose session has a backend that echoes."""
    client = connect(stack, lb)
    client.sendall(b"x")
    assert receive(client, 1) == b"x"
    return client


def with_echo(stack: ExitStack, words: str = "", **options: object) -> WithMetrics:
    echo = stack.enter_context(Echo())
    return start(stack, f"{echo.name} {words}".strip(), **options)


def wait_dialling(lb: WithMetrics) -> None:
    wait_for(lambda: lb.status()["backends"][0]["sessions"] == 1, "a dial under way", SECONDS)


# --- what leads to each end; the clients that are left open end with the test


def both_sides_end(stack: ExitStack) -> WithMetrics:
    lb = with_echo(stack)
    relaying(stack, lb).close()
    return lb


def client_leaves_while_connecting(stack: ExitStack) -> WithMetrics:
    lb = start(stack, stack.enter_context(Stuck()).name, connect_timeout="60s")
    client = connect(stack, lb)
    wait_dialling(lb)
    close_with_reset(client)
    return lb


def client_leaves_the_queue(stack: ExitStack) -> WithMetrics:
    lb = with_echo(stack, "maxconn=1", queue_timeout="60s")
    relaying(stack, lb)
    client = connect(stack, lb)
    wait_for(lambda: lb.status()["totals"]["queued"] == 1, "a client in the queue", SECONDS)
    close_with_reset(client)
    return lb


def client_resets(stack: ExitStack) -> WithMetrics:
    lb = with_echo(stack)
    close_with_reset(relaying(stack, lb))
    return lb


def client_is_silent(stack: ExitStack) -> WithMetrics:
    lb = with_echo(stack, idle_timeout="1s")
    relaying(stack, lb)
    return lb


def every_connect_fails(stack: ExitStack) -> WithMetrics:
    lb = start(stack, f"127.0.0.1:{free_port()}")
    connect(stack, lb)
    return lb


def no_backend_is_up(stack: ExitStack) -> WithMetrics:
    lb = with_echo(stack, "name=one", prepare=lambda lb: lb.expect("all-down"))
    assert lb.ctl("drain", "one").returncode == 0
    connect(stack, lb)
    return lb


def connect_times_out(stack: ExitStack) -> WithMetrics:
    lb = start(stack, stack.enter_context(Stuck()).name, connect_timeout="1s")
    connect(stack, lb)
    return lb


def queue_times_out(stack: ExitStack) -> WithMetrics:
    lb = with_echo(stack, "maxconn=1", queue_timeout="1s")
    relaying(stack, lb)
    connect(stack, lb)
    return lb


def queue_is_full(stack: ExitStack) -> WithMetrics:
    lb = with_echo(stack, "maxconn=1", max_queue=0)
    relaying(stack, lb)
    connect(stack, lb)
    return lb


def backend_resets(stack: ExitStack) -> WithMetrics:
    def script(conn: socket.socket) -> None:
        conn.sendall(receive(conn, 1))
        receive(conn, 1)
        close_with_reset(conn)

    lb = start(stack, stack.enter_context(Scripted(script)).name)
    relaying(stack, lb).sendall(b"y")
    return lb


def backend_is_silent(stack: ExitStack) -> WithMetrics:
    done = threading.Event()
    stack.callback(done.set)
    server = stack.enter_context(Scripted(lambda conn: conn.recv(1) and done.wait(60)))
    lb = start(stack, server.name, idle_timeout="1s")
    client = connect(stack, lb)
    client.sendall(b"x")
    client.shutdown(socket.SHUT_WR)
    return lb


def no_descriptor_is_left(stack: ExitStack) -> WithMetrics:
    """One is: the client's."""
    lb = with_echo(stack, prepare=lambda lb: lb.expect(r"dial error=EMFILE"))
    [worker] = lb.worker_pids()
    taken = {int(name) for name in os.listdir(f"/proc/{worker}/fd")}
    free = [number for number in range(max(taken) + 3) if number not in taken]
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (free[1], resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    connect(stack, lb)
    return lb


def handler_raises(stack: ExitStack) -> WithMetrics:
    def prepare(lb: WithMetrics) -> None:
        lb.module = "tests.system.faulty"
        lb.expect(r" fault client=")

    lb = with_echo(stack, prepare=prepare)
    connect(stack, lb).sendall(b"x")
    return lb


def drain_cuts(stack: ExitStack) -> WithMetrics:
    """After a reload: what the old generation counts is in the status of the new one."""
    lb = with_echo(stack, reload_timeout="1s", prepare=lambda lb: lb.with_file())
    relaying(stack, lb)
    lb.change_file()
    lb.signal(signal.SIGHUP)
    return lb


def client_is_denied(stack: ExitStack) -> WithMetrics:
    lb = with_echo(stack, deny="127.0.0.0/8", deny_action="close")
    connect(stack, lb)
    return lb


def client_sends_no_header(stack: ExitStack) -> WithMetrics:
    keys = {"proxy_protocol": "yes", "proxy_trusted": "127.0.0.0/8", "preread_timeout": "300ms"}
    lb = with_echo(stack, **keys)
    connect(stack, lb)
    return lb


def backend_falls(stack: ExitStack) -> WithMetrics:
    """Its sessions go on by themselves; its check asks at another port, which closes."""
    with Echo() as checked:
        words = {"check": f"tcp port={checked.address[1]}", "check_interval": "200ms", "check_fall": 1}
        lb = with_echo(stack, **words, on_down="close", prepare=lambda lb: lb.expect(r" (down|all-down)\b"))
        relaying(stack, lb)
    return lb


WAYS = [
    ("--", both_sides_end),
    ("CC", client_leaves_while_connecting),
    ("CQ", client_leaves_the_queue),
    ("CD", client_resets),
    ("cD", client_is_silent),
    ("SC", every_connect_fails),
    ("SC", no_backend_is_up),
    ("sC", connect_times_out),
    ("sQ", queue_times_out),
    ("sQ", queue_is_full),
    ("SD", backend_resets),
    ("sD", backend_is_silent),
    ("RC", no_descriptor_is_left),
    ("RD", handler_raises),
    ("KD", drain_cuts),
    ("DD", backend_falls),
    ("PR", client_is_denied),
    ("cR", client_sends_no_header),
]


def test_there_is_a_way_to_every_end() -> None:
    assert {end for end, _ in WAYS} == set(ends.ORDER)


def logged(lb: WithMetrics) -> Counter[str]:
    """Sessions by the end that the log has for them."""
    return Counter(re.findall(r" session client=.* end=(\S\S) ", lb.log()))


def scraped(lb: WithMetrics) -> Counter[str]:
    """Sessions by the label of the counter."""
    found = SAMPLE.findall(ask(lb.http, "/metrics")[2])
    assert [end for end, _ in found] == list(ends.ORDER), "every end has a sample, from the first scrape on"
    return +Counter({end: int(count) for end, count in found})


@pytest.mark.parametrize(("end", "lead"), WAYS, ids=lambda value: getattr(value, "__name__", value))
def test_an_end_is_counted_as_what_it_is(
    stack: ExitStack, end: str, lead: Callable[[ExitStack], WithMetrics]
) -> None:
    lb = lead(stack)
    lb.wait_line(rf" session client=\S+ .*end={end} ", SECONDS)
    wait_for(lambda: scraped(lb) == logged(lb) == Counter([end]), f"one {end} and nothing else", SECONDS)
    totals = lb.status()["totals"]
    assert totals["ends"] == dict.fromkeys(ends.ORDER, 0) | {end: 1}
    assert totals["closed_total"] == 1
    for sum_ in ("refused", "failed", "cut"):
        assert totals[f"{sum_}_total"] == (COUNTS_AS.get(end) == sum_), f"{sum_} after {end}"


def test_a_client_that_is_closed_at_the_accept_is_refused_and_no_session(stack: ExitStack) -> None:
    lb = with_echo(stack, maxconns=1)
    relaying(stack, lb)
    assert connect(stack, lb).recv(1) == b""
    lb.wait_line(r" refuse client=\S+ sessions=1/1 reason=maxconns")
    totals = lb.status()["totals"]
    assert (totals["refused_total"], totals["failed_total"], totals["closed_total"]) == (1, 0, 1)
    assert not any(totals["ends"].values())


def test_ends_are_kept_when_their_worker_dies_and_over_a_reload(stack: ExitStack) -> None:
    lb = with_echo(stack, prepare=lambda lb: lb.with_file())
    lb.expect(r" reap .*signal=9")
    for _ in range(3):
        relaying(stack, lb).close()
    close_with_reset(relaying(stack, lb))
    expected = {"--": 3, "CD": 1}
    wait_for(lambda: scraped(lb) == expected, "four ends", SECONDS)
    [worker] = lb.worker_pids()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: lb.worker_pids() not in ([], [worker]), "its replacement", SECONDS)
    assert scraped(lb) == expected
    lb.change_file()
    lb.signal(signal.SIGHUP)
    wait_for(lambda: lb.status()["generation"] == 2, "the next generation", SECONDS)
    assert scraped(lb) == expected
    relaying(stack, lb).close()
    wait_for(lambda: scraped(lb) == {"--": 4, "CD": 1}, "one more", SECONDS)
