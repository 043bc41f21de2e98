"""What only the tensors say: beta, norms of queries and keys, and the prefixes of training wrappers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, expected_shapes, load_model
from lucid_deploy.model.config import LucidConfig, parse_config
from lucid_deploy.model.summary import summarize
from lucid_deploy.model.tensor_names import unwrapped
from lucid_deploy.model.variants import settle
from tests.model.test_config_keys import OFFICIAL

MakeCheckpoint = Callable[..., Path]
NORMS = [f"model.layers.{layer}.self_attn.{kind}_norm.weight" for layer in range(2) for kind in "qk"]
STANDARD = {**OFFICIAL, "attention_type": "llama", "use_beta": False}


def settled(raw: dict[str, Any], names: list[str]) -> tuple[LucidConfig, tuple[str, ...]]:
    return settle(parse_config(raw, "config.json"), raw, names, "checkpoint")


def refusal(raw: dict[str, Any], names: list[str]) -> str:
    with pytest.raises(LucidError) as caught:
        settled(raw, names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_beta_without_tensors_is_computed_without_and_said() -> None:
    config, notes = settled(OFFICIAL, ["model.embed_tokens.weight"])
    assert config == parse_config(OFFICIAL, "config.json")
    assert len(notes) == 1
    assert "use_beta is true, and the checkpoint has no tensors of beta" in notes[0]


def test_nothing_is_said_where_the_keys_say_it_all() -> None:
    assert settled({**OFFICIAL, "use_beta": False}, [])[1] == ()
    assert settled({**STANDARD, "use_qknorm": False}, [])[1] == ()
    assert settled({**STANDARD, "use_qknorm": True}, NORMS)[1] == ()


def write_header(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a file of bfloat16 zeros that take no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def test_a_checkpoint_of_the_published_shape_opens(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL))
    write_header(tmp_path / "model.safetensors", expected_shapes(parse_config(OFFICIAL, "config.json")))
    opened = Checkpoint(tmp_path)
    assert len(opened.stored_shapes()) == 22 * 9 + 3
    assert summarize(opened.config) == "22 LUCID layers, no rotary positions"
    assert len(opened.notes) == 1


@pytest.mark.parametrize("beta", [True, False, None])
@pytest.mark.parametrize(
    ("name", "key"),
    [("beta_proj", "use_beta"), ("forget_gate", "use_forget_gate"), ("g_proj", "use_forget_gate")],
)
def test_tensors_of_a_variant_are_refused_by_name(beta: bool | None, name: str, key: str) -> None:
    stored = f"model.layers.0.self_attn.{name}.weight"
    message = refusal({**OFFICIAL, "use_beta": beta}, ["model.norm.weight", stored])
    assert f"holds tensors of the variants {key}, which are not supported: {stored}." in message


def test_a_gate_of_the_mlp_is_no_forget_gate() -> None:
    settled(OFFICIAL, ["model.layers.0.mlp.gate_proj.weight"])


@pytest.mark.parametrize(
    ("wanted", "names", "norm", "said"),
    [
        (None, NORMS, "after_rope", "The checkpoint has q_norm and k_norm"),
        (None, [], "none", "The checkpoint has no q_norm and k_norm"),
        (True, NORMS, "after_rope", None),
        (False, [], "none", None),
    ],
)
def test_the_authors_baseline_has_norms_after_rotation(
    wanted: bool | None, names: list[str], norm: str, said: str | None
) -> None:
    """Their code makes them unless use_qknorm is false; a baseline of ours has none, and tensors tell them apart."""
    config, notes = settled({**STANDARD, "use_qknorm": wanted}, names)
    assert config.qk_norm == norm
    assert [note.startswith(said or "") for note in notes] == [True] * (said is not None)
    assert ("norms of queries and keys after rotation" in summarize(config)) == (norm != "none")
    assert LucidConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "raw",
    [
        {"model_type": "llama", **{key: OFFICIAL[key] for key in list(OFFICIAL)[:26] if key != "torch_dtype"}},
        {**STANDARD, "use_qknorm": False},
        OFFICIAL,
        {**OFFICIAL, "use_qknorm": True},
    ],
    ids=["a Llama", "said to have none", "LUCID", "LUCID, said to have them"],
)
def test_norms_that_the_configuration_does_not_have_are_refused(raw: dict[str, Any]) -> None:
    message = refusal(raw, NORMS)
    assert f"holds {', '.join(sorted(NORMS))}" in message
    assert "whether they come before or after rotary embedding is not known" in message


def test_a_llama_has_none_and_nothing_is_said() -> None:
    raw = {key: value for key, value in STANDARD.items() if key in ("model_type", "vocab_size") or "_si" in key}
    raw |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    config, notes = settled(raw, [])
    assert (config.qk_norm, notes) == ("none", ())


def test_lucid_takes_no_notice_of_norms_and_says_so() -> None:
    config, notes = settled({**OFFICIAL, "use_beta": False, "use_qknorm": True}, [])
    assert config.qk_norm == "none"
    assert notes == ("use_qknorm is true; LUCID attention has no such norms.",)


WRAPPERS = {
    "module.": lambda name: f"module.{name}",
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "_orig_mod. and module.": lambda name: f"module._orig_mod.{name}",
    "model.": lambda name: f"model.{name}",
    "model. and module.": lambda name: f"module.model.{name}",
    "_orig_mod. inside": lambda name: name.replace(".self_attn.", "._orig_mod.self_attn."),
    "_fsdp_wrapped_module.": lambda name: f"_fsdp_wrapped_module.{name}".replace(".mlp.", ".mlp._fsdp_wrapped_module."),
}


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("how", WRAPPERS)
def test_a_wrappers_prefix_is_taken_off_and_said(make_checkpoint: MakeCheckpoint, how: str, tied: bool) -> None:
    checkpoint = make_checkpoint(tie_word_embeddings=tied)
    plain = load_model(checkpoint).state_dict()
    path = checkpoint / "model.safetensors"
    save_file({WRAPPERS[how](name): value for name, value in load_file(path).items()}, path)
    opened = Checkpoint(checkpoint)
    loaded = load_model(opened).state_dict()
    assert all(torch.equal(loaded[name], plain[name]) for name in plain)
    (note,) = opened.notes
    parts = how.removesuffix(" inside")
    assert note == f"Tensor names were read without {parts}, which a training wrapper put into them."


def test_names_of_a_compiled_model_are_read(make_checkpoint: MakeCheckpoint) -> None:
    """torch.compile itself names them, of the whole model and of each layer."""
    checkpoint = make_checkpoint()
    model = load_model(checkpoint)
    for number, layer in enumerate(model.model.layers):
        model.model.layers[number] = torch.compile(layer)
    names = torch.compile(model).state_dict()  # type: ignore[union-attr]
    assert "_orig_mod.model.layers.0._orig_mod.mlp.up_proj.weight" in names
    assert set(unwrapped(names, "checkpoint")[0]) == set(load_file(checkpoint / "model.safetensors"))


def test_a_prefix_of_shards_is_taken_off(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    stored = load_file(checkpoint / "model.safetensors")
    tensors = {f"module.{name}": value.bfloat16() for name, value in stored.items()}
    (checkpoint / "model.safetensors").unlink()
    weight_map = {}
    for number, name in enumerate(tensors):
        file = f"model-{number % 3 + 1:05d}-of-00003.safetensors"
        weight_map[name] = file
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, checkpoint / file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = load_model(checkpoint).state_dict()
    assert all(torch.equal(loaded[name], tensors[f"module.{name}"].float()) for name in loaded)


def test_two_names_that_become_one_are_refused() -> None:
    with pytest.raises(LucidError, match=r"holds a\.b twice, as a\.b and module\.a\.b"):
        unwrapped(["a.b", "module.a.b"], "checkpoint")


def test_names_without_wrappers_stay_as_they_are() -> None:
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    assert unwrapped(names, "checkpoint") == ({name: name for name in names}, ())


def test_only_the_head_of_a_tied_pair_may_be_stored(make_checkpoint: MakeCheckpoint) -> None:
    """safetensors' own save_model keeps the first name of tensors that share memory: the head."""
    checkpoint = make_checkpoint(tie_word_embeddings=True)
    path, model = checkpoint / "model.safetensors", load_model(checkpoint)
    save_model(model, str(path))
    assert "model.embed_tokens.weight" not in load_file(path)
    opened = Checkpoint(checkpoint)
    assert torch.equal(load_model(opened).model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert opened.notes == ("lm_head.weight is stored and model.embed_tokens.weight is not: tied, it is both.",)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["zero_to_fp32.py", "latest", "global_step5/mp_rank_00_model_states.pt"], "python zero_to_fp32.py . OUTPUT"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
        (["__0_0.distcp"], "accelerate merge-weights"),
    ],
)
def test_shards_of_trainers_are_named_with_what_makes_safetensors(
    make_checkpoint: MakeCheckpoint, files: list[str], said: str
) -> None:
    checkpoint = make_checkpoint()
    (checkpoint / "model.safetensors").unlink()
    for name in files:
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_bytes(b"")
    with pytest.raises(LucidError, match=said):
        Checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "22 LUCID layers, no rotary positions"),
        ({"num_hidden_layers": 1, "use_rope": True}, "1 LUCID layer, rotary positions (base 10000)"),
        ({"attention_type": "llama", "use_rope": True, "rope_theta": 5e5}, "22 layers of standard attention, rotary "),
        (
            {"use_rope": True, "rope_scaling": {"type": "linear", "factor": 2.5}},
            "22 LUCID layers, rotary positions (base 10000, linear scaling by 2.5)",
        ),
    ],
)
def test_a_model_in_one_line(changes: dict[str, Any], said: str) -> None:
    assert summarize(parse_config({**OFFICIAL, **changes}, "config.json")).startswith(said)


def test_layers_of_several_kinds_are_counted() -> None:
    kinds = ["lucid", "standard", "gated", "standard"]
    config = parse_config({**OFFICIAL, "num_hidden_layers": 4, "layer_kinds": kinds}, "config.json")
    assert summarize(config).startswith("1 LUCID layer and 2 layers of standard attention and 1 layer of kind gated, ")
