"""What holds for every kind of layer that comes with the toolkit."""

from __future__ import annotations

import subprocess
import sys

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import layer_kind


def assert_imports_no_torch(kind: str) -> None:
    code = f"import sys, lucid_deploy.model.layers.{kind}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def assert_module_has_the_described_weights(kind: str, config: LucidConfig) -> LayerDescription:
    """Return the description of the first layer of a kind, which is compared with the kind's PyTorch module."""
    index, made = config.kinds.index(kind), layer_kind(kind)
    found = made.describe(config, index, "float32")
    assert found.kind == kind and "{}" in made.words(config)
    module = made.mixer(config, index, "blocked")
    assert {f"{made.attribute}.{name}" for name, _ in module.named_parameters()} == set(found.weights)
    return found
