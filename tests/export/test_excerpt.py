"""Which layers are traced, and which the others are copies of."""

from __future__ import annotations

import pytest

from lucid_deploy.export.excerpt import excerpt
from lucid_deploy.model.description import describe
from tests.parity.small_models import small_config


def planned(kinds: tuple[str, ...], **changes):
    config = small_config(num_hidden_layers=len(kinds), layer_kinds=kinds, sliding_window=4, **changes)
    return excerpt(config, describe(config, "float32"))


L, S, W = "lucid", "standard", "window"


@pytest.mark.parametrize(
    ("kinds", "origins", "sources"),
    [
        ((L,) * 6, (0, 1, 1), (0, 2, 2, 2, 2, 2)),
        ((W, W, L) * 3, (0, 2, 1, 1, 5), (0, 3, 1, 3, 3, 4, 3, 3, 4)),
        ((S, S, L, S, S, S), (0, 2, 1, 1), (0, 3, 1, 3, 3, 3)),  # what comes once is no pattern
    ],
)
def test_layers_of_each_sort(kinds: tuple[str, ...], origins: tuple[int, ...], sources: tuple[int, ...]) -> None:
    found = planned(kinds)
    assert (found.origins, found.sources) == (origins, sources)
    assert found.config.kinds == tuple(kinds[index] for index in origins)
    assert all(kinds[index] == found.config.kinds[source] for index, source in enumerate(sources))


@pytest.mark.parametrize("kinds", [(L,), (L, L, L), (L, S, W), (L, S, L, S, L)])
def test_a_model_that_is_no_longer_is_traced_whole(kinds: tuple[str, ...]) -> None:
    assert planned(kinds) is None


def test_layers_that_rotate_otherwise_are_of_another_sort() -> None:
    found = planned((L,) * 8, rope_layers=(True, True, True, False) * 2)
    assert (found.origins, found.config.rope_layers) == ((0, 3, 1, 1, 7), (True, False, True, True, False))
    assert found.sources == (0, 3, 3, 1, 3, 3, 3, 4)
