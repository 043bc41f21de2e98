"""The report is what the compiler made of the kernels."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason='compiled kernels are read with Triton: pip install -e ".[kernels]"')

from lucid_deploy.plugins.hosts.triton import aot
from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel
from tools.gpu.machine_code import disassemble, spills
from tools.gpu.memory_model import CARDS, memory_cycles
from tools.gpu.static_report import (
    KEY_DIGITS,
    KernelReport,
    over_memory,
    ratios,
    report,
    report_keys,
    tile_bytes,
)

NAME = "precondition_float16_d32_u8"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def found(cache) -> tuple[list[KernelReport], list[CompiledKernel]]:
    reports = report([80], lambda variant: variant.name == NAME, cache=cache)
    return reports, aot.compile_kernels([80], ptx=False, select=lambda variant: variant.name == NAME, cache=cache)


def test_the_solve_and_its_yardstick(found) -> None:
    (solve, plain), [kernel] = found
    assert (solve.variant, plain.variant) == (NAME, "causal_attention_float16_d32_u8")
    code = disassemble(kernel.image, kernel.entry)
    assert (solve.registers, solve.stack, solve.spills) == (code.registers, code.stack, code.spills)
    assert solve.loop == len(code.hot_loop) and solve.shared == kernel.shared_bytes
    assert solve.enclosing == len(code.enclosing) > 0 == plain.enclosing, "the solve's loop lies in one that waits"
    assert (solve.enclosing_spills, plain.enclosing_spills) == (spills(code.enclosing), 0)
    for each in (solve, plain):
        assert each.cycles == max(each.units.values()) == each.units[each.bound_by]
        assert each.units["tensor"] > 0 and each.units["special"] > 0 and each.resident_warps >= each.num_warps
    assert plain.units["tensor"] == solve.units["tensor"], "the same tile"
    assert ratios([solve, plain]) == {(80, NAME): solve.cycles / plain.cycles}
    assert json.loads(json.dumps(solve.as_json()))["variant"] == NAME


def test_a_report_has_the_keys_that_its_kernels_are_cached_by(found, cache) -> None:
    """The yardstick of fewest cycles is reported; others were compiled, too."""
    cached = {path.name[:KEY_DIGITS] for path in cache.iterdir()}
    assert {each.key for each in found[0]} < cached and len({each.key for each in found[0]}) == 2
    keys = report_keys(80)
    assert [each.key for each in found[0]] == [keys[each.variant, each.num_warps] for each in found[0]]
    assert len(set(keys.values())) == len(keys) and cached <= set(keys.values())


def test_what_was_compiled_is_described_without_compiling(found, cache, monkeypatch) -> None:
    """The yardsticks are kept, too."""
    reports, _ = found

    def refuse(*arguments: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(aot, "compile_all", lambda work, *_: refuse() if work else iter([]))
    assert report([80], lambda variant: variant.name == NAME, cache=cache) == reports


def test_keys_norms_have_no_attention_beside_them(cache) -> None:
    """They are of the same operator as the solve."""
    name = "key_norms_float16_d32_u4"
    [norms] = report([80], lambda variant: variant.name == name, cache=cache)
    assert norms.variant == name and (norms.loop, norms.cycles, norms.spills) == (0, 0.0, 0)
    assert ratios([norms]) == {}


def test_decoding_is_held_against_what_memory_takes(found) -> None:
    solve, plain = found[0]
    assert over_memory(solve) == over_memory(plain) == {} and tile_bytes(solve) is None
    name, tile = "decode_split_bfloat16_d128_u8_r16", {"BLOCK_N": 64, "BLOCK_D": 128}
    decoding = replace(solve, variant=name, arch=90, constants=tile, cycles=600.0)
    assert tile_bytes(decoding) == 64 * (2 * 128 * 2)
    share = {card.name: 600 / memory_cycles(32_768, card) for card in CARDS[90]}
    assert over_memory(decoding) == share and set(share) == {"H200", "H100"}
    assert over_memory(replace(decoding, cycles=None)) == {}
    assert tile_bytes(replace(decoding, variant="decode_split_float32_d128_u4_r16")) == 65_536
    scaled = replace(decoding, variant="decode_split_float8_bfloat16_d128_u8_r16")
    assert tile_bytes(scaled) == 64 * 2 * (128 + 4)


def test_ratios_only_where_both_are_known(found) -> None:
    solve, plain = found[0]
    assert ratios([solve]) == {}
    assert ratios([replace(solve, cycles=None), plain]) == {}
