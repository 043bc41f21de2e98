"""Where libraries are found; both hosts refuse libraries for other processors and truncated ones."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts import libraries
from lucid_deploy.plugins.hosts.libraries import built_for, cache_folder, load_obstacle, origin, prebuilt
from lucid_deploy.plugins.hosts.onnxruntime.build import (
    LIBRARY_NAME,
    ORT_ABI,
    default_ort_library,
    file_hash,
    kernels_name,
    source_hash,
    user_ort_library,
)
from lucid_deploy.plugins.hosts.tensorrt.build import check_plugin


def test_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "lucid-deploy"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # the same as none
    assert cache_folder() == tmp_path / ".cache" / "lucid-deploy"
    assert not list(tmp_path.iterdir()), "the function must not create the folder"


def test_the_wheels_library_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prebuilt(LIBRARY_NAME) is None and default_ort_library() == user_ort_library(), "a checkout has none"
    assert origin(user_ort_library()) == "built here"
    monkeypatch.setattr(libraries, "PREBUILT", tmp_path)
    assert default_ort_library() == user_ort_library(), "another library may be in the folder, this one is not"
    (tmp_path / LIBRARY_NAME).touch()
    assert default_ort_library() == tmp_path / LIBRARY_NAME != user_ort_library()
    assert origin(default_ort_library()) == "from the wheel"


def elf(path: Path, machine: int, big: bool = False) -> Path:
    number = machine.to_bytes(2, "big" if big else "little")
    path.write_bytes(b"\x7fELF\x02" + (b"\x02" if big else b"\x01") + bytes(12) + number + bytes(44))
    return path


@pytest.mark.parametrize(
    ("machine", "big", "name"), [(62, False, "x86_64"), (183, True, "aarch64"), (7, False, "processors of type 7")]
)
def test_built_for_reads_the_elf_header(machine: int, big: bool, name: str, tmp_path: Path) -> None:
    assert built_for(elf(tmp_path / "lib.so", machine, big)) == name


def test_both_hosts_refuse_other_processors_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    library = elf(tmp_path / "lib.so", 183)
    record = {"abi": ORT_ABI, "sources": source_hash(), "sha256": file_hash(library)}
    (tmp_path / "lib.so.json").write_text(json.dumps(record))
    for check in (check_plugin, kernels_name):
        with pytest.raises(LucidError, match="it was built for aarch64 and this machine is x86_64") as raised:
            check(library)
        assert "\n" not in str(raised.value) and "lucid-deploy plugin build" in str(raised.value)


@pytest.mark.parametrize("missing", [1, 40_000])
def test_a_truncated_library_is_refused_before_it_is_loaded(missing: int, tmp_path: Path) -> None:
    """Loading it would end the process with a bus error, so the test does it in another process."""
    text = 'extern "C" { extern const char lucid[65536] = {1}; int lucidPluginAbi() { return lucid[65535]; } }\n'
    (tmp_path / "lib.cpp").write_text(text)
    library = tmp_path / "lib.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, tmp_path / "lib.cpp"], check=True)
    whole = library.read_bytes()
    assert load_obstacle(library) == ""
    library.write_bytes(whole[:-missing])
    assert load_obstacle(library) == f"it is truncated: it has {len(whole) - missing} of {len(whole)} bytes"
    code = "import sys; from pathlib import Path; from lucid_deploy.plugins.hosts.tensorrt.build import check_plugin\n"
    code += "try: check_plugin(Path(sys.argv[1]))\nexcept Exception as error: print(error)"
    ran = subprocess.run([sys.executable, "-c", code, library], capture_output=True, text=True)
    assert ran.returncode == 0 and f"{library} is not a usable plugin library: it is truncated" in ran.stdout
