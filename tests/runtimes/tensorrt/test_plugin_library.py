"""The plugin library is found where it was built, and refused where it is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt.plugin_library import default_library, register


def test_it_lies_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_library().parent == tmp_path / "lucid-deploy" and default_library().suffix == ".so"
    assert not default_library().parent.exists(), "nothing is made to say where it would be"


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_what_is_no_library_is_not_registered(content: bytes | None, tmp_path: Path) -> None:
    library = tmp_path / "plugin.so"
    if content is not None:
        library.write_bytes(content)
    with pytest.raises(LucidError, match=str(library)):
        register(library, SimpleNamespace())
