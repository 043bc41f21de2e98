"""The table of ``gpu_static`` shows the registers, memory and spills of the compiled kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("triton", reason='compiled kernels are read with Triton: pip install -e ".[kernels]"')

from lucid_deploy.plugins.hosts.triton import aot
from tools.gpu import gpu_static
from tools.gpu.machine_code import disassemble, spills

NAME = "precondition_float16_d32_u8"


def test_a_kernel_is_reported_and_a_spill_in_its_hot_loop_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [found] = gpu_static.report([80], lambda variant: variant.name == NAME, cache=tmp_path)
    [kernel] = aot.compile_kernels([80], ptx=False, select=lambda variant: variant.name == NAME, cache=tmp_path)
    code = disassemble(kernel.image, kernel.entry)
    assert (found.variant, found.arch, found.warps) == (NAME, 80, kernel.num_warps)
    assert (found.registers, found.stack, found.shared) == (code.registers, code.stack, kernel.shared_bytes)
    assert found.loop == len(code.hot_loop) > 0 and found.spills == code.spills
    assert (found.in_loop, found.around_it) == (0, spills(code.enclosing))
    for in_loop in (0, 2):
        monkeypatch.setattr(gpu_static, "report", lambda *_, n=in_loop, **__: [replace(found, in_loop=n)])
        result = CliRunner().invoke(gpu_static.main, [])
        assert result.exit_code == int(in_loop > 0) and NAME in result.output
