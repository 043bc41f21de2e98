"""TensorRT builds engines with a cache in FP8, without a GPU, and says which GPUs and libraries lack it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.plugins.hosts.tensorrt.build import build_plugin
from lucid_deploy.plugins.table import DECODE_ATTENTION_FLOAT8, PRECONDITION
from lucid_deploy.runtimes.tensorrt.build import BuildOptions, build_engines
from tests.plugins.hosts.tensorrt.plugin_tools import stand_ins

pytest.importorskip("tensorrt_rtx", reason='building engines needs TensorRT-RTX: pip install -e ".[rtx]"')
SMALL: dict[str, Any] = {"max_batch": 2, "max_context": 64, "prefill_chunk": 16, "speculate": True}


def test_engines_keep_the_cache_in_fp8(plugin: Path, make_checkpoint: Any, tmp_path: Path) -> None:
    """Read by the plugin in decoding and verifying."""
    options = ExportOptions("bfloat16", cache_dtype="fp8", range_scan=False)
    artifact = export(make_checkpoint(num_hidden_layers=1, head_dim=64), tmp_path / "a", options)
    with pytest.raises(LucidError, match=r"compute capability 8\.6 have no fp8, in which the cache of .* is; 8\.9 and"):
        build_engines(artifact, BuildOptions(plugin=plugin, capabilities=("8.6", "8.9"), **SMALL))
    old = build_plugin(tmp_path / "old.so", stand_ins((80,), ptx=False))
    with pytest.raises(LucidError, match="has no kernels that read a cache in fp8"):
        build_engines(artifact, BuildOptions(plugin=old, capabilities=("8.9",), **SMALL))
    report = build_engines(artifact, BuildOptions(plugin=plugin, capabilities=("8.9",), **SMALL))
    taken = {stage: set(engine.plugin_layers) for stage, engine in report.manifest.engines.items()}
    reads = {DECODE_ATTENTION_FLOAT8.name}
    assert taken == {"prefill": {PRECONDITION.name}, "decode": reads, "verify": reads}
