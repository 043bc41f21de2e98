"""What quantization cost, and whether weights are the checkpoint's: more of it is in tests/export/test_quantize.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.artifact.quantization_method import LearnedTensor, Method, relative_distance
from lucid_deploy.artifact.quantized_tensor import QuantizedTensor
from lucid_deploy.errors import CheckFailed
from lucid_deploy.export.rounding.pack import pack_numbers
from lucid_deploy.export.rounding.scales import search_scales
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.parity.measure.quantization import check_weights, measure_cost
from lucid_deploy.runtimes.torch.artifact_weights import stored_parts
from tests.parity.small_models import in_dtype, session


def test_the_cost_is_that_of_the_models_themselves(model, targets):
    """The candidate and the targets are of one model, the original is another: both columns say how far they are."""
    original = in_dtype(model, torch.float64)
    original.lm_head.weight.mul_(1.01)
    seen = []
    cost = measure_cost(lambda: session(original, torch.float64), session(model), targets, lambda *s: seen.append(s))
    for part in (cost.weights, cost.as_run):
        assert part.relative_error == pytest.approx(0.01 / 1.01, rel=1e-3)
        assert part.relative_error_max == pytest.approx(0.01 / 1.01, rel=1e-2)
        assert (part.top1_agreement, part.positions) == (1.0, 5 * 9)
        assert 0 < part.kl_mean <= part.kl_max
    done, total = seen[-1][1:]
    assert done == total == 2 + 5 * 9
    assert [step[1] for step in seen] == list(range(total + 1))


def test_nothing_is_lost_against_oneself(model, targets):
    cost = measure_cost(lambda: session(model, torch.float64), session(model), targets)
    assert cost.weights.relative_error < 1e-12
    assert np.isfinite(cost.as_run.kl_max) and cost.as_run.relative_error < 1e-4
    record = Quantization("int4", 4, "matmulnbits", "int8", {"w": QuantizedTensor((4, 64), 32)}, (), "a tool")
    assert "(int4, rtn, 5 bits a weight, blocks of 32, int8 inputs)" in cost.lines(record, "float32")[0]
    assert "(int4, rtn, 4.5 bits a weight, " in cost.lines(record, "float16")[0]


def test_every_element_of_a_weight_is_checked(quantized):
    checkpoint, artifact = quantized("int8", changes={"max_position_embeddings": 48})
    seen = []
    source = Checkpoint(checkpoint)
    check_weights(artifact, source, lambda *step: seen.append(step))
    assert seen[-1][1] == seen[-1][2] == len(source.stored_shapes())
    name = next(iter(artifact.manifest.quantization.tensors))

    class Changed(Checkpoint):
        def tensor(self, wanted):
            value = super().tensor(wanted)
            if wanted == name:
                value = value.clone()
                value[3, 5] += 0.5 * value.abs().max()
            return value

    with pytest.raises(CheckFailed, match=f"{name} is not the checkpoint's weight quantized"):
        check_weights(artifact, Changed(checkpoint))


def test_small_scales_of_learned_weights(quantized, monkeypatch):
    """Below 2^-14, scales of float16 are multiples of 2^-24: of a weight of tiny numbers they are off by several %."""
    checkpoint, artifact = quantized("int4", dtype="float16")
    record, source = artifact.manifest.quantization, Checkpoint(checkpoint)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensor = record.tensors[name]
    weight = source.tensor(name).float() * 1e-5
    scales = search_scales(weight, tensor, 4, "float16", False)
    spread = scales.repeat_interleave(tensor.block_size, dim=1)[:, : weight.shape[1]]
    numbers = (weight / spread).round().nan_to_num().clamp(-8, 7)
    parts = pack_numbers(numbers.numpy(), tensor, 4).reshape(-1), scales.half().numpy().reshape(-1)
    distance = relative_distance((numbers * spread).double().numpy(), weight.double().numpy())
    learned = Method("gptq", tensors={name: LearnedTensor(distance, 0.0, 0.0)})
    changed = replace(artifact.manifest, quantization=replace(record, method=learned))

    class Small(Checkpoint):
        def tensor(self, wanted):
            return weight if wanted == name else super().tensor(wanted)

    def stored(_):
        for stored_name, *other in stored_parts(artifact):
            yield (stored_name, *(parts if stored_name == name else other))

    monkeypatch.setattr("lucid_deploy.runtimes.torch.artifact_weights.stored_parts", stored)
    check_weights(Artifact(artifact.directory, changed), Small(checkpoint))
    parts = (parts[0], parts[1] * np.float16(0.5))
    with pytest.raises(CheckFailed, match="the scale of row"):
        check_weights(Artifact(artifact.directory, changed), Small(checkpoint))


def test_distances_of_zeros():
    zeros, ones = np.zeros((2, 3)), np.ones((2, 3))
    assert relative_distance(zeros, zeros) == 0 and relative_distance(ones, zeros) == np.inf
    assert relative_distance(1.5 * ones, ones) == pytest.approx(0.5)
