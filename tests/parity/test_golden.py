"""Golden files: what is read of them, and every way in which one is refused before anything is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import WINDOW
from lucid_deploy.model.description import describe
from lucid_deploy.parity.golden import Golden, read_golden
from lucid_deploy.parity.scenarios import FULL, QUICK
from tests.parity.small_models import VOCAB, small_config

ROWS, TOKENS, HEADS, WIDTH = 2, 30, 2, 20
METADATA = {"golden_version": "1", "computed_in": "float32", "model": "Trained"}
CONFIG = small_config(max_position_embeddings=64)
LAYERS = describe(CONFIG, "float32")


def tensors() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "input_ids": torch.randint(VOCAB, (ROWS, TOKENS)),
        "logits": torch.randn(ROWS, TOKENS, VOCAB),
        "layers.1.key": torch.randn(ROWS, HEADS, TOKENS, WIDTH),
        "layers.1.value": torch.randn(ROWS, HEADS, TOKENS, WIDTH).bfloat16(),
    }


def read(directory: Path, metadata: dict[str, str] | None = None, config: Any = CONFIG, **changes: Any) -> Golden:
    """Write a file with some tensors changed (None: left out) and read it."""
    named = {name.replace("_of_", "."): x for name, x in changes.items()}
    found = {name: x for name, x in {**tensors(), **named}.items() if x is not None}
    save_file(found, directory / "g.safetensors", METADATA if metadata is None else metadata)
    return read_golden(directory / "g.safetensors", config, describe(config, "float32"))


def test_what_is_recorded_becomes_rows_of_positions(tmp_path: Path):
    golden, wanted = read(tmp_path), tensors()
    assert golden.ids.dtype == np.int64 and golden.ids.tolist() == wanted["input_ids"].tolist()
    assert [str(tensor) for tensor in sorted(golden.tensors)] == ["layer 1 K", "layer 1 Y", "logits"]
    key, value = (golden.tensors[tensor].values for tensor in sorted(golden.tensors)[:2])
    assert key.shape == (ROWS, TOKENS, HEADS * WIDTH)
    np.testing.assert_array_equal(key[1, 5], wanted["layers.1.key"][1, :, 5].flatten())
    np.testing.assert_array_equal(value[0, 7], wanted["layers.1.value"][0, :, 7].flatten().float())
    assert [golden.stored[tensor] for tensor in sorted(golden.stored)] == ["float32", "bfloat16", "float32"]
    words = golden.reference(TOKENS).words
    assert words == f"the golden file {tmp_path / 'g.safetensors'}, recorded by Trained in float32"


def test_a_file_that_does_not_say_its_type_is_as_coarse_as_its_coarsest_tensor(tmp_path: Path):
    assert read(tmp_path, {"golden_version": "1"}).computed_in == "bfloat16"


def test_each_row_is_a_prompt_with_steps_and_once_decoded_from_its_first_token(tmp_path: Path):
    golden = read(tmp_path)
    found = golden.scenarios(64, FULL)
    assert [scenario.name for scenario in found] == ["golden 1", "golden 1, decoded", "golden 2", "golden 2, decoded"]
    assert [(len(s.prompt), len(s.forced), s.one_shot_only) for s in found[:2]] == [(8, 22, False), (1, 29, True)]
    for scenario in found:
        trace = golden.trace(scenario)
        assert trace is not None and {rows.values.shape[1] for rows in trace.tensors.values()} == {TOKENS}
    np.testing.assert_array_equal(found[2].ids, golden.ids[1])


def test_rows_are_cut_to_the_context_and_to_a_quick_run(tmp_path: Path):
    golden = read(tmp_path)
    cut = golden.scenarios(20, FULL)[0]
    trace = golden.trace(cut)
    assert cut.length == golden.tokens_used(20, FULL) == 15
    assert trace is not None and {rows.values.shape[1] for rows in trace.tensors.values()} == {15}
    assert golden.reference(15).left_out == "Of its 30 tokens in a row, the first 15 were compared."
    assert golden.reference(30).left_out == ""
    long = tensors()["input_ids"].repeat(1, 10)
    config = small_config(max_position_embeddings=512)
    logits, rows = torch.zeros(ROWS, 300, VOCAB), None
    whole = read(
        tmp_path, config=config, input_ids=long, logits=logits, layers_of_1_of_key=rows, layers_of_1_of_value=rows
    )
    assert (whole.tokens_used(512, FULL), whole.tokens_used(512, QUICK)) == (300, 258)


def test_layers_over_a_window_may_hold_their_last_rows_only(tmp_path: Path):
    kinds = ("standard", WINDOW, "standard")
    config = small_config(attention_type="llama", layer_kinds=kinds, sliding_window=9)
    last = torch.randn(ROWS, HEADS, 8, WIDTH)
    golden = read(tmp_path, config=config, layers_of_1_of_key=last, layers_of_1_of_value=2 * last)
    rows = golden.tensors[min(golden.tensors)]
    assert (rows.start, rows.values.shape[1]) == (TOKENS - 8, 8)
    trace = golden.trace(golden.scenarios(10, FULL)[0])
    assert trace is not None and trace.tensors[min(trace.tensors)].values.shape[1] == 0


def _with(x: Any, index: Any, value: float) -> Any:
    x = x.clone()
    x[index] = value
    return x


T = tensors()
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no ids": ({"input_ids": None}, "has no tensor input_ids"),
    "no logits": ({"logits": None}, "has no tensor logits"),
    "another name": ({"logits": None, "logit": T["logits"]}, "has no tensor logits"),
    "an unknown name": ({"attention_mask": T["input_ids"]}, r"has a tensor attention_mask\. A golden file may contain"),
    "more layers": ({"layers_of_3_of_key": T["layers.1.key"]}, r"has a tensor layers\.3\.key\. A golden file"),
    "ids of floats": ({"input_ids": T["input_ids"].float()}, "input_ids has the type F32; token ids must be integers"),
    "flat ids": ({"input_ids": T["input_ids"][0].contiguous()}, r"input_ids has the shape \[30\]; it must be \[batch"),
    "one token": ({"input_ids": T["input_ids"][:, :1].contiguous()}, "with at least 2 tokens"),
    "no rows": ({"input_ids": T["input_ids"][:0]}, r"input_ids has the shape \[0, 30\]"),
    "whole logits": ({"logits": T["logits"].int()}, "logits has the type I32, not one of F64, F32"),
    "8-bit keys": ({"layers_of_1_of_key": T["layers.1.key"].to(torch.float8_e4m3fn)}, "layers.1.key has the type F8"),
    "another vocabulary": ({"logits": torch.zeros(ROWS, TOKENS, 99)}, r"logits has the shape \[2, 30, 99\]; .*61\]"),
    "fewer logits": ({"logits": T["logits"][:, 1:].contiguous()}, r"must be \[2, 30, 61\], \[batch, tokens"),
    "token ids beyond": ({"input_ids": _with(T["input_ids"], (1, 2), 61)}, "input_ids contains 61, which is outside"),
    "token ids below": ({"input_ids": _with(T["input_ids"], (1, 2), -1)}, "input_ids contains -1, which is outside"),
    "other heads": ({"layers_of_1_of_key": torch.zeros(ROWS, 4, TOKENS, WIDTH)}, "layers.1.key has the shape"),
    "other axes": ({"layers_of_1_of_key": torch.zeros(ROWS, TOKENS, HEADS, WIDTH)}, "key/value heads, tokens, width"),
    "the last rows of a layer without a window": (
        {"layers_of_1_of_key": torch.zeros(ROWS, HEADS, 8, WIDTH)},
        r"layers.1.key has the shape \[2, 2, 8, 20\]",
    ),
    "NaN": ({"logits": _with(T["logits"], (1, 7), float("nan"))}, r"logits contains NaN.*row 1 at position 7"),
    "infinity": ({"layers_of_1_of_key": _with(T["layers.1.key"], (0, 1, 4), float("inf"))}, "row 0 at position 4"),
}


@pytest.mark.parametrize(("changes", "words"), BROKEN.values(), ids=BROKEN)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], words: str):
    with pytest.raises(LucidError, match=words) as caught:
        read(tmp_path, **changes)
    assert str(tmp_path / "g.safetensors") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "has no golden_version in its metadata"),
        ({"golden_version": "2"}, "has golden_version 2; this version reads 1"),
        ({"golden_version": "1", "computed_in": "tf32"}, "computed_in is 'tf32' in its metadata, not one of float64"),
    ],
)
def test_metadata(tmp_path: Path, metadata: dict[str, str], words: str):
    with pytest.raises(LucidError, match=words):
        read(tmp_path, metadata)


def test_files_that_are_none(tmp_path: Path):
    with pytest.raises(LucidError, match=r"There is no golden file .*examples/dump_golden.py"):
        read_golden(tmp_path / "none", CONFIG, LAYERS)
    with pytest.raises(LucidError, match="There is no golden file"):
        read_golden(tmp_path, CONFIG, LAYERS)
    for content in (b"", b"no safetensors at all", b"\xff" * 64):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(LucidError, match="is not a valid safetensors file"):
            read_golden(tmp_path / "other", CONFIG, LAYERS)


def test_a_file_that_was_cut(tmp_path: Path):
    read(tmp_path)
    whole = (tmp_path / "g.safetensors").read_bytes()
    for size in (5, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "g.safetensors").write_bytes(whole[:size])
        with pytest.raises(LucidError, match="is not a valid safetensors file"):
            read_golden(tmp_path / "g.safetensors", CONFIG, LAYERS)
