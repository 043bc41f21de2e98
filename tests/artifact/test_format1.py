"""Artifacts of manifest format 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import open_artifact
from lucid_deploy.artifact.format1 import recorded
from lucid_deploy.artifact.quantization import Quantization, QuantizedTensor
from lucid_deploy.model.config import parse_config
from lucid_deploy.model.description import describe
from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.runtimes import open_session
from tests.conftest import TINY


def test_an_artifact_of_format_1_opens_and_runs_as_before(exported, tmp_path) -> None:
    """The manifest is one that was written before layers were described; the graphs have not changed since."""
    _, new = exported()
    directory = Path(shutil.copytree(new.directory, tmp_path / "old"))
    manifest = json.loads((Path(__file__).parent / "format1.json").read_text())
    manifest["files"] = json.loads((directory / "lucid.json").read_text())["files"]
    (directory / "lucid.json").write_text(json.dumps(manifest))
    old = open_artifact(directory)
    described = [
        [(layer.kind, layer.cache, layer.operators, layer.solves) for layer in a.manifest.layers] for a in (old, new)
    ]
    assert described[0] == described[1]
    assert (old.manifest.transposed, old.manifest.float32_head) == (new.manifest.transposed, new.manifest.float32_head)
    ids = np.array([[5, 9, 5, 2]])
    for runtime in ("torch", "onnxruntime"):
        sessions = [open_session(artifact, runtime) for artifact in (old, new)]
        logits = [session.prefill(ids, session.empty_cache()) for session in sessions]
        np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize(
    ("changes", "cache_dtype"),
    [({}, "float32"), ({"tie_word_embeddings": True}, "float16"), ({"attention_type": "llama"}, "int8")],
)
def test_what_format_1_leaves_out_is_what_the_model_has(changes: dict[str, Any], cache_dtype: str) -> None:
    """Transposed are the weights of PyTorch's linear layers, but not an embedding that is the head too."""
    config = parse_config({**TINY, **changes}, "config.json")
    with torch.device("meta"):
        model = LucidForCausalLM(config)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    if config.tie_word_embeddings:
        linear.remove("lm_head.weight")
    found = recorded(config, cache_dtype, None)
    assert found["transposed"] == tuple(sorted(linear))
    assert found["float32_head"] is True
    described = describe(config, cache_dtype)
    assert [(x.kind, x.cache, x.operators, x.solves) for x in found["layers"]] == [
        (x.kind, x.cache, dict(x.operators), x.solves) for x in described
    ]


@pytest.mark.parametrize(("tied", "head"), [(False, "lm_head.weight"), (True, "model.embed_tokens.weight")])
def test_quantized_weights_are_not_transposed_and_the_heads_product_is_theirs(tied: bool, head: str) -> None:
    config = parse_config({**TINY, "tie_word_embeddings": tied}, "config.json")
    names = ["model.layers.0.mlp.up_proj.weight", head]
    for tensors in (names, names[:1]):
        parts = {name: QuantizedTensor((97, 64), 32) for name in tensors}
        found = recorded(config, "float32", Quantization("int8", 8, "matmulnbits", "int8", parts, (), "a tool"))
        assert found["float32_head"] is (head not in tensors)
        assert not set(tensors) & set(found["transposed"])
        assert "model.layers.1.mlp.up_proj.weight" in found["transposed"]
