"""The cache of compiled kernels: it returns all kernels of a file, or None."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel, load, save

CODE = CompiledKernel(
    variant="precondition_float16_d64_u8",
    arch=86,
    is_ptx=False,
    entry="precondition_kernel",
    shared_bytes=40960,
    num_warps=4,
    constants={"BLOCK_M": 64, "BLOCK_N": 32},
    arguments=["p_k", "p_v", "n_new"],
    image=b"\x7fELF\n\n" + bytes(range(256)) * 40,  # lines' ends inside
)
KERNELS = [CODE, replace(CODE, is_ptx=True, image=b".version 8.0\n.target sm_86\n"), replace(CODE, image=b"")]


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "entry"
    save(path, KERNELS)
    assert load(path) == KERNELS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "code that runs later: nobody else may change it"
    assert [each.name for each in path.parent.iterdir()] == ["entry"]
    save(path, KERNELS[:1])
    assert load(path) == KERNELS[:1]


@pytest.mark.parametrize("cut", [0, 1, 20, 400, 5000, -1])
def test_a_truncated_file_is_ignored(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "entry"
    save(path, KERNELS)
    path.write_bytes(path.read_bytes()[:cut])
    assert load(path) is None


@pytest.mark.parametrize("place", [-1, -5000])
def test_a_changed_byte_is_detected(tmp_path: Path, place: int) -> None:
    path = tmp_path / "entry"
    save(path, KERNELS)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert load(path) is None
