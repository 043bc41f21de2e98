from __future__ import annotations

from pathlib import Path

import pytest

from lucid_deploy.plugins.hosts.tensorrt.build import build_plugin
from lucid_deploy.plugins.hosts.triton.aot import variants
from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the plugin library with stand-ins for kernels: building an engine runs none of them."""
    kernels = [
        CompiledKernel(each.name, 80, False, each.kernel, 1000, each.num_warps, dict(each.constants), [], b"stand-in")
        for each in variants(80)
    ]
    return build_plugin(tmp_path_factory.mktemp("plugin") / "plugin.so", kernels)
