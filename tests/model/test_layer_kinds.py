"""What holds for every kind of layer: described without torch, and its module has what the description says."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lucid_deploy.model.layers import layer_kind
from lucid_deploy.model.mixer import layer_steps
from tests.model.config_samples import GEMMA, LLAMA, LUCID, parse
from tests.model.families.flash_model import MODELS, SMALL

KINDS = {
    "lucid": (LUCID, "rows"),
    "standard": (LLAMA, "rows"),
    "standard with biases": ({**LLAMA, "attention_bias": True}, "rows"),
    "window": (GEMMA, "ring"),
    **{
        f"{'gated_delta' if given['model_type'] == 'gated_deltanet' else 'delta'} {name}": ({**SMALL, **given}, "state")
        for name, given in MODELS.items()
    },  # the first word is the kind
}


@pytest.mark.parametrize("name", KINDS)
def test_the_description_and_the_module_agree(name: str) -> None:
    kind, (given, sort) = name.split(" ")[0], KINDS[name]
    config = parse(given)
    index, made = config.kinds.index(kind), layer_kind(kind)
    described = made.describe(config, index, "float32")
    assert described.kind == kind and "{}" in made.words(config) and described.solves == (kind == "lucid")
    module = made.mixer(config, index, "blocked")
    assert {f"{made.attribute}.{name}" for name, _ in module.named_parameters()} == set(described.weights)
    assert {tensor.sort for tensor in described.cache} == {sort}


def test_describing_layers_imports_no_torch() -> None:
    code = "import sys; from lucid_deploy.model.layers import layer_kind\n"
    code += "[layer_kind(name) for name in ('lucid', 'standard', 'window', 'delta', 'gated_delta')]\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_each_layer_gets_its_own_rotary_tables() -> None:
    mixed = ["full_attention", "sliding_attention", "full_attention"]
    config = parse(GEMMA, num_hidden_layers=3, layer_types=mixed, sliding_window=5, rope_local_base_freq=100.0)
    first, local, last = (step.rope for step in layer_steps(config, torch.tensor([[0, 1, 7]]), torch.float32))
    assert first is not None and local is not None and last is not None
    assert first[0] is last[0] and not torch.equal(first[0], local[0])
    bare = parse({**LLAMA, "model_type": "smollm3"}, num_hidden_layers=3, no_rope_layers=[1, 0, 1])
    steps = layer_steps(bare, torch.tensor([[0, 1, 7]]), torch.float32)
    assert [step.rope is None for step in steps] == [False, True, False]
