"""Invariants of a prefix store between two calls."""

from __future__ import annotations

from lucid_deploy.generation.prefix_store import PrefixStore


def check_integrity(store: PrefixStore) -> None:
    """Check the counts of readers, the order of blocks, and the memory that the store has counted."""
    places = {digest: place for place, digest in enumerate(store._blocks)}
    for digest, block in store._blocks.items():
        assert 0 <= block.readers <= (store._blocks[block.parent].readers if block.parent else block.readers)
        assert not block.parent or places[block.parent] > places[digest], "a block would outlive its parent"
    states = sum(block.state is not None for block in store._blocks.values())
    assert store._used == len(store._blocks) + states * store._state_cost <= store.capacity
