"""The C++ header of the table of operators."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from lucid_deploy.plugins.hosts.compiler import find_compiler
from lucid_deploy.plugins.hosts.operators_header import HEADER, header_text
from lucid_deploy.plugins.table import DOMAIN, EPSILON, IN_ONNXRUNTIME, IN_TENSORRT, VERSION


def test_the_header_is_that_of_the_table() -> None:
    assert HEADER.read_text() == header_text(), "run: python -m lucid_deploy.plugins.hosts.operators_header"


def test_a_compiler_reads_the_tables_names_and_places(tmp_path: Path) -> None:
    checks = [f"static_assert(kVersion == {VERSION});"]
    words = [("kDomain", DOMAIN), ("kVersionText", str(VERSION)), ("kEpsilon", EPSILON.name)]
    for operator in {*IN_TENSORRT, *IN_ONNXRUNTIME}:
        words.append((f"{operator.name}::kName", operator.name))
        for group, names in (("In", operator.input_names), ("Out", operator.output_names)):
            places = [*enumerate(names), (len(names), "kCount")]
            checks += [f"static_assert({operator.name}::{group}::{name} == {place});" for place, name in places]
    checks += [f'static_assert(std::string_view({name}) == "{text}");' for name, text in words]
    source = tmp_path / "check.cpp"
    lines = [f'#include "{HEADER}"', "#include <string_view>", "using namespace lucid::table;", *checks]
    source.write_text("\n".join(lines))
    command = [find_compiler(), "-std=c++17", "-fsyntax-only", str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_no_operator_is_there_twice() -> None:
    structs = re.findall(r"^struct (\w+) \{", header_text(), re.MULTILINE)
    assert sorted(structs) == sorted({each.name for each in (*IN_TENSORRT, *IN_ONNXRUNTIME)})
