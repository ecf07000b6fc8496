"""The shared table: one writer per cell, rows on their own cache lines, totals that never fall; the notice."""

import mmap
import os
import re
from pathlib import Path

import pytest

from balancer.shm.layout import FIRST_LEASE, FREE, LOAD, PREFORK_COLUMNS, READY, STATE, make_shared
from balancer.shm.memory import PAGE_BYTES, zero
from balancer.shm.notice import SIZE, Notice
from balancer.shm.table import RETIRED_ROW, Table

COUNT = PREFORK_COLUMNS


def test_rows_are_whole_cache_lines_and_do_not_overlap() -> None:
    table = Table(3, 9)
    assert table.columns == 16
    table.row(1)[:] = memoryview(bytes(b"\x01" * 8 * 16)).cast("q")
    assert not any(table.row(0)) and not any(table.row(2))
    table.row(2)[5] = -7
    assert table.cells[2 * 16 + 5] == -7


def test_total_sums_the_asked_rows_only() -> None:
    table = Table(5, 8)
    for row in range(5):
        table.row(row)[3] = 10**row
    assert table.total(3, 0, 5) == 11111
    assert table.total(3, 1, 3) == 110
    assert table.total(2, 0, 5) == 0


def test_folding_moves_totals_and_zeroes_the_rest() -> None:
    table = Table(5, 32)
    row = table.row(FIRST_LEASE)
    row[COUNT], row[COUNT + 1], row[LOAD], row[STATE] = 41, 5, 3, READY
    table.row(RETIRED_ROW)[COUNT] = 1
    before = table.total(COUNT, 0, 5)
    table.fold(FIRST_LEASE, RETIRED_ROW, [range(COUNT, COUNT + 1)])
    assert table.total(COUNT, 0, 5) == before == 42
    assert table.total(COUNT + 1, 0, 5) == 0 and table.total(LOAD, 0, 5) == 0
    assert row[STATE] == FREE


def resident() -> int:
    """Bytes of shared memory that this process has in use."""
    found = re.search(r"RssShmem:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def test_a_table_costs_what_is_used_of_it() -> None:
    before = resident()
    table = Table(512, 40_000)
    for row in range(4):
        table.row(row)[39_999] = 1
    assert resident() - before <= 4 * PAGE_BYTES


def test_folding_a_row_gives_its_memory_back() -> None:
    table = Table(8, 40_000)
    table.row(FIRST_LEASE)[:] = memoryview(bytes(b"\x01" * 8 * table.columns)).cast("q")
    before = resident()
    table.fold(FIRST_LEASE, RETIRED_ROW, [range(COUNT, 1000)])
    assert before - resident() > 70 * PAGE_BYTES
    assert not any(table.row(FIRST_LEASE)) and table.row(RETIRED_ROW)[999] == 0x0101010101010101


@pytest.mark.parametrize("columns", [40, 600, 5000])
def test_zeroing_a_row_leaves_its_neighbours(columns: int) -> None:
    table = Table(3, columns)
    for row in range(3):
        table.row(row)[:] = memoryview(bytes(b"\x01" * 8 * table.columns)).cast("q")
    table.zero(1)
    assert [sum(map(bool, table.row(row))) for row in range(3)] == [table.columns, 0, table.columns]


def test_memory_that_the_kernel_does_not_take_back_is_zeroed() -> None:
    """MADV_REMOVE fails on private and on locked memory."""
    memory = mmap.mmap(-1, 3 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = b"\x01" * 3 * PAGE_BYTES
    zero(memory, PAGE_BYTES, PAGE_BYTES)
    assert memory[:] == b"\x01" * PAGE_BYTES + bytes(PAGE_BYTES) + b"\x01" * PAGE_BYTES


def test_the_table_is_shared_over_a_fork() -> None:
    table = Table(2, 8)
    pid = os.fork()
    if not pid:
        table.row(1)[4] = 1 << 40
        os._exit(0)
    os.waitpid(pid, 0)
    assert table.row(1)[4] == 1 << 40


def test_a_notice_is_read_whole_with_its_serial() -> None:
    notice = Notice()
    assert notice.read() == (0, "")
    assert notice.write("zwölf") == 1
    assert notice.read() == (1, "zwölf")
    notice.write("x")
    assert notice.read() == (2, "x")


def test_a_process_keeps_its_own_row_and_reads_zeros_elsewhere() -> None:
    shared = make_shared(4, rows=6)
    rows = [shared.rows.row(number) for number in range(6)]
    for number, row in enumerate(rows):
        row[0] = row[-1] = number + 1
    shared.slots.row(3)[0] = 5
    shared.notice.write("text")
    shared.events.heads[7] = 9
    shared.keep_row(2)
    assert [row[0] for row in rows] == [row[-1] for row in rows] == [0, 0, 3, 0, 0, 0]
    assert shared.slots.row(3)[0] == shared.events.heads[7] == 0 and shared.notice.read() == (0, "")
    rows[0][0] = 7  # harmless
    assert shared.rows.columns * 8 % 4096 == 0, "no two rows share a page"


def test_a_notice_too_long_is_cut_between_characters() -> None:
    notice = Notice()
    notice.write("ä" * 3000)
    assert notice.read() == (1, "ä" * 2000)


def test_a_reader_gives_up_on_a_writer_killed_half_way() -> None:
    memory = memoryview(bytearray(SIZE))
    notice = Notice(memory)
    notice.write("whole")
    memory.cast("q")[0] += 1  # the serial is odd while the writer writes
    assert notice.read() == (-1, "")
    notice.write("mended")
    assert notice.read()[1] == "mended"


def test_a_torn_text_is_not_believed() -> None:
    memory = memoryview(bytearray(SIZE))
    notice = Notice(memory)
    notice.write("whole")
    memory[24] = ord("W")
    assert notice.read() == (-1, "")
