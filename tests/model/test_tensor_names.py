"""Names of stored tensors without what training wrappers put before or into them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.tensor_files import unwrapped

MakeCheckpoint = Callable[..., Path]


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


def test_two_names_that_become_one_are_refused() -> None:
    with pytest.raises(LucidError, match=r"holds a\.b twice, as a\.b and module\.a\.b"):
        unwrapped(["a.b", "module.a.b"], "checkpoint")
