"""A table of cells made by hand, and what the operator sees of it."""

import re
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.config.units import parse_address
from balancer.console import status as status_module
from balancer.console import waits
from balancer.console.answers import ready
from balancer.console.entrance import NO_ACCEPT, NO_WORKER, Entrance
from balancer.console.problems import headline
from balancer.console.processes import UNKNOWN, Figures
from balancer.console.prometheus import exposition
from balancer.console.status import Identity, entrance_of, snapshot, worker_state
from balancer.console.table import address_text, check_text, status_text, worker_row
from balancer.console.views import ENDS
from balancer.edge.certificates import CertificateFile, TrustFile
from balancer.edge.route import Route
from balancer.options import Listener, Options, Pool, ProcessOptions
from balancer.pool import board as b
from balancer.pool.backend import Backend, parse_upstream
from balancer.pool.serving import Serving
from balancer.pool.targets import NameAddresses
from balancer.pool.verdicts import VerdictWriter
from balancer.relay import ends
from balancer.shm import layout as c
from balancer.shm.histogram import Histogram
from balancer.shm.table import RETIRED_ROW
from balancer.web.figures import human_age, human_bytes
from tests.unit.balancer.console.sample_status import backend, listener, status

BACKENDS = (
    Backend("one", parse_address("127.0.0.1:9001"), weight=2, maxconn=8, index=0),
    Backend("two", parse_address("127.0.0.1:9002"), backup=True, index=1),
)
OPTIONS = Options(
    ProcessOptions(),
    (Listener("main", (parse_address("0.0.0.0:80"),), maxconns=9, routes=(Route("main"),), index=0),),
    (Pool("main", BACKENDS, balance="p2c", max_queue=5, index=0),),
)


@pytest.fixture
def board() -> b.Board:
    shared = c.make_shared(b.columns_for(4), rows=8)
    made = b.Board(shared, 4)
    for kind, count in ((b.LISTENERS, 1), (b.POOLS, 1), (b.BACKENDS, 2)):
        made.give_out(kind, range(count), ())
    master = shared.rows.row(c.MASTER_ROW)
    master[c.MASTER_GENERATION], master[c.MASTER_LIVE_ROWS], master[c.STARTED_MS] = 3, 6, 40_000
    return made


def lease(board: b.Board, row: int, **cells: int) -> memoryview:
    """One living process; keyword names are column names of shm.layout, or of a listener's block, in lower case."""
    view = board.shared.rows.row(row)
    for name, value in cells.items():
        column = getattr(c, name.upper(), None)
        view[board.listener_at(0) + getattr(b, f"L_{name.upper()}") if column is None else column] = value
    view[c.ROLE] = cells.get("role", 0)
    return view


def look(board: b.Board, now: float = 100.0) -> dict:
    identity = Identity("1.2.3", "lb-1", "/etc/balancer.ini")
    return snapshot(
        board, OPTIONS, identity, now, lambda pid: Figures(12.5, 1 << 20, 9) if pid == 71 else UNKNOWN
    )


def test_totals_include_the_dead_and_the_draining(board: b.Board) -> None:
    lease(board, 3, pid=71, state=c.READY, beat_ms=100_000, accepted=10, sessions=2, bytes_in=5)
    lease(board, 4, pid=72, state=c.DRAINING, beat_ms=100_000, accepted=20, sessions=1)
    dead = board.shared.rows.row(RETIRED_ROW)
    dead[board.listener_at(0) + b.L_ACCEPTED], dead[board.listener_at(0) + b.L_BYTES_IN] = 100, 7
    master = board.shared.rows.row(c.MASTER_ROW)
    master[c.MASTER_RESPAWNS], master[c.MASTER_HANGS] = 4, 1
    totals = look(board)["totals"]
    assert (totals["respawns_total"], totals["hangs_total"]) == (4, 1)
    assert (totals["accepted_total"], totals["sessions"], totals["bytes_in_total"]) == (130, 3, 12)


def test_times_are_of_the_whole_life_of_the_balancer(board: b.Board) -> None:
    row = lease(board, 3, pid=71, state=c.READY, beat_ms=100_000)
    Histogram(row[board.pool_at(0) + b.P_WAIT_TIMES :]).observe(3.0)
    Histogram(board.shared.rows.row(RETIRED_ROW)[board.listener_at(0) + b.L_SESSION_TIMES :]).observe(0.07)
    found = look(board)
    [listener], [pool] = found["listeners"], found["pools"]
    wait, session = pool["times"]["wait"], listener["times"]["session"]
    assert (wait["count"], wait["sum_s"], wait["counts"][found["bounds_s"].index(5.0)]) == (1, 3.0, 1)
    assert session["counts"][found["bounds_s"].index(0.1)] == 1 and 0.05 < session["p50_s"] <= 0.1
    assert pool["times"]["connect"] == pool["times"]["reply"] == listener["times"]["handshake"]
    nothing = {"count": 0, "sum_s": 0.0, "p50_s": None, "p90_s": None, "p99_s": None, "counts": []}
    assert pool["times"]["reply"] == nothing


def test_listeners_and_pools_have_their_own_figures(board: b.Board) -> None:
    row = lease(board, 3, pid=71, state=c.READY, beat_ms=100_000, accepted=10, sessions=2, refused=1)
    row[board.pool_at(0) + b.P_QUEUED], row[board.pool_at(0) + b.P_QUEUED_TOTAL] = 3, 4
    status = look(board)
    [listener], [pool] = status["listeners"], status["pools"]
    assert (listener["name"], listener["addresses"], listener["pools"]) == ("main", ["0.0.0.0:80"], ["main"])
    assert (listener["sessions"], listener["maxconns"], listener["accepted_total"]) == (2, 9, 10)
    assert (pool["name"], pool["balance"], pool["queued"], pool["queued_total"]) == ("main", "p2c", 3, 4)
    assert pool["backends"] == status["backends"] and {one["pool"] for one in pool["backends"]} == {"main"}
    assert status["schema"] == 2
    table = status_text(status)
    assert "2/9" in table and "3/5" in table and "p2c" in table


def test_what_is_refused_failed_and_closed_is_a_sum_over_the_ends(board: b.Board) -> None:
    """Counted once: no two figures can disagree."""
    row = lease(board, 3, pid=71, state=c.READY, beat_ms=100_000, refused=1000)
    row[board.listener_at(0) + b.L_ENDS : board.listener_at(0) + b.L_ENDS + 13] = memoryview(
        array("q", range(1, 14))
    )
    board.shared.rows.row(RETIRED_ROW)[board.listener_at(0) + b.L_ENDS + 12] = 100
    status = look(board)
    [listener] = status["listeners"]
    counts = ["--", "CC", "CQ", "CD", "cD", "SC", "sC", "sQ", "SD", "sD", "RC", "RD", "KD"]
    assert listener["ends"] == {end: n for n, end in enumerate(counts, 1)} | {
        "KD": 113,
        "PR": 0,
        "cR": 0,
        "DD": 0,
    }
    for found in (listener, status["totals"]):
        assert found["ends"] == listener["ends"]
        assert found["refused_total"] == 1000 + 8 + 11, (
            "at the accept, by the queue's limit, for want of descriptors"
        )
        assert found["failed_total"] == 6 + 7, "no backend could be reached"
        assert found["cut_total"] == 113
        assert found["closed_total"] == 1000 + sum(range(1, 14)) + 100
    assert "unclean ends: CC 2, CQ 3, CD 4, cD 5," in status_text(status)


def test_workers_are_listed_with_what_the_kernel_says_of_them(board: b.Board) -> None:
    lease(board, 3, pid=71, state=c.READY, beat_ms=99_900, sessions=2, slot=1)
    lease(board, 4, pid=72, state=c.READY, beat_ms=90_000, slot=0)
    lease(board, 5, pid=73, state=c.READY, beat_ms=99_900, role=1)
    first, second = look(board)["workers"]
    assert (first["slot"], first["state"], first["fds"]) == (0, "hung", None)
    assert (second["slot"], second["state"], second["fds"], second["cpu_percent"]) == (1, "ready", 9, 12.5)


@pytest.mark.parametrize(
    ("state", "age_ms", "word"),
    [
        (c.READY, 0, "ready"),
        (c.DRAINING, 700, "draining"),
        (c.READY, 800, "hung"),
        (c.STARTING, 9000, "starting"),
    ],
)
def test_worker_state(state: int, age_ms: int, word: str) -> None:
    assert worker_state(state, 50_000, 50_000 + age_ms) == word


def test_an_admin_state_is_shown_before_a_verdict(board: b.Board) -> None:
    board.write_verdict(0, [(b.W_VERDICT, b.DOWN), (b.W_SINCE_MS, 98_000)])
    board.write_verdict(1, [(b.W_VERDICT, b.DOWN)])
    board.set_admin_state(1, b.ADMIN_MAINT, 99_000)
    board.set_weight(0, 5, 97_000)
    one, two = look(board)["backends"]
    assert (one["state"], one["weight"], one["since_s"], one["maxconn"]) == ("down", 5, 2.0, 8)
    assert (two["state"], two["backup"], two["since_s"]) == ("maint", True, 1.0)


def test_an_age_is_that_of_the_state_that_is_shown(board: b.Board) -> None:
    """The age of drain was that of the last check's verdict."""
    ages = []
    for now, act in (
        (90, lambda at: board.write_verdict(0, [(b.W_VERDICT, b.UP), (b.W_SINCE_MS, at)])),
        (92, lambda at: board.set_admin_state(0, b.ADMIN_DRAIN, at)),
        (93, lambda at: board.set_admin_state(0, b.ADMIN_DRAIN, at)),  # asked for again: nothing new
        (94, lambda at: board.set_admin_state(0, b.ADMIN_MAINT, at)),
        (95, lambda at: board.write_verdict(0, [(b.W_VERDICT, b.DOWN), (b.W_SINCE_MS, at)])),
        (96, lambda at: board.set_admin_state(0, b.ADMIN_READY, at)),
        (97, lambda at: board.write_verdict(0, [(b.W_VERDICT, b.UP), (b.W_SINCE_MS, at)])),
        (98, lambda at: board.set_weight(0, 0, at)),
    ):
        act(now * 1000)
        one = look(board)["backends"][0]
        ages.append((one["state"], one["since_s"]))
    assert ages == [
        ("up", 10.0), ("drain", 8.0), ("drain", 8.0), ("maint", 6.0), ("maint", 6.0), ("down", 5.0), ("up", 3.0),
        ("weight-0", 2.0),
    ]  # fmt: skip


def test_whether_a_client_can_be_served_is_said_of_the_whole_and_of_pools(board: b.Board) -> None:
    status = look(board)
    assert (status["serving"], status["reason"]) == (False, NO_WORKER)
    assert {(one["serving"], one["reason"]) for one in status["pools"]} == {(False, NO_WORKER)}
    lease(board, 3, pid=71, state=c.READY, beat_ms=100_000, accepting=1)
    status = look(board)
    assert (status["serving"], status["reason"]) == (True, "")
    board.set_admin_state(0, b.ADMIN_DRAIN)
    board.set_weight(1, 0)
    status = look(board)
    [pool] = status["pools"]
    assert (status["serving"], pool["serving"], pool["up"]) == (False, False, 0)
    assert status["reason"] == pool["reason"] == "1 with weight 0, 1 drained"
    assert [one["state"] for one in status["backends"]] == ["drain", "weight-0"]
    assert "NO CLIENT CAN BE SERVED: 1 with weight 0, 1 drained" in status_text(status)
    lease(board, 3, pid=71, state=c.READY, beat_ms=90_000)  # hung
    assert look(board)["reason"] == NO_WORKER == look(board)["pools"][0]["reason"]


@pytest.mark.parametrize(
    ("overflow", "sessions", "accepting", "reason"),
    [
        ("drop", 8, [0, 0], NO_ACCEPT),
        ("drop", 8, [0, 1], ""),
        ("drop", 9, [1, 1], "listener main has its 9 sessions (maxconns) and refuses more"),
        ("drop", 9, [0, 0], NO_ACCEPT),
        ("queue", 8, [0, 0], NO_ACCEPT),
        ("queue", 9, [0, 0], ""),  # they rest because it is full, and its clients wait
        ("queue", 9, [1, 0], ""),
    ],
)
def test_nobody_is_served_where_nobody_comes_in(
    board: b.Board, overflow: str, sessions: int, accepting: list[int], reason: str
) -> None:
    for row, accepts in enumerate(accepting, 3):
        lease(board, row, pid=68 + row, state=c.READY, beat_ms=100_000, accepting=accepts)
    board.shared.rows.row(3)[board.listener_at(0) + b.L_SESSIONS] = sessions
    [main] = OPTIONS.listeners
    options = replace(OPTIONS, listeners=(replace(main, overflow=overflow),))
    status = snapshot(board, options, Identity("1", "lb-1"), 100.0, lambda pid: UNKNOWN)
    [pool] = status["pools"]
    assert (status["serving"], status["reason"]) == (not reason, reason) == (pool["serving"], pool["reason"])
    assert entrance_of(board, options.listeners, 100.0).shut == (reason if reason == NO_ACCEPT else "")
    assert ready(status).status == (503 if reason else 200) and bool(waits.ready(status)) == bool(reason)
    assert f"balancer_serving {int(not reason)}\n" in exposition(status)
    assert headline(status).startswith("No client can be served" if reason else "2 of 2 backends up")
    assert ("NO CLIENT CAN BE SERVED" in status_text(status)) == bool(reason)
    # The backends' own reason is the one to mend, unless nobody comes in at all.
    for index in (0, 1):
        board.set_admin_state(index, b.ADMIN_DRAIN)
    why = snapshot(board, options, Identity("1", "lb-1"), 100.0, lambda pid: UNKNOWN)["reason"]
    assert why == (NO_ACCEPT if reason == NO_ACCEPT else "every backend is drained by an operator")


def test_a_pool_serves_while_one_of_its_listeners_takes_clients() -> None:
    found, full = Serving(1, 1, True, ""), {"maxconns": 2, "sessions": 2, "overflow": "drop"}
    one, two = {"name": "one", "pools": ["a", "b"]} | full, {"name": "two", "pools": ["b"]} | full
    entrance = Entrance([{"state": "ready", "accepting": True}], [one, two | {"sessions": 1}])
    assert entrance.of_pool("a", found).reason.startswith("listener one has its 2 sessions")
    assert entrance.of_pool("b", found) == found == entrance.of_pool("unused", found)
    whole = entrance.of_whole({"a": found, "b": found})
    assert whole.is_serving and whole.reason.startswith("pool a: listener one has its 2 sessions")
    entrance = Entrance([{"state": "ready", "accepting": True}], [one, two])
    assert (
        "one has" in entrance.of_pool("b", found).reason and "two has" in entrance.of_pool("b", found).reason
    )
    assert not entrance.of_whole({"b": found}).is_serving


def test_the_status_says_which_balancer_it_is_of(board: b.Board) -> None:
    status = look(board)
    assert (status["host"], status["config"]) == ("lb-1", "/etc/balancer.ini")
    first, second, *_ = status_text(status).splitlines()
    assert first.startswith("balancer 1.2.3 on lb-1 ")
    assert second == "listening on 0.0.0.0:80  configuration /etc/balancer.ini"


def keys_of(found: Any, path: str = "") -> Iterator[str]:
    """The path of every key, `ends.CD` and so on, that is not the name of an end, a rule or a reason."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield f"{path}.{key}".removeprefix(".")
            if key not in ("ends", "denials", "failures"):
                yield from keys_of(value, f"{path}.{key}")
    elif isinstance(found, list):
        for one in found:
            yield from keys_of(one, path)


def test_every_key_is_in_the_documentation_of_the_schema(board: b.Board) -> None:
    [main], [one] = OPTIONS.listeners, OPTIONS.pools
    slot = Backend("web-1", parse_address("web.test:80"), index=0, set=parse_upstream("dns:web.test:80").set)
    options = replace(
        OPTIONS,
        listeners=(
            replace(
                main,
                tls_cert=(CertificateFile("/a.pem", "/a.pem", b"", not_after=1.0),),
                tls_client_crl=TrustFile("/l.pem", b"", 1e9),
            ),
        ),
        pools=(replace(one, mode="framed", backends=(slot, BACKENDS[1])),),
    )
    lease(board, 3, pid=71, state=c.READY, beat_ms=100_000)
    board.shared.events.append(5, "down", "a", 1, 99_000)
    found = snapshot(board, options, Identity("1", "lb-1"), 100.0, lambda pid: UNKNOWN)
    words = set(re.findall(r'"(\w+)"', status_module.__doc__ or ""))
    keys = set(keys_of(found))
    assert found["listeners"][0]["tls"]["revoked"]["expires_in_s"] < 0
    assert "revocation list /l.pem of main has EXPIRED" in status_text(found)
    assert {"listeners.tls.certificates", "pools.sets.slot_name", "pools.framed.requests_per_s"} <= keys
    assert not [key for key in keys if key.rpartition(".")[2] not in words]


def test_errors_says_what_each_end_means() -> None:
    assert set(ENDS) == set(ends.ORDER) - {"--"}


def test_the_last_events_are_there(board: b.Board) -> None:
    for number in range(30):
        board.shared.events.append(5, "down", f"backend={number}", 1_764_202_321_123_000_000, 99_000 + number)
    events = look(board)["events"]
    assert [event["text"] for event in events] == [f"backend={number}" for number in range(10, 30)]
    assert events[0]["verb"] == "down" and events[0]["at"] == "2025-11-27T00:12:01.123Z"
    assert events[0]["age_s"] == 1.0


@given(st.text(), st.text())
def test_nothing_from_outside_steers_the_terminal(name: str, reason: str) -> None:
    found = status(
        backends=[backend(name, check=reason)], reason=reason, serving=False, host=name, config=reason,
        reload={"ok": False, "text": name}, listeners=[listener(name, addresses=[reason])],
    )  # fmt: skip
    lines = status_text(found).split("\n")
    assert all(line.isprintable() for line in lines)
    assert len(lines) == len(status_text(status(serving=False, reload={"ok": False})).split("\n"))


def test_backend_sums_run_over_all_rows(board: b.Board) -> None:
    for row, sessions in ((3, 4), (4, 5)):
        view = lease(board, row, pid=70 + row, state=c.READY, beat_ms=100_000)
        view[board.backend_at(1) + b.B_SESSIONS] = sessions
        view[board.backend_at(1) + b.B_SESSIONS_TOTAL] = 10
    board.shared.rows.row(RETIRED_ROW)[board.backend_at(1) + b.B_SESSIONS_TOTAL] = 100
    assert [x["sessions"] for x in look(board)["backends"]] == [0, 9]
    assert [x["sessions_total"] for x in look(board)["backends"]] == [0, 120]


def test_what_the_checks_found(board: b.Board) -> None:
    prober = lease(board, 5, pid=75, role=1, state=c.READY, beat_ms=100_000)
    at = board.backend_at(0)
    prober[at + b.B_CHECKS], prober[at + b.B_CHECK_FAILURES], prober[at + b.B_DOWNS] = 9, 3, 1
    for index, column, value in ((0, b.W_CHECK, 1), (0, b.W_STREAK, 0), (0, b.W_CHECK_US, 1250)):
        board.note(index, column, value)
    for column, value in ((b.W_CHECK, 2), (b.W_STREAK, 2)):
        board.note(1, column, value)
    one, two = look(board)["backends"]
    assert (one["checks_total"], one["check_failures_total"], one["downs_total"]) == (9, 3, 1)
    assert (one["check_ms"], two["check_streak"], two["check_ms"]) == (1.25, 2, None)
    assert (check_text(one), check_text(two)) == ("ok 1.2 ms", "refused, 2 in a row")
    unchecked = {"check": None, "check_ms": None, "check_streak": None, "early_ends_total": 0}
    assert check_text(unchecked) == "-"
    assert check_text(one | {"early_ends_total": 1}) == "ok 1.2 ms, 1 early end"
    assert check_text(unchecked | {"check": "early-end", "early_ends_total": 4}) == "early-end, 4 early ends"


def test_the_address_in_use_of_a_name_is_shown(board: b.Board) -> None:
    web = Backend("web", parse_address("web.test:80"), index=1)
    options = Options(OPTIONS.process, OPTIONS.listeners, (Pool("main", (BACKENDS[0], web), index=0),))

    def shown() -> list[str | None]:
        found = snapshot(board, options, Identity("1", "lb", ""), 100.0, lambda pid: UNKNOWN)
        return [one["address_in_use"] for one in found["backends"]] + [address_text(found["backends"][1])]

    writer = VerdictWriter(board, 5)
    writer.restore(web, 0.0)
    assert shown() == [None, None, "web.test:80"]
    writer.write_addresses(1, NameAddresses(("::1", "127.0.0.1"), 0))
    assert shown() == [None, "[::1]:80", "web.test:80 at [::1]:80"]
    writer.write_in_use(1, 1)
    assert shown() == [None, "127.0.0.1:80", "web.test:80 at 127.0.0.1:80"]
    assert "web.test:80 at 127.0.0.1:80" in status_text(
        status(backends=[backend("a", address="web.test:80", address_in_use="127.0.0.1:80")])
    )


def test_a_drain_shows_what_is_left_of_it(board: b.Board) -> None:
    lease(board, 3, pid=71, state=c.DRAINING, beat_ms=100_000, deadline_ms=102_500)
    lease(board, 4, pid=72, slot=1, state=c.READY, beat_ms=100_000)
    assert [worker["drain_left_s"] for worker in look(board)["workers"]] == [2.5, None]
    assert worker_row(look(board)["workers"][0])[2] == "draining, 2s left"


def test_the_master_before_an_upgrade_is_told_while_it_is_the_parent(board: b.Board) -> None:
    board.shared.rows.row(c.MASTER_ROW)[c.PID] = 80
    for former, parent, told in ((0, 1, None), (70, 70, 70), (70, 1, None), (70, None, None)):
        board.shared.rows.row(c.MASTER_ROW)[c.MASTER_FORMER] = former
        figures = Figures(None, None, None, parent)
        found = snapshot(board, OPTIONS, Identity("1", "lb"), 100.0, lambda _pid, seen=figures: seen)
        assert found["former_master"] == told
        assert ("still has its sessions, which are not counted here" in status_text(found)) == bool(told)


def test_the_last_reload_is_told(board: b.Board) -> None:
    assert look(board)["reload"] is None
    board.shared.notice.write('{"ok": false, "at_ms": 98500, "text": "conf:3: unknown key"}')
    status = look(board)
    assert (status["reload"]["ok"], status["reload"]["age_s"]) == (False, 1.5)
    assert "last reload FAILED: conf:3: unknown key" in status_text(status)


def test_the_table_shows_unknown_as_a_dash(board: b.Board) -> None:
    lease(board, 3, pid=99, state=c.READY, beat_ms=100_000, sessions=1234567)
    page = status_text(look(board))
    line = next(line for line in page.splitlines() if " 99 " in line)
    assert "1,234,567" in line and " - " in line
    assert "generation 3  up 1m" in page


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
)
def test_human_bytes(count: int | None, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (61, "1m 1s"), (93784, "1d 2h")])
def test_human_age(seconds: float, text: str) -> None:
    assert human_age(seconds) == text
