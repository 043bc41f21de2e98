"""What learning has found so far, on disk: an export that is interrupted goes on from there.

Every finished layer is a file of its own, whole or not there. What the next layer is given lies beside the last one, so
that nothing is computed again and the result is the same to the byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.quantization_method import LearnedTensor
from lucid_deploy.errors import LucidError
from lucid_deploy.files import write_whole
from lucid_deploy.ort import import_onnxruntime
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    import torch

    from lucid_deploy.artifact.quantization import Quantization
    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.model.checkpoint import Checkpoint

_NUMBERS, _SCALES, _FOLDED, _MEASURED = ".numbers", ".scales", ".folded", "measured.json"
CODE = (  # packages, and which of their files decide what is learned
    ("lucid_deploy.artifact", "quanti*.py"),
    ("lucid_deploy.artifact", "folded_scales.py"),
    ("lucid_deploy.export", "quantize*.py"),
    ("lucid_deploy.export", "layer_by_layer.py"),
    ("lucid_deploy.export", "rounding/*.py"),
    ("lucid_deploy.model", "**/*.py"),
    ("lucid_deploy.plugins", "**/*.py"),  # the operators that the model's layers call
)
Streams = list[tuple["torch.Tensor", "torch.Tensor"]]  # of the rounded model, and of the exact one
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class LearnedWeights:
    """What was chosen.

    Attributes:
        parts: Packed bytes ``(out, blocks, block_size · bits / 8)`` and scales, float32 ``(out, blocks)``, by the
            checkpoint's names.
        tensors: For the manifest, by the same names.
        folded: Scales of inputs that went into weights, see :mod:`lucid_deploy.artifact.folded_scales`.
    """

    parts: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    tensors: dict[str, LearnedTensor] = field(default_factory=dict)
    folded: dict[str, Array] = field(default_factory=dict)


def learning_key(
    checkpoint: Checkpoint, quantization: Quantization, rows: CalibrationRows, dtype: str, settings: dict[str, Any]
) -> str:
    """Return a sha256 of everything that decides what is learned: files, text, settings, code, versions, and threads.

    Args:
        checkpoint: The opened checkpoint; its files are read.
        quantization: What is quantized.
        rows: What is learned from.
        dtype: Of the scales.
        settings: The method's.
    """
    import torch

    onnxruntime = import_onnxruntime()
    digest = hashlib.sha256(code_digest().encode())
    for path in sorted((*checkpoint.directory.glob("*.safetensors"), *checkpoint.directory.glob("*.json"))):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    for ids in rows.rows:
        digest.update(repr(ids.shape).encode() + ids.tobytes())
    cpu = (torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())  # sums depend on how they are parted
    facts = (
        checkpoint.config,
        quantization.to_dict(),
        rows.facts,
        dtype,
        settings,
        __version__,
        *(library.__version__ for library in (torch, onnxruntime, np)),
        cpu,
    )
    digest.update(repr(facts).encode())
    return digest.hexdigest()


def code_digest(root: Path | None = None) -> str:
    """Return a sha256 of the code that decides what is learned from the same files: :data:`CODE`, in its packages.

    Args:
        root: Where the packages are, in folders of their last names; None: where they were imported from.
    """
    digest = hashlib.sha256()
    for package, pattern in CODE:
        folder = Path(str(files(package))) if root is None else root / package.rpartition(".")[2]
        for path in sorted(folder.glob(pattern)):
            digest.update(path.relative_to(folder).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@dataclass(frozen=True)
class UnfinishedLearning:
    """What has been learned, in a directory.

    Attributes:
        directory: Where; None: nothing is kept.
    """

    directory: Path | None = None

    def load(self, learned: LearnedWeights) -> tuple[int, Streams]:
        """Read the layers that are finished.

        Args:
            learned: Where their numbers go.

        Returns:
            How many there are, and what the next one is given; empty where none is, or all are.

        Raises:
            LucidError: A file is damaged.
        """
        if self.directory is None:
            return 0, []
        count = 0
        with self._readable():
            while self._layer(count).exists():
                self._read_layer(count, learned)
                count += 1
            return count, self._read_streams(count - 1) if count else []

    def keep(
        self, index: int, learned: LearnedWeights, names: Iterable[str], streams: Streams, folded: Iterable[str] = ()
    ) -> None:
        """Write a finished layer; the streams of the one before are removed.

        Args:
            index: Which layer; the head comes after the last.
            learned: What was found so far.
            names: The layer's weights.
            streams: What the next layer is given.
            folded: Names of the scales that were found with the layer.

        Raises:
            OSError: A full disk, or another fault of the file system.
        """
        if self.directory is None:
            return
        from safetensors.numpy import save as save_arrays
        from safetensors.torch import save

        names = list(names)
        parts = {
            name + part: np.ascontiguousarray(array)
            for name in names
            for part, array in zip((_NUMBERS, _SCALES), learned.parts[name], strict=True)
        }
        parts |= {name + _FOLDED: np.ascontiguousarray(learned.folded[name]) for name in folded}
        facts = json.dumps({name: asdict(learned.tensors[name]) for name in names})
        tensors = {
            f"{pair}.{place}": stream.contiguous()
            for pair, both in enumerate(streams)
            for place, stream in enumerate(both)
        }
        write_whole(self._streams(index), save(tensors))
        write_whole(self._layer(index), save_arrays(parts, {"tensors": facts}))  # last: now the layer is finished
        self._streams(index - 1).unlink(missing_ok=True)

    def measured(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return what was measured under a key before; measure and remember it, if it was not.

        Args:
            key: What is measured.
            measure: Does it; returns what JSON holds.
        """
        if self.directory is None:
            return measure()
        path = self.directory / _MEASURED
        with self._readable():
            known: dict[str, Any] = dict(json.loads(path.read_bytes())) if path.exists() else {}
        if key not in known:
            known[key] = measure()
            write_whole(path, json.dumps(known).encode())
        return known[key]

    @contextmanager
    def told_of(self) -> Iterator[None]:
        """Add a note to what the block raises, if layers or measured choices are kept."""
        try:
            yield
        except BaseException as error:  # Ctrl-C too
            if self.directory is not None and (self._layer(0).exists() or (self.directory / _MEASURED).exists()):
                error.add_note(
                    f"Finished layers are kept in {self.directory}; the same command goes on with them, and clean "
                    "removes them."
                )
            else:
                self._remove()
            raise

    @contextmanager
    def removed_by_errors(self) -> Iterator[None]:
        """Remove what was found if the block raises an error of learning; a full disk is none, nor is full memory."""
        try:
            yield
        except LucidError:
            self._remove()
            raise

    def _remove(self) -> None:
        for pattern in ("layer-*", "streams-*", ".*.lucid.partial", _MEASURED):
            for path in [] if self.directory is None else self.directory.glob(pattern):
                path.unlink(missing_ok=True)

    def _read_layer(self, index: int, learned: LearnedWeights) -> None:
        from safetensors import safe_open

        with safe_open(self._layer(index), "np") as file:
            for name, entry in json.loads(file.metadata()["tensors"]).items():
                learned.parts[name] = (file.get_tensor(name + _NUMBERS), file.get_tensor(name + _SCALES))
                learned.tensors[name] = LearnedTensor(**entry)
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                if name.endswith(_FOLDED):
                    learned.folded[name.removesuffix(_FOLDED)] = file.get_tensor(name)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        from safetensors import SafetensorError

        try:
            yield
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise LucidError(
                f"What an interrupted export had finished is damaged ({self.directory}: {error}). It was removed; run "
                "the command again."
            ) from error

    def _read_streams(self, index: int) -> Streams:
        from safetensors.torch import load_file

        tensors = load_file(self._streams(index))
        return [(tensors[f"{pair}.0"], tensors[f"{pair}.1"]) for pair in range(len(tensors) // 2)]

    def _layer(self, index: int) -> Path:
        assert self.directory is not None
        return self.directory / f"layer-{index:04d}.safetensors"

    def _streams(self, index: int) -> Path:
        assert self.directory is not None
        return self.directory / f"streams-{index:04d}.safetensors"
