"""The record of quantized weights: sizes of stored parts, and errors of damaged records."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
import pytest

from lucid_deploy.artifact.quantization import (
    PACKED,
    PARTS,
    ROWS,
    SCHEMES,
    LearnedTensor,
    Method,
    Quantization,
    QuantizedTensor,
)
from lucid_deploy.artifact.quantized_bytes import unpack
from tests.artifact.test_quantized_bytes import NAME, record


def test_a_row_of_an_embedding_is_another_view_of_the_same_bytes() -> None:
    quantization = record("int4", "matmulnbits", (97, 72), 32)
    assert quantization.tensors[NAME].blocks == 3
    for part in (PACKED, ROWS):
        assert (
            np.prod(quantization.part_shape(NAME, part))
            == quantization.part_size(NAME, PACKED, "float32")
            == 97 * 3 * 16
        )


@pytest.mark.parametrize("form", ["matmulnbits", "qdq"])
def test_tensors_in_one_record_may_have_different_bits(form: str) -> None:
    """Sizes were computed by hand; each tensor is unpacked with its own bits."""
    tensors = {"a": QuantizedTensor((4, 64), 32), "b": QuantizedTensor((4, 64), 32, bits=8)}
    mixed = Quantization("int4", 4, form, "int8", tensors, (), "a tool")
    assert msgspec.convert(mixed.to_dict(), Quantization) == mixed
    assert [mixed.part_size(name, PACKED, "float32") for name in "ab"] == [128, 256] and [
        mixed.bits_of(name) for name in "ab"
    ] == [4, 8]
    assert [mixed.has_positive_scales(name) for name in "ab"] == [False, form == "qdq"]
    assert mixed.bits_per_weight("float32") == 6 + 1 and mixed.bits_per_weight("float16") == 6 + 0.5
    for name, high in (("a", 7), ("b", 127)):
        size = mixed.part_size(name, PACKED, "float32")
        numbers, _ = unpack(mixed, name, np.arange(size, dtype=np.uint8), np.ones(8))
        assert numbers.shape == (4, 64) and numbers.max() == (high if name == "a" or form == "qdq" else 127)
    with pytest.raises(ValueError, match="bits=3"):
        changed = mixed.to_dict()
        changed["tensors"]["a"]["bits"] = 3
        msgspec.convert(changed, Quantization)


def test_a_tied_head_has_the_embeddings_blocks() -> None:
    tensors = {"model.embed_tokens.weight": QuantizedTensor((97, 64), 16), NAME: QuantizedTensor((112, 64), 64)}
    quantization = Quantization("int8", 8, "matmulnbits", "int8", tensors, (), "a tool")
    assert quantization.block_sizes(tied=True) == {
        "model.embed_tokens.weight": 16,
        NAME: 64,
        "lm_head.weight": 16,
    }
    assert "lm_head.weight" not in quantization.block_sizes(tied=False)
    assert quantization.block_size == 64


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 4},
        {"scheme": "int2"},
        {"format": "gguf"},
        {"activations": "int4"},
        {"tensors": {}},
    ],
    ids=str,
)
def test_a_damaged_record_is_refused(change: dict[str, Any]) -> None:
    quantization = record("int8", "qdq", (5, 64), 32)
    assert msgspec.convert(quantization.to_dict(), Quantization) == quantization
    with pytest.raises(ValueError, match="quantization"):
        msgspec.convert({**quantization.to_dict(), **change}, Quantization)


RECORD = Quantization(
    "int4",
    4,
    "matmulnbits",
    "int8",
    {"w": QuantizedTensor((4, 64), 32)},
    (),
    "a tool",
    Method("distill", {"rate": 0.001}, {"file": "text", "tokens": 5}, {"w": LearnedTensor(0.1)}),
)


@pytest.mark.parametrize(
    "change",
    [{"name": 3}, {"tensors": {"v": {"distance": 1, "output_error": 1, "nearest_error": 1}}}, {"tensors": 3}],
    ids=str,
)
def test_a_damaged_method_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Expected|quantization"):
        msgspec.convert({**RECORD.to_dict(), "method": {**asdict(RECORD.method), **change}}, Quantization)


@pytest.mark.parametrize(
    ("change", "scheme", "form"),
    [
        ({"block_size": 24}, "int4", "matmulnbits"),
        ({"block_size": 32}, "nvfp4", "qdq"),
        ({"shape": [0, 64]}, "int4", "matmulnbits"),
        ({"granularity": "channel"}, "int4", "qdq"),
        ({"granularity": "row"}, "fp8", "qdq"),
        ({"zero_points": True}, "int4", "qdq"),
        ({"zero_points": 1}, "int4", "matmulnbits"),
        ({"bits": 3}, "int4", "matmulnbits"),
        ({"bits": 8.0}, "int4", "matmulnbits"),
        ({"bits": 8}, "nvfp4", "qdq"),
    ],
    ids=str,
)
def test_a_damaged_weight_is_refused(change: dict[str, Any], scheme: str, form: str) -> None:
    data = {"scheme": scheme, "bits": SCHEMES[scheme], "format": form, "activations": "float", "kept": [], "tool": "t"}
    plain = {"shape": [5, 64], "block_size": 16}
    msgspec.convert({**data, "tensors": {"w": plain}}, Quantization)
    with pytest.raises(ValueError, match=r"quantization of w|Expected"):
        msgspec.convert({**data, "tensors": {"w": {**plain, **change}}}, Quantization)


def test_no_suffix_of_a_part_ends_with_another() -> None:
    """Initializers of parts are identified by the suffixes of their names."""
    assert not [(a, b) for a in PARTS for b in PARTS if a != b and a.endswith(b)]
