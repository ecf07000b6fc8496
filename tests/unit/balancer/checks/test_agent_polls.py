"""What agents have said outlives the prober: its successor goes on as it would have."""

from dataclasses import replace
from itertools import product

import pytest

from balancer.checks.agent import AgentWords
from balancer.checks.agent_polls import board_words, from_board
from balancer.pool.board import AGENT_OUT

LINES = (
    b"up", b"down#x", b"stopped", b"ready", b"drain", b"maint", b"0%", b"50%", b"100%", b"weight:3",
    b"maxconn:0", b"maxconn:7",
)  # fmt: skip


@pytest.mark.parametrize("first", LINES)
def test_a_successor_understands_each_word_as_the_prober_before_would(first: bytes) -> None:
    for second, third in product(LINES, LINES):
        said = AgentWords().then(first, 2).then(second, 2)
        known = from_board(board_words(said))
        assert known == replace(said, reason=""), (second, third)
        assert board_words(known.then(third, 2)) == board_words(said.then(third, 2)), (second, third)


def test_words_without_a_mode_are_those_of_a_version_before() -> None:
    assert from_board((AGENT_OUT, 0, 0, 0)) == AgentWords("drain")
    assert from_board((AGENT_OUT, 1, 0, 0)) == AgentWords(weight=0)
