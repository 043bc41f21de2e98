"""What TensorRT providers get beside a graph: profiles, a copy they can read, folders for caches."""

from __future__ import annotations

import onnx
import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.onnxruntime.providers import plan_provider
from lucid_deploy.runtimes.tensorrt.limits import choose_limits, profile_shapes
from tests.runtimes.onnxruntime.fake_onnxruntime import FakeOrt

PROFILES = {  # of the test model's 512 tokens: 2 key/value heads of width 36
    "min": "input_ids:1x1,attention_mask:1x1,position_ids:1x1,past_key_values.0.key:1x2x0x36",
    "opt": "input_ids:4x512,attention_mask:4x512,position_ids:4x512,past_key_values.0.key:4x2x0x36",
    "max": "input_ids:4x512,attention_mask:4x1023,position_ids:4x512,past_key_values.0.key:4x2x511x36",
}


@pytest.mark.parametrize(("provider", "prefix"), [("tensorrt", "trt"), ("nv-tensorrt-rtx", "nv")])
def test_tensorrt_gets_the_profiles_of_build(provider: str, prefix: str, fake: FakeOrt, artifact: Artifact) -> None:
    open_session(artifact, device="cuda:1", provider=provider)
    prefill, decode = (asked[0][1] for asked in fake.asked)
    limits = choose_limits(artifact)
    for index, (which, start) in enumerate(PROFILES.items()):
        assert prefill[f"{prefix}_profile_{which}_shapes"].startswith(start)
        for stage, options in (("prefill", prefill), ("decode", decode)):
            shapes = dict(item.split(":") for item in options[f"{prefix}_profile_{which}_shapes"].split(","))
            built = profile_shapes(artifact, stage, limits)
            assert shapes == {name: "x".join(map(str, ranges[index])) for name, ranges in built.items()}
            assert shapes.keys() == {info.name for info in artifact.manifest.graphs[stage].inputs}


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_the_copy_for_tensorrt(stage: str, fake: FakeOrt, artifact: Artifact) -> None:
    """No function is left to inline, no loop, plugin nodes are typed, the weights are a copy that ONNX reads."""
    plan = plan_provider(artifact, "tensorrt", 0, stage)
    again = plan_provider(artifact, "tensorrt", 0, stage)
    assert again == plan and sorted(path.name for path in plan.graph.parent.iterdir()) == [
        plan.graph.name,
        "weights.bin",
    ]
    model = onnx.load(str(plan.graph), load_external_data=False)
    operator = {"prefill": "Precondition", "decode": "DecodeAttention"}[stage]
    nodes = [node for node in model.graph.node if node.domain]
    assert [(node.op_type, node.domain) for node in nodes] == [(operator, "trt.plugins")] * 2
    typed = {value.name for value in (*model.graph.value_info, *model.graph.output) if value.type.tensor_type.elem_type}
    assert all(name in typed for node in nodes for name in node.output)
    assert not model.functions and not {"Loop", "Scan", "If"} & {node.op_type for node in model.graph.node}
    assert {each.domain: each.version for each in model.opset_import} == {"": 23, "trt.plugins": 1}
    assert {path.stat().st_nlink for path in (*plan.graph.parent.iterdir(), artifact.path("weights.bin"))} == {1}
    weights = onnx.load(plan.graph).graph.initializer
    assert all(onnx.numpy_helper.to_array(weight).size for weight in weights if weight.name.endswith(".weight"))
    [model_inputs, others] = [[info.name for info in artifact.manifest.graphs[stage].inputs], model.graph.input]
    assert [value.name for value in others] == model_inputs
    open_artifact(artifact.directory)
