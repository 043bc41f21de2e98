"""TensorRT-RTX or TensorRT: which is taken, and what it cannot do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt.backend import Backend


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return a function that installs a module in place of a TensorRT package; the two of them are gone before."""
    for name in ("tensorrt_rtx", "tensorrt"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name)

    return install


def test_a_type_that_the_backend_lacks() -> None:
    trt = SimpleNamespace(DataType=SimpleNamespace(FLOAT=0, HALF=1))
    with pytest.raises(
        LucidError, match=r"TensorRT 8 has no type bfloat16\. Export again with --dtype float32 or float16"
    ):
        Backend("tensorrt", "TensorRT", trt, "8").check_dtype("bfloat16")


@pytest.mark.parametrize(
    ("name", "version", "static", "message"),
    [
        ("tensorrt", "10.13.3.9", False, r"TensorRT 10\.13\.3\.9 is too old for engines, which need 10\.14 or newer"),
        ("tensorrt", "10.14.1.48", True, r"static cache, which need 10\.15 or newer.*, or export with --cache growing"),
        ("tensorrt-rtx", "1.6.0.41", False, r"TensorRT-RTX 1\.6\.0\.41 is too old .* 1\.7 or newer\. Run: pip install"),
    ],
)
def test_too_old(name: str, version: str, static: bool, message: str) -> None:
    backend = Backend(name, {"tensorrt": "TensorRT"}.get(name, "TensorRT-RTX"), SimpleNamespace(), version)
    with pytest.raises(LucidError, match=message) as raised:
        backend.check_version(static)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "version", "static"),
    [
        ("tensorrt", "10.14", False),
        ("tensorrt", "10.15.1.29", True),
        ("tensorrt", "11.1", True),
        ("tensorrt-rtx", "1.7.0", True),
        ("tensorrt", "built by hand", True),
    ],
)
def test_new_enough(name: str, version: str, static: bool) -> None:
    Backend(name, name, SimpleNamespace(), version).check_version(static)
