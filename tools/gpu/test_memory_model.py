"""The arithmetic of the model by which decoding's constants are chosen: which of three times bounds a tile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.gpu.issue_model import RATES
from tools.gpu.memory_model import CARDS, LATENCY, Card, Tile, memory_cycles, tile_cycles

# 10 bytes a cycle for each of 128 multiprocessors, of which each has two programs.
CARD = Card("made up", 128, 1000, 1280)
TILE = Tile(bytes=20_000, cycles=500.0, instructions=500, stages=3, resident=4)


def test_a_multiprocessors_share_of_the_bandwidth() -> None:
    assert CARD.bytes_per_cycle == 10 and CARD.programs == 2
    assert memory_cycles(20_000, CARD) == 2000


def test_memory_bounds_a_loop_that_computes_little() -> None:
    assert tile_cycles(TILE, CARD) == 2000
    assert tile_cycles(replace(TILE, cycles=900.0, instructions=900), CARD) == 2000


def test_the_units_bound_a_loop_that_computes_much() -> None:
    assert tile_cycles(replace(TILE, cycles=3000.0), CARD) == 3000


def test_a_tile_that_is_not_copied_early_enough_waits() -> None:
    """A warp's 500 instructions take 1000 cycles: two of them in four."""
    small = replace(TILE, bytes=1000)
    assert tile_cycles(replace(small, stages=3), CARD) == max(1000, (1000 + LATENCY) / 2) / 2
    assert tile_cycles(replace(small, stages=2), CARD) == (1000 + LATENCY) / 2
    assert tile_cycles(replace(small, stages=1), CARD) == (1000 + 2 * LATENCY) / 2


def test_programs_help_as_many_as_fit_and_as_are_launched() -> None:
    small = replace(TILE, bytes=1000, stages=2)
    assert tile_cycles(replace(small, resident=1), CARD) == 1000 + LATENCY
    assert tile_cycles(replace(small, resident=8), CARD) == (1000 + LATENCY) / 2


def test_bytes_in_flight_are_the_bandwidth_times_the_latency() -> None:
    """Little's law: without computing, two programs of one tile each reach 2 · 5000 / LATENCY bytes a cycle."""
    idle = Tile(bytes=5000, cycles=0.0, instructions=0, stages=2, resident=2)
    assert idle.bytes / tile_cycles(idle, CARD) == pytest.approx(2 * 5000 / LATENCY)
    assert CARD.bytes_per_cycle == 2 * 5000 / LATENCY, "which is just what memory gives"
    assert tile_cycles(replace(idle, bytes=10_000), CARD) == memory_cycles(10_000, CARD)


def test_every_architecture_has_cards_the_hungriest_first() -> None:
    assert set(CARDS) == set(RATES)
    for cards in CARDS.values():
        shares = [card.bytes_per_cycle for card in cards]
        assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("arch", "name", "share"), [(80, "A100 80 GB", 13.4), (90, "H100", 13.9), (120, "RTX 5090", 4.4)]
)
def test_bytes_a_cycle_by_hand(arch: int, name: str, share: float) -> None:
    [card] = [card for card in CARDS[arch] if card.name == name]
    assert card.bytes_per_cycle == pytest.approx(share, abs=0.05)
