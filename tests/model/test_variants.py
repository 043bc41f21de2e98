"""What only the tensors say: beta, and norms of queries and keys."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, expected_shapes
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.model.description import summarize
from lucid_deploy.model.variants import settle
from tests.model.config_samples import OFFICIAL

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
