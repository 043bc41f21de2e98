"""The report is what the compiler made of the kernels."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason='compiled kernels are read with Triton: pip install -e ".[kernels]"')

from lucid_deploy.plugins.hosts.triton import aot
from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel
from lucid_deploy.plugins.hosts.triton.machine_code import disassemble
from lucid_deploy.plugins.hosts.triton.static_report import KernelReport, ratios, report

NAME = "precondition_float16_d32_u8"


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[list[KernelReport], list[CompiledKernel]]:
    cache = tmp_path_factory.mktemp("kernels")
    reports = report([80], lambda variant: variant.name == NAME, cache=cache)
    return reports, aot.compile_kernels([80], ptx=False, select=lambda variant: variant.name == NAME, cache=cache)


def test_the_solve_and_its_yardstick(found) -> None:
    (solve, plain), [kernel] = found
    assert (solve.variant, plain.variant) == (NAME, "causal_attention_float16_d32_u8")
    code = disassemble(kernel.image, kernel.entry)
    assert (solve.registers, solve.stack, solve.spills) == (code.registers, code.stack, code.spills)
    assert solve.loop == len(code.hot_loop) and solve.shared == kernel.shared_bytes
    for each in (solve, plain):
        assert each.cycles == max(each.units.values()) == each.units[each.bound_by]
        assert each.units["tensor"] > 0 and each.units["special"] > 0 and each.resident_warps >= each.num_warps
    assert plain.units["tensor"] == solve.units["tensor"], "the same tile"
    assert ratios([solve, plain]) == {(80, NAME): solve.cycles / plain.cycles}
    assert json.loads(json.dumps(solve.as_json()))["variant"] == NAME


def test_ratios_only_where_both_are_known(found) -> None:
    solve, plain = found[0]
    assert ratios([solve]) == {}
    assert ratios([replace(solve, cycles=None), plain]) == {}
