"""Classes of transformers as artifacts: graphs equal PyTorch, and are run without torch and transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lucid_deploy as ld
from lucid_deploy.artifact import open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.export.exporter import _quantizable
from lucid_deploy.export.passes.repeat_layers import excerpt
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.description import describe
from tests.families.small import saved, small_config

RUN = """
import sys, lucid_deploy as ld
model = ld.open(sys.argv[1])
print(model.generate([5, 6, 7], max_new_tokens=3).ids)
assert not {"torch", "transformers"} & {*sys.modules}
"""


def checkpoint(path: Path, kind: str, keys: dict[str, Any], **config: Any) -> Path:
    saved(small_config(kind, **config), path)
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, **keys}))
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cohere 2 with LUCID in every fourth of eight layers; the others attend over a window."""
    types = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 2
    keys = {"attention_type": "lucid"}
    path = tmp_path_factory.mktemp("mixed")
    return checkpoint(path, "cohere2", keys, num_hidden_layers=8, layer_types=types)


def test_lucid_and_windows_in_a_class_are_exported(mixed: Path, tmp_path: Path) -> None:
    ld.export(mixed, tmp_path / "artifact", cache="static")
    artifact = open_artifact(tmp_path / "artifact")
    assert artifact.config.kinds == ("window", "window", "window", "lucid") * 2
    assert any("Cohere2ForCausalLM computes the layers" in note for note in artifact.manifest.notes)
    ld.verify(artifact, quick=True).raise_if_failed()
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path / "artifact")], check=True, capture_output=True)


def test_equal_layers_of_a_class_are_traced_once(mixed: Path) -> None:
    source = Checkpoint(mixed)
    shorter = excerpt(source.config, describe(source.config, "float32"))
    assert shorter is not None and shorter.config.class_layers == shorter.origins and len(shorter.origins) < 8


def test_a_class_is_quantized(tmp_path: Path) -> None:
    """It has LayerNorm and biases, and its checkpoint calls the head by another name than its class."""
    path = checkpoint(tmp_path / "checkpoint", "gpt_neox", {}, num_hidden_layers=2)
    ld.export(path, tmp_path / "artifact", quantize=QuantizeOptions("int8"))
    ld.verify(tmp_path / "artifact", quick=True).raise_if_failed()


def test_matrices_that_are_no_linear_layers_are_not_quantized(tmp_path: Path) -> None:
    """GPT-2 multiplies by matrices that are stored as [in, out], and has a table of positions."""
    source = Checkpoint(checkpoint(tmp_path, "gpt2", {}))
    assert {*_quantizable(source)} == {"model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "float16"}, "not scanned for float16"),
        ({"diagonal": "training", "overwrite": True}, "no LUCID layers"),
    ],
)
def test_what_is_not_computed_for_classes_is_refused(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "checkpoint", "olmo2", {}, num_hidden_layers=1)
    with pytest.raises(LucidError, match=reason):
        ld.export(path, tmp_path / "artifact", **options)
    assert not (tmp_path / "artifact").exists()
