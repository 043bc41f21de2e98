"""The kind ``standard``: described without torch, and made into its module when it is asked to."""

from __future__ import annotations

import subprocess
import sys

from lucid_deploy.model.layers import layer_kind
from tests.model.config_samples import GEMMA, LLAMA, LUCID, parse

CONFIG = parse({"lucid": LUCID, "standard": LLAMA, "window": GEMMA}["standard"])


def test_describing_it_imports_no_torch() -> None:
    code = "import sys, lucid_deploy.model.layers.standard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_its_description_and_its_module_agree() -> None:
    index = CONFIG.kinds.index("standard")
    kind = layer_kind("standard")
    found = kind.describe(CONFIG, index, "float32")
    assert found.kind == "standard" and found.solves == ("standard" == "lucid")
    assert {tensor.sort for tensor in found.cache} == {"ring" if "standard" == "window" else "rows"}
    module = kind.mixer(CONFIG, index, "blocked")
    assert {f"self_attn.{name}" for name, _ in module.named_parameters()} == set(found.weights)
    assert "{}" in kind.words(CONFIG)
