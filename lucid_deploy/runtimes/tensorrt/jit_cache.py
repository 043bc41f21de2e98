"""What TensorRT-RTX compiles for a GPU while engines run, kept on disk for the next start.

One file per engine in the user's cache folder, since it depends on this machine's GPU and driver; artifacts travel. Its
name is a hash of engine, TensorRT version and GPU, its first line a hash of the rest. TensorRT itself refuses content
that another driver or another card made.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from lucid_deploy.files import atomic_write
from lucid_deploy.runtimes.tensorrt.backend import Backend
from lucid_deploy.runtimes.tensorrt.device import Device
from lucid_deploy.runtimes.tensorrt.manifest import EngineFile

log = logging.getLogger("lucid_deploy.jit_cache")

_MAGIC = b"lucid-jit-cache 1 "


def jit_cache_path(engine: EngineFile, backend: Backend, gpu: Device) -> Path:
    """Return where the compiled kernels of an engine are kept."""
    from lucid_deploy.plugins.hosts.libraries import cache_folder

    facts = "\n".join((engine.sha256, backend.name, backend.version, gpu.name, str(gpu.capability)))
    return cache_folder() / "jit" / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.bin"


class JitCache:
    """The compiled kernels of one engine, shared by all its contexts. Contexts must be gone before it is.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: Any = None
        self._saved = b""

    def attach(self, config: Any) -> None:
        """Let a context that is made with a runtime configuration use the cache; the first call reads the file.

        Args:
            config: ``IRuntimeConfig`` of the engine. A CUDA context must be current.
        """
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            content = self._read()
            if content and not self._cache.deserialize(content):
                self._say("was made by another driver or on another GPU")
                content = b""
            self._saved = content
        if not config.set_runtime_cache(self._cache):
            log.warning("TensorRT-RTX does not take its runtime cache; every start compiles anew.")

    def save(self) -> None:
        """Write what was compiled since, whole or not at all. A full or read-only disk costs the next start only."""
        if self._cache is None:
            return
        content = bytes(self._cache.serialize())
        if content == self._saved:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            head = _MAGIC + hashlib.sha256(content).hexdigest().encode()
            atomic_write(self.path, head + b"\n" + content, mode=0o600)
        except OSError as error:
            log.warning("Compiled kernels were not kept for the next start: %s: %s", self.path, error.strerror or error)
        else:
            self._saved = content

    def _read(self) -> bytes:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self._say(f"cannot be read ({error.strerror or error})")
            return b""
        head, _, content = data.partition(b"\n")
        if head != _MAGIC + hashlib.sha256(content).hexdigest().encode():
            self._say("is damaged")
            return b""
        return content

    def _say(self, what: str) -> None:
        log.warning("The cache of compiled kernels %s %s: they are compiled anew.", self.path, what)
