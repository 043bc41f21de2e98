"""A library for other processors is told from one for these, and a cut one from a whole one: both hosts say so."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.elf import built_for, cut_short, wrong_machine
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A library of 64 KiB of constants."""
    folder = tmp_path_factory.mktemp("whole")
    text = 'extern "C" { extern const char lucid[65536] = {1}; int lucidPluginAbi() { return lucid[65535]; } }\n'
    (folder / "lib.cpp").write_text(text)
    subprocess.run(["g++", "-shared", "-fPIC", "-o", folder / "lib.so", folder / "lib.cpp"], check=True)
    return (folder / "lib.so").read_bytes()


@pytest.mark.parametrize("missing", [1, 3000, 40_000, 66_000])
def test_a_cut_library_is_refused_before_the_loader_maps_it(whole: bytes, missing: int, tmp_path: Path) -> None:
    """What is missing would end the process with a bus error and no word; so it is tried in another one."""
    library = tmp_path / "lib.so"
    library.write_bytes(whole)
    assert cut_short(library) == ""
    library.write_bytes(whole[:-missing])
    assert cut_short(library) == f"it was cut: it has {len(whole) - missing} of {len(whole)} bytes"
    code = "import sys; from pathlib import Path; from lucid_deploy.plugins.hosts.tensorrt.build import check_plugin\n"
    code += "try: check_plugin(Path(sys.argv[1]))\nexcept Exception as error: print(error)"
    ran = subprocess.run([sys.executable, "-c", code, library], capture_output=True, text=True)
    assert ran.returncode == 0 and f"{library} is not a usable plugin library: it was cut" in ran.stdout


def test_without_sections_the_segments_say_it(whole: bytes, tmp_path: Path) -> None:
    stripped = bytearray(whole)
    stripped[40:48] = bytes(8)
    stripped[60:62] = bytes(2)
    library = tmp_path / "lib.so"
    library.write_bytes(stripped)
    assert cut_short(library) == ""
    library.write_bytes(stripped[:30_000])
    assert cut_short(library).startswith("it was cut: it has 30000 of ")
