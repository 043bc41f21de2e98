"""What attention layers have in common: projections, their names, and caches that later calls go on from."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.model.layers.attention import projection_names, rows_layout
from lucid_deploy.model.mixer import Step
from lucid_deploy.model.rope import rope_tables
from tests.model.attention.dense import make, tokens
from tests.model.config_samples import LLAMA, parse


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": True},
        {"attention_bias": True, "attention_output_bias": False},
        {"attention_output_bias": True},
        {"qk_norm": "after_rope", "attention_bias": True},
    ],
    ids=str,
)
def test_names_of_weights_are_the_modules(changes: dict[str, object]) -> None:
    mixer = make("standard", **changes)
    wanted = {f"mixer.{name}" for name in mixer.state_dict()}
    assert set(projection_names(mixer.config, 0, "mixer")) == wanted


@pytest.mark.parametrize("cache_dtype", ["float64", "float16", "int8"])
def test_later_calls_leave_cached_rows_bit_for_bit(cache_dtype: str) -> None:
    mixer, x = make("standard"), tokens()
    mixer.store_cache_as(cache_dtype, torch.float64)
    past = mixer.empty_cache(1, x)
    for start, end in ((0, 4), (4, 5), (5, 23)):
        _, present = mixer(x[:, start:end], Step(), past)
        for before, after, tensor in zip(past, present, rows_layout(mixer.config, 0, cache_dtype), strict=True):
            assert torch.equal(after[:, :, :start], before)
            assert tuple(after.shape) == tensor.batch_shape(1, end) and str(after.dtype) == f"torch.{tensor.dtype}"
        past = present


def test_new_rows_see_each_other_as_they_were_computed() -> None:
    """A prompt in one call gives the same whatever its cache is stored in."""
    x, found = tokens(), []
    for cache_dtype in ("float64", "int8"):
        mixer = make("lucid")
        mixer.store_cache_as(cache_dtype, torch.float64)
        found.append(mixer(x, Step(), mixer.empty_cache(1, x))[0])
    assert torch.equal(*found)


def test_norms_stand_behind_the_rotation() -> None:
    """Weights of norms that differ within a pair of rotated numbers tell the two apart."""
    mixer, x = make("standard", qk_norm="after_rope"), tokens()
    for norm in (mixer.q_norm, mixer.k_norm):
        norm.weight.uniform_(0.5, 2)
    rope = parse(LLAMA, head_dim=12).rope(0)
    assert rope is not None
    cos, sin = rope_tables(rope, 12, torch.arange(23)[None], torch.float64)
    turn = torch.complex(cos, sin)  # (1, 1, N, 6)

    def rotated(rows: torch.Tensor) -> torch.Tensor:
        a, b = rows.chunk(2, -1)
        turned = torch.complex(a, b) * turn
        return torch.cat([turned.real, turned.imag], -1)

    def normed(rows: torch.Tensor) -> torch.Tensor:
        return rows / (rows.square().mean(-1, keepdim=True) + mixer.config.rms_norm_eps).sqrt() * mixer.k_norm.weight

    rows = (x @ mixer.k_proj.weight.T).view(1, 23, 2, 12).transpose(1, 2)
    wanted = normed(rotated(rows))
    _, k, _ = mixer.project(x, Step(rope=(cos, sin)))
    torch.testing.assert_close(k, wanted, rtol=1e-9, atol=1e-11)
