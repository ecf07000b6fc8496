"""Which name owns which block of the board, over reloads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.pool.blocks import Blocks, BoardBlocks


def test_a_name_keeps_its_block_over_reloads() -> None:
    blocks = Blocks(4)
    first, _ = blocks.assign(1, ["a", "b", "c"])
    second, reused = blocks.assign(2, ["c", "d", "a"])
    assert second["a"] == first["a"] and second["c"] == first["c"]
    assert second["d"] not in first.values()
    assert reused == []


def test_a_block_is_not_given_away_while_an_old_generation_uses_it() -> None:
    blocks = Blocks(2)
    blocks.assign(1, ["a", "b"])
    with pytest.raises(ValueError, match="2 at start"):
        blocks.assign(2, ["a", "c"])
    assert blocks.assign(2, ["a", "b"])[0] == {"a": 0, "b": 1}  # the refusal changed nothing


def test_a_block_is_reused_and_reported_once_its_generation_is_gone() -> None:
    blocks = Blocks(2)
    blocks.assign(1, ["a", "b"])
    blocks.assign(2, ["a"])
    blocks.retire(1)
    placed, reused = blocks.assign(3, ["a", "c"])
    assert placed == {"a": 0, "c": 1}
    assert reused == [1]


def test_a_removed_backend_that_returns_finds_its_block_while_nobody_needed_it() -> None:
    blocks = Blocks(3)
    home = blocks.assign(1, ["a", "b"])[0]["b"]
    blocks.assign(2, ["a"])
    blocks.retire(1)
    assert blocks.assign(3, ["a", "b"]) == ({"a": 0, "b": home}, [])


def test_assigning_again_for_a_generation_that_never_lived_forgets_the_first_try() -> None:
    blocks = Blocks(2)
    blocks.assign(1, ["a"])
    blocks.assign(2, ["a", "b"])
    assert blocks.assign(2, ["a", "c"]) == ({"a": 0, "c": 1}, [1])


def test_a_generation_gets_blocks_of_all_kinds_or_none() -> None:
    blocks = BoardBlocks(1, 2, 2)
    blocks.assign(1, ["web"], ["main"], ["a", "b"])
    blocks.retire(1)
    with pytest.raises(ValueError, match="3 backends are configured"):
        blocks.assign(2, ["mail"], ["main"], ["a", "b", "c"])
    listeners, _, _ = blocks.assign(3, ["mail"], ["main"], ["a"])
    assert listeners == ({"mail": 0}, [0])  # still to be wiped: the refused generation took nothing


@given(st.lists(st.tuples(st.sets(st.sampled_from("abcdefgh"), min_size=1), st.booleans()), max_size=20))
def test_living_generations_never_share_a_block(history: list[tuple[set[str], bool]]) -> None:
    blocks = Blocks(6)
    living: dict[int, dict[str, int]] = {}
    for generation, (names, retire_oldest) in enumerate(history):
        try:
            living[generation], reused = blocks.assign(generation, sorted(names))
        except ValueError:
            continue
        owners: dict[int, str] = {}
        for placed in living.values():
            for name, block in placed.items():
                assert owners.setdefault(block, name) == name
                assert 0 <= block < 6
        for block in reused:
            assert owners[block] in names
        if retire_oldest:
            oldest = min(living)
            del living[oldest]
            blocks.retire(oldest)
