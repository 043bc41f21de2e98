"""Models of flash-linear-attention against its layers written out plainly: float64, graphs, chunks, padding, LUCID."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.families.flash_linear import FlashKeys
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.hybrid_artifact import model as hybrid_model
from tests.model.config_samples import parse, refusal
from tests.model.families.flash_model import ATTENTION, MODELS, SMALL, Flash
from tests.model.sequence_runs import check_sequences, token_ids

EXACT = 1e-11  # float64 in another order, through a few layers
GATE = 1e-4  # relative, of logits in float32
PLAIN = {**SMALL, "model_type": "delta_net"}
GATED = {**SMALL, "model_type": "gated_deltanet", "head_dim": 6}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_its_layers_written_out(name: str, tmp_path: Path) -> None:
    model = Flash(MODELS[name])
    exact = model.logits(torch.from_numpy(token_ids())).numpy()
    check_sequences(TorchSession(load_model(model.save(tmp_path), torch.float64)), exact, EXACT)


def test_its_attention_can_be_lucid(tmp_path: Path) -> None:
    given = {**MODELS["decay, shared keys, attention"], "attention_type": "lucid"}
    model = Flash(given, solved=(1,))
    exact = model.logits(torch.from_numpy(token_ids())).numpy()
    source = Checkpoint(model.save(tmp_path))
    assert source.config.kinds == ("gated_delta", "lucid", "gated_delta")
    check_sequences(TorchSession(load_model(source, torch.float64)), exact, EXACT)


def test_the_graphs_compute_it(hybrid: Callable[..., Artifact]) -> None:
    exact = hybrid_model().logits(torch.from_numpy(token_ids())).numpy()
    check_sequences(open_session(hybrid("static"), "onnxruntime", kernels="functions"), exact, GATE)


def test_mlps_are_as_wide_as_its_code_makes_them() -> None:
    assert parse({**PLAIN, "intermediate_size": None}).intermediate_size == 256  # 48 · 4 · 2/3 = 128, rounded up
    assert parse({**PLAIN, "intermediate_size": None, "hidden_size": 1024}).intermediate_size == 2816


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_attention_heads": 4}, "num_attention_heads is 4, a key that models of the family delta_net do not have"),
        ({"head_dim": 12}, "head_dim is 12, a key that models of the family delta_net do not have"),
        ({"hidden_act": "powlu"}, "hidden_act 'powlu' is not supported; only silu is"),
        ({"expand_k": 1e308}, "hidden_size · expand_k is inf, which is not a whole number"),
        ({"conv_bias": True}, "conv_bias is true. Biases of short convolutions are not supported"),
        ({"conv_size": 0}, "conv_size is 0; short convolutions over 2 to 64 tokens are supported"),
        ({"conv_size": 1}, "conv_size is 1; short convolutions over 2 to 64 tokens are supported"),
        ({"conv_size": 65}, "conv_size is 65; short convolutions over 2 to 64 tokens are supported"),
        ({"attnres_block_size": 4}, "Expected `null`, got `int` - at `$.attnres_block_size`"),
        ({"use_gates": True}, "use_gates is True. This key is not known here"),
        ({"attn": 3}, "attn must be an object, not 3"),
        ({"attn": {"layers": [1]}}, "attn: Object missing required field `num_heads`"),
        ({"attn": {**ATTENTION, "sinks": 4}}, "attn: Object contains unknown field `sinks`"),
        ({"attn": {**ATTENTION, "qk_norm": True}}, "attn.qk_norm is true. Versions of flash-linear-attention differ"),
        ({"attn": {**ATTENTION, "layers": [3]}}, "attn.layers names layer 3; it lists layers, counted from 0, of 3"),
        ({"attn": {**ATTENTION, "layers": [1, 1]}}, "attn.layers names a layer twice"),
        ({"attn": {**ATTENTION, "num_heads": 5}}, "hidden_size (48) is not a multiple of attn.num_heads (5)"),
        ({"attn": [ATTENTION, {**ATTENTION, "layers": [2]}]}, "attn lists 2 kinds of attention"),
        ({"attention_type": "lucid"}, "no layer attends to all tokens, so that none is LUCID"),
        (
            {"attention_type": "lucid", "attn": ATTENTION, "lucid_layers": [0]},
            "lucid_layers names layer 0, which is one of linear attention",
        ),
    ],
)
def test_what_it_does_not_compute_is_refused(given: dict[str, Any], said: str) -> None:
    assert said in refusal({**PLAIN, **given})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attn.k_conv1d.weight": None}, "missing: model.layers.0.attn.k_conv1d.weight"),
        ({"attn.b_proj.weight": (3, 48)}, "attn.b_proj.weight is [3, 48], config.json asks for [4, 48]"),
        ({"attn.A_log": (8,)}, "model.layers.0.attn.A_log is [8], config.json asks for [4]"),
        ({"attn.v_conv1d.weight": (48, 1, 3)}, "attn.v_conv1d.weight is [48, 1, 3], config.json asks for [48, 1, 4]"),
        ({"attn.v_conv1d.bias": (48,)}, "unexpected: model.layers.0.attn.v_conv1d.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = Flash({"model_type": "gated_deltanet", "head_dim": 12, "expand_v": 1.0, "num_hidden_layers": 1})
    for name, shape in change.items():
        full = f"model.layers.0.{name}"
        if shape is None:
            del model.tensors[full]
        else:
            model.tensors[full] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(LucidError, match="do not fit its config") as caught:
        Checkpoint(model.save(tmp_path))
    assert said in str(caught.value)


def test_the_written_out_layers_are_not_the_products() -> None:
    """A recurrence without the correction is far off, so that the comparisons above see it."""
    model, ids = Flash(MODELS["plain"]), torch.from_numpy(token_ids())

    def uncorrected(q: Any, k: Any, v: Any, log_decay: Any, beta: Any) -> Any:
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k).tril() / k.shape[3] ** 0.5
        return torch.einsum("bhnm,bmhe->bnhe", scores, v * beta[..., None])

    exact = model.logits(ids).numpy()
    assert np.linalg.norm(model.logits(ids, uncorrected).numpy() - exact) > 0.05 * np.linalg.norm(exact)


def test_widths_follow_from_the_hidden_width() -> None:
    config = parse({**PLAIN, "expand_k": 0.5, "expand_v": 1.5, "use_short_conv": False})
    assert config.kinds == ("delta",) * 3 and not config.use_rope
    assert config.layer_settings["delta"] == {
        "key_heads": 4,
        "value_heads": 4,
        "key_width": 6,
        "value_width": 18,
        "kernel": 0,
        "gate": "none",
        "has_beta": True,
        "negative_eigenvalues": False,
    }


def test_what_flash_linear_attention_writes_of_its_own_is_taken() -> None:
    written = {
        "attn_mode": "chunk",
        "fuse_norm": True,
        "fuse_swiglu": True,
        "fuse_cross_entropy": True,
        "fuse_linear_cross_entropy": False,
        "use_l2warp": False,
        "use_output_norm": True,
        "attnres_block_size": None,
        "attn": None,
        "hidden_act": "swish",
        "qk_norm": "l2",
        "qk_activation": "silu",
        "use_beta": True,
        "architectures": ["DeltaNetForCausalLM"],
    }
    assert parse({**PLAIN, **written}) == parse(PLAIN)
    assert FlashKeys(num_heads=4).conv_size == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"qk_norm": "sum"}, "`$.qk_norm`"),
        ({"qk_activation": "elu"}, "`$.qk_activation`"),
        ({"num_heads": 5}, "hidden_size · expand_k (48) is not a multiple of num_heads (5)"),
        ({"expand_v": 0.3}, "hidden_size · expand_v is 14.4, which is not a whole number"),
        ({"num_heads": None}, "required field `num_heads`"),
        ({"use_beta": 3}, "Expected `bool`, got `int` - at `$.use_beta`"),
    ],
)
def test_what_delta_net_does_not_compute_is_refused(given: dict[str, Any], said: str) -> None:
    assert said in refusal(PLAIN, **given)


def test_heads_of_its_linear_layers_are_not_those_of_its_attention() -> None:
    config = parse({**GATED, "num_heads": 5, "num_v_heads": 10, "attn": ATTENTION})
    assert config.kinds == ("gated_delta", "standard", "gated_delta")
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 12)
    settings = config.layer_settings["gated_delta"]
    assert (settings["key_heads"], settings["value_heads"]) == (5, 10)
    assert (settings["key_width"], settings["value_width"], settings["gate"]) == (6, 12, "silu")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_v_heads": 6}, "num_v_heads (6) is not a multiple of num_heads (4)"),
        ({"num_v_heads": 2}, "num_v_heads (2) is not a multiple of num_heads (4)"),
        ({"expand_v": 1.3}, "head_dim · expand_v is 7.8, which is not a whole number"),
        ({"output_gate_activation": "tanh"}, "`$.output_gate_activation`"),
        ({"use_beta": False}, "attention_type is missing, beside use_beta of LUCID's configuration"),
    ],
)
def test_what_gated_deltanet_does_not_compute_is_refused(given: dict[str, Any], said: str) -> None:
    assert said in refusal(GATED, **given)
