"""Classes of transformers as artifacts: graphs equal PyTorch, and are run without torch and transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lucid_deploy as ld
from lucid_deploy.artifact import open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions
from lucid_deploy.export.calibration import CalibrationRows
from lucid_deploy.export.passes.repeat_layers import excerpt
from lucid_deploy.export.quantize import plan as planning
from lucid_deploy.export.quantize.distill import METHOD
from lucid_deploy.export.quantize.equalize import equalizing_scales, first_stream, load_layer, run_layer
from lucid_deploy.export.quantize.folds import with_scales
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.description import describe
from lucid_deploy.plugins.table import EXPERT_MATMUL, QUANTIZED_EXPERT_MATMUL, QUANTIZED_EXPERT_MATMUL_OFFSETS
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.inspection import parameters, summary
from lucid_deploy.runtimes.passes.library_kernels import use_expert_offsets
from lucid_deploy.runtimes.tensorrt.prepare import check_artifact
from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model
from tests.families.small import saved, small_config
from tests.number_words import write_number_words, write_numbers

RUN = """
import sys, lucid_deploy as ld
model = ld.open(sys.argv[1])
print(model.generate([5, 6, 7], max_new_tokens=3).ids)
assert not {"torch", "transformers"} & {*sys.modules}
"""


def export(path: Path, output: Path, **options: Any) -> None:
    """Export one form of the graphs: the others are derived from it."""
    ld.export(path, output, **{"cache": "growing", **options})


def checkpoint(path: Path, kind: str, keys: dict[str, Any], **config: Any) -> Path:
    saved(small_config(kind, **config), path).float().save_pretrained(path)  # as most checkpoints are
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, **keys}))
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cohere 2 with LUCID in every other of six layers; the others attend over a window."""
    types = ["sliding_attention", "full_attention"] * 3
    keys = {"attention_type": "lucid"}
    path = tmp_path_factory.mktemp("mixed")
    return checkpoint(path, "cohere2", keys, num_hidden_layers=6, layer_types=types)


def test_lucid_and_windows_in_a_class_are_exported(tmp_path: Path) -> None:
    types = ["sliding_attention", "full_attention"]
    path = checkpoint(tmp_path / "two", "cohere2", {"attention_type": "lucid"}, num_hidden_layers=2, layer_types=types)
    export(path, tmp_path / "artifact", cache="static")
    artifact = open_artifact(tmp_path / "artifact")
    assert artifact.config.kinds == ("window", "lucid")
    assert any("Cohere2ForCausalLM computes the layers" in note for note in artifact.manifest.notes)
    ld.verify(artifact, quick=True).raise_if_failed()
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path / "artifact")], check=True, capture_output=True)


def test_equal_layers_of_a_class_are_traced_once(mixed: Path) -> None:
    source = Checkpoint(mixed)
    shorter = excerpt(source.config, describe(source.config, "float32"))
    assert shorter is not None and shorter.config.class_layers == shorter.origins and len(shorter.origins) < 6


LUCID = {"attention_type": "lucid"}
MIXTURE: dict[str, Any] = {"num_hidden_layers": 1, "num_local_experts": 16}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Qwen3-MoE with LUCID."""
    return checkpoint(tmp_path_factory.mktemp("mixture") / "checkpoint", "qwen3_moe", LUCID, **MIXTURE)


def test_a_mixture_of_experts_is_exported_with_lucid(mixture: Path) -> None:
    export(mixture, mixture.parent / "artifact")
    artifact = open_artifact(mixture.parent / "artifact")
    assert artifact.config.kinds == ("lucid",) and artifact.config.attention[0].experts == (16, 2)
    assert "2 of 16 experts for each token" in summary(artifact)
    count = parameters(artifact)
    assert count["total"] - count["active"] == 14 * 3 * 32 * 64  # idle experts, matrices
    with pytest.raises(LucidError, match="is a mixture of experts, which the TensorRT plugin does not compute"):
        check_artifact(artifact)


def test_of_equal_scores_the_router_chooses_the_first(mixture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's topk takes any of them; ONNX's the one with the lower number."""

    def first(x: torch.Tensor, k: int, dim: int = -1, **_: Any) -> Any:
        return tuple(each[..., :k] for each in x.sort(dim=dim, descending=True, stable=True))

    tied = mixture.parent / "tied"
    shutil.copytree(mixture, tied)
    tensors = load_file(tied / "model.safetensors")
    tensors["model.layers.0.mlp.gate.weight"][1:] = 0
    save_file(tensors, tied / "model.safetensors")
    ids = np.arange(40)[None] % 13
    for quantize in (None, QuantizeOptions("int4")):
        export(tied, mixture.parent / "tied_artifact", quantize=quantize, overwrite=True)
        artifact = open_artifact(mixture.parent / "tied_artifact")
        session = open_session(artifact)
        found = session.prefill(ids, session.empty_cache(1))
        model = load_artifact_model(artifact, dtype="float64")
        with monkeypatch.context() as patched:
            patched.setattr(torch, "topk", first)
            wanted = model(torch.from_numpy(ids), last_only=True)[0]
        np.testing.assert_allclose(found, wanted.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("qwen3_moe", QuantizeOptions("int4", method="distill")), ("gpt_oss", QuantizeOptions("int8"))],
)
def test_experts_are_rounded(kind: str, options: QuantizeOptions, tmp_path: Path) -> None:
    """gpt-oss stores experts as (experts, in, out) and has sinks; calibration rows reach only some of the experts."""
    types: dict[str, Any] = (
        {"num_hidden_layers": 1, "layer_types": ["full_attention"]} if kind == "gpt_oss" else MIXTURE
    )
    path = checkpoint(tmp_path / "checkpoint", kind, {} if kind == "gpt_oss" else LUCID, **types)
    write_number_words(path, 64)
    rows = np.random.default_rng(0).integers(64, size=(24, 100))
    text = write_numbers(tmp_path / "text", rows) if options.chosen_method.learns else None
    export(path, tmp_path / "artifact", quantize=options, calibration=text)
    artifact = open_artifact(tmp_path / "artifact")
    record = artifact.manifest.quantization
    assert record is not None and record.activations == "float"
    experts = {name for name, tensor in record.tensors.items() if tensor.experts}
    assert {name.rpartition(".")[2] for name in experts} == {"gate_up_proj", "down_proj"}
    assert record.method.tensors.keys() >= experts if options.chosen_method.learns else not record.method.tensors
    if options.chosen_method.learns:
        assert 0 < 2 * record.method.settings["experts_without_text"] < record.method.settings["experts"]
    assert any("Routers stay in float32" in note for note in artifact.manifest.notes)
    assert parameters(artifact)["active"] < parameters(artifact)["total"]
    ids = torch.arange(20)[None] % 13
    with torch.inference_mode():
        rounded, exact = (model(ids)[0] for model in (load_artifact_model(artifact), load_model(Checkpoint(path))))
    assert torch.dist(rounded, exact) < (0.5 if options.scheme == "int4" else 0.05) * exact.norm()
    ld.verify(artifact, quick=True).raise_if_failed()


def test_columns_of_experts_are_made_alike(tmp_path: Path) -> None:
    """Qwen2-MoE: the router and an expert that all tokens share read the same norm."""
    path = checkpoint(tmp_path / "checkpoint", "qwen2_moe", {}, num_hidden_layers=1, layer_types=["full_attention"])
    source = Checkpoint(path)
    plan = planning.plan(source, ExportOptions(quantize=QuantizeOptions("int4"))).quantization
    assert not any(name.endswith("gate.weight") for name in plan.tensors)  # neither the router nor the shared one's
    scales = equalizing_scales(source, plan, "float32")
    mlp = "model.layers.0.mlp."
    assert {f"{mlp}{name}.inputs" for name in ("experts.gate_up_proj", "experts.down_proj", "gate.weight")} <= {*scales}
    assert {f"{mlp}shared_expert{name}.weight.inputs" for name in ("_gate", ".up_proj", ".down_proj")} <= {*scales}
    up = scales[f"{mlp}experts.gate_up_proj.outputs"]
    assert (up[:, : up.shape[1] // 2] == 1).all() and up[:, up.shape[1] // 2 :].std() > 0.01
    ids, changed, model = torch.arange(20)[None] % 13, with_scales(source, scales), load_model(source)
    with torch.inference_mode():
        exact = model(ids)[0]
        for name, value in model.named_parameters():
            value.data = changed.tensor(source.stored_name(name)).float()
        torch.testing.assert_close(model(ids)[0], exact, rtol=1e-4, atol=1e-5)
    export(path, tmp_path / "artifact", quantize=QuantizeOptions("int4"))
    ld.verify(tmp_path / "artifact", quick=True).raise_if_failed()
    graph = open_artifact(tmp_path / "artifact").graph("decode")
    products = [node.op_type for node in graph.graph.node if "ExpertMatMul" in node.op_type]
    assert products == [QUANTIZED_EXPERT_MATMUL.name, EXPERT_MATMUL.name] * 2 and use_expert_offsets(graph)
    products = [node.op_type for node in graph.graph.node if "ExpertMatMul" in node.op_type]
    assert products == [QUANTIZED_EXPERT_MATMUL_OFFSETS.name] * 2


def test_a_class_is_quantized(tmp_path: Path) -> None:
    """It has LayerNorm and biases, and its checkpoint calls the head by another name than its class."""
    path = checkpoint(tmp_path / "checkpoint", "gpt_neox", {}, num_hidden_layers=1)
    export(path, tmp_path / "artifact", quantize=QuantizeOptions("int8"))
    ld.verify(tmp_path / "artifact", quick=True).raise_if_failed()


def test_matrices_that_are_no_linear_layers_are_not_quantized(tmp_path: Path) -> None:
    """GPT-2 multiplies by matrices that are stored as [in, out], and has a table of positions."""
    source = Checkpoint(checkpoint(tmp_path, "gpt2", {}))
    assert {*planning._quantizable(source)[0]} == {"model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"diagonal": "training"}, "no LUCID layers"),
    ],
)
def test_what_is_not_computed_for_classes_is_refused(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "checkpoint", "olmo2", {}, num_hidden_layers=1)
    with pytest.raises(LucidError, match=reason):
        export(path, tmp_path / "artifact", **options)
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize(("kind", "keys"), [("cohere2", {"attention_type": "lucid"}), ("gpt2", {})])
def test_layers_run_one_by_one_as_in_the_model(kind: str, keys: dict[str, Any], tmp_path: Path) -> None:
    source = Checkpoint(checkpoint(tmp_path, kind, keys))
    model, ids = load_model(source), torch.arange(40).reshape(2, 20) % 13
    last: list[torch.Tensor] = []
    model.layers()[-1].register_forward_hook(lambda _, __, output: last.append(output))
    with torch.inference_mode():
        model(ids)
        x = first_stream(source, ids)
        for index in range(source.config.num_hidden_layers):
            x = run_layer(load_layer(source, index), source.config, index, x)
    assert torch.allclose(x, last[0][0] if isinstance(last[0], tuple) else last[0], rtol=1e-5, atol=1e-5)


def test_scales_of_a_class_are_learned(mixed: Path) -> None:
    source = Checkpoint(mixed)
    plan = planning.plan(source, ExportOptions(quantize=QuantizeOptions("int8", method="rtn"))).quantization
    ids = np.random.default_rng(0).integers(64, size=(8, 100))
    learned, _ = METHOD.learn(source, plan, CalibrationRows([ids], {}), "float32", None)
    assert {*learned.parts} == {name for name in plan.tensors if name != "model.embed_tokens.weight"}
