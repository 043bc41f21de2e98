"""Names of what quantized weights are stored in."""

from __future__ import annotations

import numpy as np

from lucid_deploy.artifact import quantization_names
from lucid_deploy.artifact.quantization_names import PARTS, SCHEMES, TYPE_BITS


def test_no_part_is_taken_for_another() -> None:
    """Graphs' initializers are told apart by how their names end; every name that begins with a dot is one."""
    assert not [(a, b) for a in PARTS for b in PARTS if a != b and a.endswith(b)]
    named = {value for value in vars(quantization_names).values() if isinstance(value, str) and value.startswith(".")}
    assert named == set(PARTS)


def test_bits_of_types_are_those_of_numpy() -> None:
    for name in ("float32", "float16", "uint8", "int8"):
        assert TYPE_BITS[name] == 8 * np.dtype(name).itemsize
    assert all(bits in (4, 8) for bits in SCHEMES.values())
