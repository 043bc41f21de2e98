"""What a mixer is given and gives back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lucid_deploy.model.layers import layer_kind
from lucid_deploy.model.mixer import LayerCache, Mixer, Step
from tests.model.config_samples import GEMMA, LUCID, parse


class Sum(Mixer):
    """The sum of all tokens so far: a state."""

    def forward(self, x: Tensor, step: Step, past: LayerCache) -> tuple[Tensor, LayerCache]:
        sums = past[0][:, None] + x.cumsum(1)
        return sums, (sums[:, -1],)

    def empty_cache(self, batch: int, like: Tensor) -> LayerCache:
        return (like.new_zeros(batch, like.shape[1]),)


def test_two_methods_make_a_mixer() -> None:
    """What it leaves out: its cache is stored as it is, and nothing is solved."""
    mixer, x = Sum(), torch.randn(2, 5, 3)
    mixer.store_cache_as("int8", torch.float32)
    whole, _ = mixer(x, Step(), mixer.empty_cache(2, x[0]))
    _, past = mixer(x[:, :3], Step(), mixer.empty_cache(2, x[0]))
    rest, _ = mixer(x[:, 3:], Step(), mixer.encode_cache(mixer.decode_cache(past, torch.float32)))
    torch.testing.assert_close(rest, whole[:, 3:])
    assert mixer.decode_cache(past, torch.float64) is past and mixer.value_projection is None
    assert Step() == Step(mask=None, decode=False, rope=None, cache_length=None)


@pytest.mark.parametrize("kind", ["lucid", "standard", "window"])
@pytest.mark.parametrize("cache_dtype", ["auto", "float16", "int8"])
def test_what_a_stored_cache_means_is_stored_as_it_was(kind: str, cache_dtype: str) -> None:
    config = parse(GEMMA, sliding_window=4) if kind == "window" else parse(LUCID)
    mixer = layer_kind(kind).mixer(config, 0, "blocked")
    mixer.store_cache_as(cache_dtype, torch.float32)
    x = torch.randn(2, 5, 48)
    with torch.no_grad():
        _, stored = mixer(x, Step(), mixer.empty_cache(2, x))
    meant = mixer.decode_cache(stored, torch.float32)
    assert len(meant) == 2 and all(tensor.dtype == torch.float32 for tensor in meant)
    for again, before in zip(mixer.encode_cache(meant), stored, strict=True):
        torch.testing.assert_close(again, before, rtol=1e-6, atol=0)
    assert mixer.value_projection is mixer.get_submodule("v_proj")


def test_what_layers_share_is_made_once_for_a_call() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(1)
        return len(made)

    step = Step()
    assert [step.once("a", make), step.once("a", make), step.once(("a", 1), make)] == [1, 1, 2]
    assert Step().once("a", make) == 3, "another call makes its own"
