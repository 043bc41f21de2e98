"""Models of unusual shapes, by transformers' classes with a dense solve put in, in the runtimes that run artifacts.

Nine heads on three key/value heads of width 20, and windows shorter than a chunk, with LUCID in the full layers. And a
hybrid of the gated delta rule whose full layer gates its attention and rotates a quarter of each head, with LUCID.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from transformers import Gemma3TextConfig, Qwen3NextConfig

from lucid_deploy.artifact import Artifact
from lucid_deploy.export import ExportOptions, export
from tests.compat.environments import node_with, python_with
from tests.compat.run_graphs import feed
from tests.compat.test_onnxruntime_versions import ERROR
from tests.compat.test_other_runtimes import error_of, write_json_case
from tests.compat.tried import JAVASCRIPT, NEWEST, OLDEST, OPENVINO
from tests.model.family_shapes import HYBRID, MIXED, THREE, random_model
from tests.model.test_families import logits_of

pytestmark = pytest.mark.compat
HERE = Path(__file__).parent
LENGTH, PADDING, CHUNKS = 34, 5, (7, 1, 18)
ODD = {**THREE, "vocab_size": 173, "hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}
# By name: configuration, layers with LUCID, and a factor on the weights: with large weights the hybrid is so sensitive
# that transformers' own float32 is 4e-5 off; with these it is 1e-5.
MODELS: dict[str, tuple[Any, tuple[int, ...], float]] = {
    "windows": (
        lambda: Gemma3TextConfig(
            **ODD, head_dim=20, sliding_window=5, layer_types=MIXED, query_pre_attn_scalar=17, attention_type="lucid"
        ),
        (0, 2),
        1.0,
    ),
    "hybrid": (
        lambda: Qwen3NextConfig(
            **{**HYBRID, "num_attention_heads": 6, "head_dim": 24},
            num_experts=0,
            attention_type="lucid",
            lucid_layers=[2],
        ),
        (2,),
        0.4,
    ),
}


@dataclass(frozen=True)
class Made:
    """A model's two artifacts, and a case whose logits are transformers' in float64.

    Attributes:
        functions: The artifact.
        inline: The same without functions.
        case: For ``run_graphs.py``; ``case.json`` lies beside it.
    """

    functions: Artifact
    inline: Artifact
    case: Path


@pytest.fixture(scope="module", params=list(MODELS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("unusual")
    config, solved, scale = MODELS[request.param]
    model = random_model(config())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(scale)
        for index in solved:
            model.model.layers[index].self_attn.k_proj.weight.add_(0.4)  # keys point one way
    model.save_pretrained(folder / "checkpoint")
    model.config.solved = solved
    model.set_attn_implementation("lucid_dense")
    rng = np.random.default_rng(99)
    ids = rng.choice(rng.integers(0, model.config.vocab_size, 9), (2, LENGTH))
    mask = np.ones(ids.shape, bool)
    mask[1, :PADDING] = False
    ends = [*np.cumsum(CHUNKS), *range(sum(CHUNKS) + 1, LENGTH + 1)]
    whole, behind = logits_of(model, ids[:1])[0], logits_of(model, ids[1:, PADDING:])[0]
    logits = np.stack([[whole[end - 1] for end in ends], [behind[end - 1 - PADDING] for end in ends]])
    np.savez(folder / "case.npz", ids=ids, mask=mask, chunks=CHUNKS, logits=logits)
    options = {"functions": ExportOptions(), "inline": ExportOptions(inline=True)}
    forms = [export(folder / "checkpoint", folder / name, chosen) for name, chosen in options.items()]
    write_json_case(folder / "case.npz", forms[0], folder / "case.json")
    return Made(*forms, folder / "case.npz")


@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inline"])
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_onnxruntime_gives_transformers_logits(made: Made, version: str, inline: bool) -> None:
    artifact = made.inline if inline else made.functions
    python = python_with(f"onnxruntime=={version}")
    assert error_of(python, HERE / "run_graphs.py", artifact.directory, made.case) == (
        version,
        pytest.approx(0, abs=ERROR),
    )


@pytest.mark.parametrize("package", JAVASCRIPT)
def test_javascript_gives_transformers_logits(made: Made, package: str) -> None:
    name, version = package.split("@")
    command = ["node", HERE / "run_graphs.cjs", name, made.functions.directory, made.case.with_suffix(".json")]
    assert error_of(*command, cwd=node_with(package)) == (version, pytest.approx(0, abs=ERROR))


@pytest.mark.parametrize("version", OPENVINO)
def test_openvino_gives_transformers_logits(made: Made, version: str) -> None:
    python = python_with(f"openvino=={version}")
    found, error = error_of(python, HERE / "run_openvino.py", made.inline.directory, made.case)
    assert found.startswith(version) and error <= ERROR


class Evaluated:
    """ONNX's ReferenceEvaluator with the methods of a session that ``run_graphs.py`` calls."""

    def __init__(self, path: Path) -> None:
        self._model = onnx.load(str(path))
        self._evaluator = ReferenceEvaluator(self._model)
        self.run = self._evaluator.run

    def get_outputs(self) -> list[onnx.ValueInfoProto]:
        return list(self._model.graph.output)

    def get_inputs(self) -> list[Any]:
        return [
            type("Input", (), {"name": each.name, "shape": [axis.dim_param or axis.dim_value for axis in axes(each)]})
            for each in self._model.graph.input
        ]


def axes(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim


def test_the_reference_evaluator_gives_transformers_logits(made: Made) -> None:
    stages = {stage: Evaluated(made.functions.graph_path(stage)) for stage in ("prefill", "decode")}
    with np.load(made.case) as given:
        error = feed(stages, given["ids"], given["mask"], given["chunks"].tolist(), given["logits"])
    assert error <= ERROR
