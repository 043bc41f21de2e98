"""E as a bfloat16 number and an int8 one: the functions in the interpreter, alone."""

from __future__ import annotations

from tests.plugins.precondition.int8_runs import BLOCK, STEPS, run_order, run_parts, run_tile


def test_two_parts_are_e_but_for_half_a_step(interpret):
    found = interpret(run_parts)
    left = (found["high"] + found["low"] - found["e"]).abs()
    assert bool((left <= 0.501 / STEPS).all())
    assert bool((left <= 2.0**-8 * found["e"]).all()), "a weight is never further off than its bfloat16 number"
    assert found["low"].abs().max() > 2.0**-10, "all of a byte is used"


def test_four_tokens_of_a_register_stand_beside_each_other(interpret):
    """Of a product's result a thread has columns 2t and 2t + 1 of each eight; of bytes it takes four in a row."""
    places, moved = interpret(run_order)
    assert sorted(places) == list(range(BLOCK))
    assert [moved[place] for place in places] == list(range(BLOCK))
    for first in range(0, BLOCK, 16):
        for t in range(4):
            held = [first + 2 * t, first + 2 * t + 1, first + 8 + 2 * t, first + 9 + 2 * t]
            assert moved[first + 4 * t : first + 4 * t + 4] == held


def test_bytes_hold_a_tile_to_half_a_step_of_each_column(interpret):
    found = interpret(run_tile)
    step = found["rows"].abs().amax(0) / 127
    places, _ = interpret(run_order)
    assert bool(((found["bytes"][:, places].T - found["rows"]).abs() <= 0.501 * step + 1e-30).all())
    assert found["others"], "another tile's memory was written"


def test_products_lose_eight_bits_less_than_one_part(interpret):
    found = interpret(run_tile)
    assert not found["error"].isnan().any()
    assert found["error"].norm() < found["one part"].norm() / 50
