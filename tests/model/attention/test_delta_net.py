"""Layers of the delta rule by themselves: caches, padding in a decode step, types, implementations, repeated tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lucid_deploy.model.attention.delta_net import DeltaNet, GatedDeltaNet
from lucid_deploy.model.layers.delta_settings import DeltaSettings
from lucid_deploy.model.mixer import Step
from tests.model.config_samples import LLAMA, parse

SETTINGS = DeltaSettings(key_heads=2, value_heads=4, key_width=8, value_width=6, kernel=4, gate="silu")
CONFIG = parse(LLAMA)


def layer(kind: Any = GatedDeltaNet, implementation: str = "blocked", dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(5)
    made = kind(CONFIG, SETTINGS, implementation).requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.dim() == 2 else 0.7))
    return made.to(dtype)


def tokens(n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Two rows, which share a direction, and whose middle is one token repeated."""
    x = torch.randn(2, n, CONFIG.hidden_size, generator=torch.Generator().manual_seed(1)) + 1
    x[:, n // 3 : 2 * n // 3] = x[:, :1]
    return x.to(dtype)


@pytest.mark.parametrize("kind", [DeltaNet, GatedDeltaNet])
def test_the_implementations_agree(kind: Any) -> None:
    x = tokens(150)
    found = [layer(kind, each)(x, Step(), layer(kind).empty_cache(2, x)) for each in ("blocked", "reference")]
    (o, cache), (wanted, wanted_cache) = found
    for mine, other in zip((o, *cache), (wanted, *wanted_cache), strict=True):
        assert (mine - other).norm() <= 1e-11 * other.norm()


@pytest.mark.parametrize("decode", [True, False])
def test_a_column_of_padding_leaves_the_cache_as_it_is(decode: bool) -> None:
    made, x = layer(), tokens(9)
    _, cache = made(x[:, :8], Step(), made.empty_cache(2, x))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 8] = False
    _, after = made(x[:, 8:], Step(mask, decode), cache)
    _, wanted = made(x[:, 8:], Step(None, decode), cache)
    for old, new, moved in zip(cache, after, wanted, strict=True):
        assert torch.equal(new[0], old[0])
        torch.testing.assert_close(new[1], moved[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_keep_a_wide_state_and_err_by_their_rounding(dtype: torch.dtype) -> None:
    made, x = layer(dtype=dtype), tokens(40, dtype)
    o, (inputs, state) = made(x, Step(), made.empty_cache(2, x))
    assert (o.dtype, inputs.dtype, state.dtype) == (dtype, dtype, torch.float32)
    exact = layer(dtype=dtype).double()
    wanted, (_, wanted_state) = exact(x.double(), Step(), exact.empty_cache(2, x.double()))
    rounding = torch.finfo(dtype).eps
    assert (o.double() - wanted).norm() <= 8 * rounding * wanted.norm()
    assert (state.double() - wanted_state).norm() <= 8 * rounding * wanted_state.norm()


def test_beta_may_be_one_or_doubled() -> None:
    x = tokens(3)
    for changes, bounds in (({"has_beta": False}, (1, 1)), ({"negative_eigenvalues": True}, (0, 2))):
        settings = DeltaSettings(key_heads=2, value_heads=4, key_width=8, value_width=6, **changes)
        beta = DeltaNet(CONFIG, settings, "blocked").double().beta(x, torch.float64)
        assert beta.shape == (2, 3, 4) and bounds[0] <= beta.min() and beta.max() <= bounds[1]
    assert torch.equal(layer(DeltaNet).log_decay(x, torch.float64), torch.zeros(2, 3, 4, dtype=torch.float64))
    assert layer().log_decay(x, torch.float64).max() < 0


def test_the_cache_is_stored_as_the_description_says() -> None:
    made = layer(dtype=torch.float32)
    made.store_cache_as("float16", torch.float32)
    assert [each.dtype for each in made.empty_cache(1, torch.zeros(1))] == [torch.float16, torch.float32]
    made.store_cache_as("int8", torch.float32)
    assert [each.dtype for each in made.empty_cache(1, torch.zeros(1))] == [torch.float32] * 2


@pytest.mark.parametrize("kind", [DeltaNet, GatedDeltaNet])
def test_errors_do_not_grow_over_4096_tokens(kind: Any) -> None:
    """The state is corrected by every token, so what rounding did to it is corrected too."""
    made, exact, x = layer(kind, dtype=torch.float32), layer(kind, dtype=torch.float32).double(), tokens(4096)
    x = x.float()
    cache, wanted, errors = made.empty_cache(2, x), exact.empty_cache(2, x.double()), []
    for part in x.split(512, 1):
        _, cache = made(part, Step(), cache)
        _, wanted = exact(part.double(), Step(), wanted)
        errors.append(float((cache[1].double() - wanted[1]).norm() / wanted[1].norm()))
    assert max(errors[4:]) <= 4 * max(errors[:4]) <= 1e-4, errors
