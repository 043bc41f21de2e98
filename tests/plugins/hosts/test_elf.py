"""A library for other processors is told from one for these, and both hosts say so in one line."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.elf import built_for, wrong_machine
from lucid_deploy.plugins.hosts.onnxruntime.build import ORT_ABI, file_hash, kernels_name, source_hash
from lucid_deploy.plugins.hosts.tensorrt.build import check_plugin


def elf(path: Path, machine: int, big: bool = False) -> Path:
    number = machine.to_bytes(2, "big" if big else "little")
    path.write_bytes(b"\x7fELF\x02" + (b"\x02" if big else b"\x01") + bytes(12) + number + bytes(44))
    return path


@pytest.mark.parametrize(
    ("machine", "big", "name"),
    [(62, False, "x86_64"), (183, False, "aarch64"), (183, True, "aarch64"), (7, False, "processors of number 7")],
)
def test_the_header_says_it(machine: int, big: bool, name: str, tmp_path: Path) -> None:
    assert built_for(elf(tmp_path / "lib.so", machine, big)) == name


def test_what_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(b"\x7fELF")
    assert built_for(tmp_path / "lib.so") is None and wrong_machine(tmp_path / "lib.so") == ""


def test_both_hosts_refuse_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    library = elf(tmp_path / "lib.so", 183)
    record = {"abi": ORT_ABI, "sources": source_hash(), "sha256": file_hash(library)}
    (tmp_path / "lib.so.json").write_text(json.dumps(record))
    for check in (check_plugin, kernels_name):
        with pytest.raises(LucidError, match="it was built for aarch64 and this machine is x86_64") as raised:
            check(library)
        assert "\n" not in str(raised.value) and "lucid-deploy plugin build" in str(raised.value)
