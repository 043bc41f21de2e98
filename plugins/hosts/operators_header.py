"""Write the table of operators as a C++ header: ``python -m lucid_deploy.plugins.hosts.operators_header``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from lucid_deploy.files import atomic_write
from lucid_deploy.plugins.table import (
    DIAGONAL,
    DOMAIN,
    EPSILON,
    IN_ONNXRUNTIME,
    IN_TENSORRT,
    SCALE,
    VERSION,
    Operator,
)

HEADER = Path(__file__).with_name("operators_generated.h")


def header_text() -> str:
    """Return the text of :data:`HEADER`; a test checks that the file is up to date."""
    structs = "\n".join("\n".join(_struct(each)) for each in dict.fromkeys((*IN_TENSORRT, *IN_ONNXRUNTIME)))
    return f"""// Made from plugins/table.py. After a change: python -m lucid_deploy.plugins.hosts.operators_header
// In and Out hold the positions of an operator's tensors; kCount is how many there are.
#pragma once

namespace lucid::table {{

constexpr char const* kDomain = "{DOMAIN}";
constexpr int kVersion = {VERSION};
constexpr char const* kVersionText = "{VERSION}";
constexpr char const* kEpsilon = "{EPSILON.name}";
constexpr char const* kDiagonal = "{DIAGONAL.name}";
constexpr char const* kScale = "{SCALE.name}";

{structs}
}} // namespace lucid::table
"""


def _struct(operator: Operator) -> Iterator[str]:
    yield f"struct {operator.name} {{"
    yield f'    static constexpr char const* kName = "{operator.name}";'
    yield from _positions("In", operator.input_names)
    yield from _positions("Out", operator.output_names)
    yield "};\n"


def _positions(name: str, tensors: Iterable[str]) -> Iterator[str]:
    yield f"    struct {name} {{"
    yield f"        enum : int {{ {', '.join([*tensors, 'kCount'])} }};"
    yield "    };"


if __name__ == "__main__":
    atomic_write(HEADER, header_text().encode())
