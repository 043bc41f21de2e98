"""Generate a C++ header from the table of operators, for compiling the plugin libraries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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

HEADER = "operators_generated.h"  # builds write it into the temporary folder in which they compile


def header_text() -> str:
    """Return the header: domain, version, names of attributes and operators, positions of inputs and outputs."""
    structs = "\n".join("\n".join(_struct(each)) for each in dict.fromkeys((*IN_TENSORRT, *IN_ONNXRUNTIME)))
    return f"""// In and Out hold the positions of an operator's tensors; kCount is how many there are.
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
