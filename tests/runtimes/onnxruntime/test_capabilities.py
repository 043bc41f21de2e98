"""What onnxruntime can do depends on its provider."""

from __future__ import annotations

import pytest

from lucid_deploy.runtimes import RuntimeOptions, find_runtime
from lucid_deploy.runtimes.options import PROVIDERS


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_declares_what_it_can(provider: str) -> None:
    can = find_runtime("onnxruntime").capabilities(RuntimeOptions(provider=provider))
    on_cpu = provider == "cpu"
    assert (can.devices, "static" in can.caches, bool(can.cache_dtypes), can.rounds_activations) == (
        ("cpu",) if on_cpu else ("cuda",),
        *[on_cpu] * 3,
    )
    assert can.reads_layers == (provider in ("cpu", "cuda"))
