"""Cycles of accesses whose addresses are known by hand, and who tells of them."""

import numpy as np
import pytest

from tools.ptx.banks import Count, Counter, cycles
from tools.ptx.machine import Launch
from tools.ptx.memory import GlobalMemory

LANE = np.arange(32)


@pytest.mark.parametrize(
    ("what", "offsets", "size", "wanted"),
    [
        ("a row of words", 4 * LANE, 4, 1),
        ("the same, turned round", 4 * LANE[::-1], 4, 1),
        ("a column of rows of 33 words", 4 * 33 * LANE, 4, 1),
        ("every second word", 8 * LANE, 4, 2),
        ("a column of rows of 4 words", 16 * LANE, 4, 4),
        ("eight rows of one bank, four words each", 128 * (LANE // 4) + 4 * (LANE % 4), 4, 8),
        ("a column of rows of 32 words", 128 * LANE, 4, 32),
        ("one word", 0 * LANE, 4, 1),
        ("two words of one bank", 128 * (LANE % 2), 4, 2),
        ("two words of different banks", 4 * (LANE % 2), 4, 1),
        ("bytes of a few words", LANE, 1, 1),
        ("halves of a few words", 2 * LANE, 2, 1),
        ("a column of halves", 128 * LANE, 2, 32),
        ("a row of 8 bytes each", 8 * LANE, 8, 2),
        ("8 bytes each of every second 8", 16 * LANE, 8, 4),
        ("the same 8 bytes", 0 * LANE, 8, 2),
        ("a row of 16 bytes each", 16 * LANE, 16, 4),
        ("16 bytes each, two quarters of a row behind each other", 32 * LANE, 16, 8),
        ("16 bytes each of rows of 128: of a matrix all in one bank", 128 * LANE, 16, 32),
        ("the same, exchanged within a row by its number", 128 * LANE + 16 * (LANE % 8), 16, 4),
    ],
)
def test_cycles_of_a_warp(what: str, offsets: np.ndarray, size: int, wanted: int) -> None:
    assert cycles(offsets, size, LANE) == wanted, what


def test_warps_wait_for_each_other() -> None:
    threads = np.arange(96)
    assert cycles(4 * threads, 4, threads) == 3
    assert cycles(np.where(threads < 64, 4 * threads, 128 * threads), 4, threads) == 1 + 1 + 32


@pytest.mark.parametrize(("lanes", "wanted"), [(slice(0, 8), 1), (slice(4, 12), 2), (slice(0, 0), 0)])
def test_only_threads_that_take_part_count(lanes: slice, wanted: int) -> None:
    """Eight threads with 16 bytes each are one matrix; those of two quarters of the warp do not go at once."""
    assert cycles(16 * LANE[lanes], 16, LANE[lanes]) == wanted


# Each of two warps writes a row of words, reads a column of it as matrices of rows of 128 bytes, and one thread a word.
PTX = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry kernel(.param .u64 out) .reqntid 64
{
    .reg .b32 %r<9>;
    .reg .pred %p<2>;
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 2;
    st.shared.b32 [%r2], %r1;
    shl.b32 %r3, %r1, 6;
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r3];
    setp.eq.s32 %p1, %r1, 40;
    @%p1 ld.shared.b32 %r8, [%r2];
    ret;
}
"""


def test_the_machine_tells_of_each_instruction() -> None:
    memory = GlobalMemory()
    launch = Launch(PTX, memory, (1, 1, 1), [memory.add(np.zeros(4, np.uint8))], 64 * 64)
    counter = Counter()
    launch.watch = counter
    launch.run()
    found = {each.opcode.split(".")[0]: count for each, count in counter.found.items()}
    # Rows of 64 bytes: two of a matrix share 128 bytes, four a bank.
    assert found == {"st": Count(2, 2), "ldmatrix": Count(32, 8), "ld": Count(1, 1)}


def test_what_another_run_took_is_taken_away() -> None:
    memory = GlobalMemory()
    once, twice = Counter(), Counter()
    for counter, runs in ((once, 1), (twice, 2)):
        launch = Launch(PTX, memory, (1, 1, 1), [memory.add(np.zeros(4, np.uint8))], 64 * 64)
        launch.watch = counter
        for _ in range(runs):
            launch.run()
    assert sum(twice.less(once).values(), Count()) == Count(35, 11)
    assert once.less(once) == {}
