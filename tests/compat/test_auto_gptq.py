"""GPTQ against the package that made it common, whose two files of the algorithm need no GPU."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers.pytorch_utils  # noqa: F401 (the package reads it without importing it)

from lucid_deploy.export.quantize.gptq import column_order, round_columns
from tests.compat.environments import packages_beside

pytestmark = pytest.mark.compat

PACKAGE = "auto-gptq==0.7.1"
GROUP = 32


@pytest.fixture(scope="module")
def published() -> Iterator[Any]:
    """Return the class, without the package's own ``__init__``, which imports all of it."""
    names = ("auto_gptq", "auto_gptq.quantization")
    for name in names:
        parent = ModuleType(name)
        parent.__path__ = [str(Path(packages_beside(PACKAGE), *name.split(".")))]
        sys.modules[name] = parent
    yield importlib.import_module("auto_gptq.quantization.gptq").GPTQ
    for name in [name for name in sys.modules if name.startswith("auto_gptq")]:
        del sys.modules[name]


@pytest.mark.parametrize("bits", [4, 8])
def test_the_same_numbers(bits: int, published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their scales; both in float32, and in another order of sums, so that a number half way may differ."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    generator = torch.Generator().manual_seed(bits)
    inputs = torch.randn(800, 192, generator=generator) + 2 * torch.randn(192, generator=generator)
    weight = torch.randn(16, 192, generator=generator)
    layer = torch.nn.Linear(192, 16, bias=False)
    layer.weight.data = weight.clone()
    theirs = published(layer)
    theirs.add_batch(inputs[None], None)
    theirs.quantizer.configure(bits, perchannel=True, sym=True, mse=False)
    hessian = theirs.H.double()
    scale, zero, groups = theirs.fasterquant(group_size=GROUP, actorder=True, static_groups=True)
    assert zero.eq(1 << (bits - 1)).all() and groups.equal(torch.arange(192, dtype=torch.int32) // GROUP)
    spread = scale.repeat_interleave(GROUP, dim=1)
    limits = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    numbers = round_columns(weight, spread, column_order(hessian), limits)
    wanted = (layer.weight.data / spread).round()
    assert wanted.ne(numbers).float().mean() < 0.005
    nearest = (weight / spread).round().clamp(*limits)
    assert wanted.ne(nearest).float().mean() > 0.05, "they are not the nearest numbers"
