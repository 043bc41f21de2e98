"""A checkpoint in transformers' own class: float64 throughout, and refused by name where it is another model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.description import describe
from lucid_deploy.model.float64 import all_in_float64
from lucid_deploy.parity.record import record_at_once
from lucid_deploy.parity.scenarios import Scenario
from lucid_deploy.parity.targets import common_positions
from lucid_deploy.parity.transformers_model import TransformersModel
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.conftest import write_checkpoint
from tests.model.family_shapes import SHAPES, random_model

# The one that a comparison of float64 with float64 leaves: a sum in another order, through a few layers.
EXACT = 1e-12
IDS = np.random.default_rng(0).integers(0, 61, 60)


def opened(source: Checkpoint) -> TransformersModel:
    return TransformersModel(source, describe(source.config, "float32"))


def standard(directory: Path, **changes: Any) -> Path:
    return write_checkpoint(directory, attention_type="llama", **changes)


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def check_equal(source: Checkpoint) -> None:
    ids = IDS % source.config.vocab_size
    trace = opened(source).trace(ids)
    (own,) = record_at_once(TorchSession(load_model(source, torch.float64)), [Scenario("some", ids[:30], ids[30:])])
    assert trace.tensors.keys() == own.tensors.keys()
    for tensor, rows in own.tensors.items():
        found, wanted = common_positions(trace.tensors[tensor], rows)
        assert found.values.dtype == np.float64
        assert np.linalg.norm(found.values - wanted.values) <= EXACT * np.linalg.norm(wanted.values), tensor


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_text", "gemma3_text", "phi3"])
def test_it_is_our_own_model_to_float64s_last_digits(tmp_path: Path, family: str):
    """Although norms, softmax and angles are cast to float32 in its code, and frequencies are computed there."""
    random_model(list(SHAPES[family].values())[-1]()).float().save_pretrained(tmp_path)
    check_equal(Checkpoint(tmp_path))


def test_a_standard_checkpoint_with_lucids_keys_and_without_a_word_about_its_file_format(tmp_path: Path):
    check_equal(Checkpoint(standard(tmp_path / "c")))


def test_bfloat16_weights_are_widened(tmp_path: Path):
    random_model(SHAPES["qwen3"]["wide heads"]()).bfloat16().save_pretrained(tmp_path)
    check_equal(Checkpoint(tmp_path))


def test_float32_is_float64_inside_and_float32_again_behind():
    x = torch.tensor([1.0, 2.0])
    with all_in_float64():
        casts = (x.float(), x.to(torch.float32), x.softmax(0, dtype=torch.float32), torch.zeros(2, dtype=torch.float32))
        assert {y.dtype for y in casts} == {torch.float64}
    assert x.float().dtype == torch.float32


# Refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_type": "lucid"}, r"2 of its 2 layers are of the kind 'lucid' \(the first is layer 0\)"),
        ({"use_rope": False}, "LlamaForCausalLM computes another model .* no use_rope, which is False"),
    ],
)
def test_what_the_class_does_not_compute(tmp_path: Path, changes: dict[str, Any], words: str):
    source = Checkpoint(write_checkpoint(tmp_path / "c", **{"attention_type": "llama", **changes}))
    with pytest.raises(LucidError, match=words) as caught:
        opened(source)
    assert "--golden" in str(caught.value)


def test_a_checkpoint_that_does_not_say_its_family(tmp_path: Path):
    path = standard(tmp_path / "c")
    raw = json.loads((path / "config.json").read_text())
    del raw["model_type"]
    (path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(LucidError, match=r"its config.json has no model_type"):
        opened(Checkpoint(path))


def test_a_family_that_transformers_does_not_have(tmp_path: Path):
    source = Checkpoint(standard(tmp_path / "c"))
    change_config(source.directory, model_type="lamma")
    with pytest.raises(LucidError, match="has the model_type 'lamma', of which it has no causal model"):
        opened(source)


def test_norms_that_the_class_does_not_have(tmp_path: Path):
    path = standard(tmp_path / "c")
    tensors = load_file(path / "model.safetensors")
    for layer in range(2):
        for name in ("q_norm", "k_norm"):
            tensors[f"model.layers.{layer}.self_attn.{name}.weight"] = torch.rand(36) + 0.5
    save_file(tensors, path / "model.safetensors")
    source = Checkpoint(path)
    assert source.config.qk_norm == "after_rope"
    with pytest.raises(LucidError, match=r"unexpected weights, such as model.layers.0.self_attn.k_norm.weight"):
        opened(source).trace(IDS)


def test_without_transformers_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = Checkpoint(standard(tmp_path / "c"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(LucidError, match=r'transformers is needed to verify against it .* Run: pip install "'):
        opened(source)
