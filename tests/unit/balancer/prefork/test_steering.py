"""Shares, and the BPF program made of them, interpreted here as the kernel does."""

import errno
import os
import socket
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.prefork.steering import (
    JGE,
    LD_RANDOM,
    MEMORY,
    MOD,
    RET,
    WHOLE,
    Instruction,
    Smoother,
    attach,
    drop_syns,
    is_material,
    portions,
    program,
    shares,
)


def interpret(code: Sequence[Instruction], random_word: int) -> int:
    accumulator = at = 0
    while True:
        step = code[at]
        op, jump_true, jump_false, constant = step
        at += 1
        if step == LD_RANDOM:
            accumulator = random_word
        elif op == MOD:
            accumulator %= constant
        elif op == JGE:
            at += jump_true if accumulator >= constant else jump_false
        elif op == RET:
            return constant
        else:
            raise AssertionError(f"unknown instruction {step}")


def outcome(parts: Sequence[int]) -> list[int]:
    """How many of 1000 consecutive random words each slot gets."""
    code = program(parts)
    hits = [0] * len(parts)
    for word in range(WHOLE):
        hits[interpret(code, 7 * WHOLE + word)] += 1
    return hits


@pytest.mark.parametrize("parts", [[1000], [500, 500], [0, 1000, 0], [334, 333, 333], [1, 0, 998, 0, 1]])
def test_the_program_gives_each_slot_exactly_its_share(parts: list[int]) -> None:
    assert outcome(parts) == parts


@given(st.lists(st.none() | st.integers(0, 100_000), min_size=1, max_size=64))
def test_shares_are_whole_never_all_zero_and_obeyed(loads: list[int | None]) -> None:
    parts = shares(loads)
    assert sum(parts) == WHOLE and min(parts) >= 0
    if any(load is not None for load in loads):
        assert [bool(part) for part in parts] == [load is not None for load in loads]
    known = sorted((load, -part) for load, part in zip(loads, parts, strict=True) if load is not None)
    assert all(-a >= -b - 1 for (_, a), (_, b) in pairwise(known))  # less load, not less share
    assert len(program(parts)) <= 4096
    assert outcome(parts) == parts


def test_small_imbalance_is_not_worth_steering() -> None:
    assert shares([3, 0]) == [500, 500]
    assert shares([100, 115, 96]) == shares([0, 0, 0]) == [334, 333, 333]


def test_the_least_loaded_gets_most() -> None:
    parts = shares([40, 10, 10, 20])
    assert parts[1] == parts[2] > parts[3] > parts[0] > 0
    assert parts[1] > 3 * parts[0]


def test_no_slot_eligible_means_all() -> None:
    assert shares([None, None]) == [500, 500]


def test_a_small_weight_never_gets_zero() -> None:
    assert portions([1e-9, 1.0]) == [1, 999]
    assert portions([0.0, 0.0]) == [0, 0]


def test_only_material_changes_reach_the_kernel() -> None:
    assert not is_material([500, 500], [549, 451])
    assert is_material([500, 500], [550, 450])
    assert is_material([999, 1], [1000, 0])
    assert is_material([], [1000])


def test_a_wrong_sum_is_refused() -> None:
    with pytest.raises(ValueError, match="sum"):
        program([500, 499])


def test_the_kernel_runs_the_program() -> None:
    group = []
    port = 0
    for _ in range(3):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(512)
        sock.setblocking(False)
        port = sock.getsockname()[1]
        group.append(sock)
    attach(group[0], program([300, 0, 700]))
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    counts = []
    for sock in group:
        counts.append(0)
        while True:
            try:
                sock.accept()[0].close()
            except BlockingIOError:
                break
            counts[-1] += 1
    assert sum(counts) == 300 and counts[1] == 0 and 0 < counts[0] < counts[2]
    for sock in (*clients, *group):
        sock.close()


def test_a_socket_that_drops_syns_keeps_the_clients_that_it_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.socket() as late:
        address = sock.getsockname()
        sock.setblocking(False)
        with socket.create_connection(address) as queued:
            drop_syns(sock)
            late.setblocking(False)
            assert late.connect_ex(address) == errno.EINPROGRESS
            with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                late.getpeername()
            conn, _ = sock.accept()
            with conn:
                queued.sendall(b"x")
                conn.setblocking(True)
                assert conn.recv(1) == b"x"
            with pytest.raises(BlockingIOError):
                sock.accept()


def test_loads_are_averaged_over_time_however_often_they_are_read() -> None:
    often, seldom = Smoother(), Smoother()
    for smoother in (often, seldom):
        assert smoother.smooth([0, 8], 0.0) == [0, 8]
    for tenth in range(1, 11):
        [first, second] = often.smooth([10, 8], tenth / 10 * MEMORY)
    assert [first, second] == pytest.approx(seldom.smooth([10, 8], MEMORY))
    assert first == pytest.approx(6.32, abs=0.01) and second == 8


def test_a_slot_that_comes_back_has_no_old_load() -> None:
    smoother = Smoother()
    smoother.smooth([40, 8], 0.0)
    assert smoother.smooth([None, 8], 0.1) == [None, 8]
    assert smoother.smooth([2, 8], 0.2) == [2, 8]


def test_shares_do_not_oscillate_with_short_sessions() -> None:
    """Loads that follow the shares at once: where each look decides for itself they swing further every time."""
    smoother, loads = Smoother(), [30, 34]
    for look in range(40):
        parts = shares(smoother.smooth(loads, look / 4))
        loads = [round(64 * part / WHOLE) for part in parts]
    assert abs(loads[0] - loads[1]) <= 4
    loads = [26, 38]
    for _ in range(40):
        loads = [round(64 * part / WHOLE) for part in shares(loads)]
    assert abs(loads[0] - loads[1]) > 4, "without the averages this would not show anything"
