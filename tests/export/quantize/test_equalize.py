"""Equalization: scales that cancel give the same model, which is nearer to the original once it is rounded."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import lucid_deploy as ld
from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.artifact.quantized_bytes import INPUTS, OUTPUTS
from lucid_deploy.cli import main
from lucid_deploy.export.quantize.equalize import equalizing_scales
from lucid_deploy.export.quantize.folds import with_scales
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.export.quantize.plan import plan_quantization
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.lucid import CausalModel
from tests.conftest import write_checkpoint
from tests.hybrid_artifact import write_hybrid

READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.up_proj": ("mlp.down_proj",),
}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LUCID checkpoint with grouped heads: columns are multiplied, and the layers before are divided."""
    path = write_checkpoint(tmp_path_factory.mktemp("uneven") / "c")
    file = path / "model.safetensors"
    tensors, draw = load_file(file), torch.Generator().manual_seed(0)
    layers = sorted({name.split(".")[2] for name in tensors if ".layers." in name})
    for layer, (giver, readers) in itertools.product(layers, READERS.items()):
        given = f"model.layers.{layer}.{giver}.weight"
        factor = torch.exp2(5 * torch.rand(len(tensors[given]), generator=draw) - 2.5)
        tensors[given] = tensors[given] / factor.unflatten(0, (-1, *[1] * (tensors[given].dim() - 1)))
        for name in readers:
            tensors[f"model.layers.{layer}.{name}.weight"] *= factor
    save_file(tensors, file, metadata={"format": "pt"})
    return path


def test_equalized_weights_lose_less_by_rounding(uneven: Path) -> None:
    source, exact = Checkpoint(uneven), logits_of(load_model(uneven))
    plan = plan_quantization(source.stored_shapes(), source.tied, QuantizeOptions("int4", keep_float=("lm_head",)))
    changed = with_scales(source, equalizing_scales(source, plan, "float32"))
    torch.testing.assert_close(logits_of_weights(changed), exact, rtol=1e-4, atol=1e-5)
    before, after = ((logits_of_weights(each, plan) - exact).norm() for each in (source, changed))
    assert after < 0.7 * before


def logits_of(model: CausalModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.randint(97, (4, 128), generator=torch.Generator().manual_seed(9)))[0].double()
    return found


def logits_of_weights(source: Checkpoint, rounded: Quantization | None = None) -> torch.Tensor:
    model = load_model(source.directory)
    for name, value in model.named_parameters():
        value.data = source.tensor(name).float()
        if rounded is not None and name in rounded.tensors:
            blocks = value.unflatten(1, (rounded.tensors[name].blocks, -1))
            scale = blocks.abs().amax(-1, keepdim=True) / 8
            value.data = ((blocks / scale).round().clamp(-8, 7) * scale).flatten(1)
    return logits_of(model)


def test_it_does_not_matter_how_a_channels_size_is_split_between_weights(uneven: Path, tmp_path: Path) -> None:
    """The same weights are rounded, but for a factor, whatever the norms and layers before hold."""
    found = []
    for source in (Checkpoint(uneven), Checkpoint(write_checkpoint(tmp_path / "c"))):
        plan = plan_quantization(source.stored_shapes(), source.tied, QuantizeOptions("int4"))
        changed = with_scales(source, equalizing_scales(source, plan, "float32"))
        found.append({name: changed.tensor(name) / changed.tensor(name).norm() for name in plan.tensors})
    for name, weight in found[0].items():
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            continue  # up's rows were changed too, and with them the scales that gate and up share
        torch.testing.assert_close(weight, found[1][name], rtol=1e-3, atol=1e-6)


def test_every_input_is_scaled_and_keys_keep_their_size(uneven: Path) -> None:
    source = Checkpoint(uneven)
    scales = equalizing_scales(
        source, plan_quantization(source.stored_shapes(), False, QuantizeOptions("int4")), "float32"
    )
    read = {name.split(".", 3)[3].removesuffix(f".weight{INPUTS}") for name in scales if name.endswith(INPUTS)}
    wanted = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
    assert read == wanted | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert not any("k_proj" in name for name in scales if name.endswith(OUTPUTS))


def test_weights_kept_in_float_are_not_scaled(uneven: Path) -> None:
    source, options = Checkpoint(uneven), QuantizeOptions("int4", keep_float=("layers.*.up_proj", "layers.*.v_proj"))
    names = equalizing_scales(source, plan_quantization(source.stored_shapes(), False, options), "float32")
    assert not any(kind in name for name in names for kind in ("up_proj", "down_proj", "v_proj", "o_proj"))


def test_equalized_delta_rule_layers_give_the_same_logits(tmp_path: Path) -> None:
    source = Checkpoint(write_hybrid(tmp_path / "c"))
    plan = plan_quantization(source.stored_shapes(), source.tied, QuantizeOptions("int4"))
    changed = with_scales(source, equalizing_scales(source, plan, "float32"))
    ids = torch.arange(40)[None] % source.config.vocab_size
    model, exact = load_model(source.directory), load_model(source.directory)(ids)[0]
    for name, value in model.named_parameters():
        value.data = changed.tensor(name).float()
    torch.testing.assert_close(model(ids)[0], exact, rtol=1e-4, atol=1e-5)


def test_an_equalized_artifact_is_verified(uneven: Path, tmp_path: Path) -> None:
    """The default where no method is named: weights with offsets, and a head of 8 bits."""
    artifact = ld.export(uneven, tmp_path / "artifact", cache="growing", quantize=QuantizeOptions("int4"))
    record = artifact.manifest.quantization
    assert record.method.name == "hqq" and record.method.settings == {"equalization": 0.7}
    assert record.bits_of("lm_head.weight") == 8
    found = ld.verify(artifact, quick=True).raise_if_failed()
    assert "others are equal but for inputs' scales" in str(found.checks)
    shown = " ".join(CliRunner().invoke(main, ["inspect", str(artifact.directory)]).output.split())
    assert "of them to 8 bits, in blocks of" in shown and "Columns were equalized before." in shown
