"""Pipes are lent empty and come back empty, or not at all."""

import fcntl
import os
from collections.abc import Iterator

import pytest

from balancer.relay.pipes import ALLOWANCE, BIG, SMALL, Pipes


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = Pipes(most=3, keep=1)
    yield pipes
    pipes.close()


def is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def test_a_pipe_is_used_again(pipes: Pipes) -> None:
    pipe = pipes.take()
    assert pipe is not None
    pipes.give_back(pipe, 0)
    assert pipes.take() == pipe
    assert pipes.made == 1
    pipes.give_back(pipe, 0)


def test_a_byte_left_in_it_never_reaches_the_next_one(pipes: Pipes) -> None:
    pipe = pipes.take()
    assert pipe is not None
    os.write(pipe[1], b"x")
    pipes.give_back(pipe, 1)
    assert not is_open(pipe[0]) and not is_open(pipe[1])
    assert pipes.made == 0
    fresh = pipes.take()
    assert fresh is not None
    with pytest.raises(BlockingIOError):
        os.read(fresh[0], 1)
    pipes.give_back(fresh, 0)


def test_there_are_only_so_many_and_few_are_kept(pipes: Pipes) -> None:
    lent = [pipes.take() for _ in range(4)]
    assert lent[3] is None
    for pipe in lent[:3]:
        assert pipe is not None
        pipes.give_back(pipe, 0)
    assert pipes.made == 1


def test_without_descriptors_a_half_copies(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(flags: int) -> tuple[int, int]:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(os, "pipe2", none_left)
    assert pipes.take() is None
    assert pipes.made == 0


def test_filling_is_held_back_while_much_stands(pipes: Pipes) -> None:
    assert pipes.fill() == BIG
    pipes.held = ALLOWANCE + 1
    assert pipes.fill() == SMALL
    pipes.held = 0
