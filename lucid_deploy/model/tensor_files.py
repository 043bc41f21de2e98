"""The files of a checkpoint's tensors: single or sharded safetensors, and what is said where there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError, in_one_line
from lucid_deploy.model.variants import listed


def find_tensor_files(directory: Path) -> dict[str, Path]:
    """Map every tensor to the file that holds it.

    Raises:
        LucidError: No safetensors, an index that cannot be read or leads elsewhere, a shard or tensor that is missing.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {name: directory / file for name, file in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LucidError(f"{index} is not an index of safetensors: {error!r}") from error
        # By name, not by where links lead: download caches keep checkpoints as links into a store.
        outside = sorted({file for file in weight_map.values() if Path(file).name != file})
        if outside:
            raise LucidError(f"{index} points outside the checkpoint: {listed(outside)}.")
        missing = sorted({path.name for path in files.values() if not path.is_file()})
        if missing:
            raise LucidError(f"{directory}: shards named by the index are missing: {listed(missing)}.")
        for path in sorted(set(files.values())):
            stored = set(open_safetensors(path).keys())
            absent = sorted(name for name, file in files.items() if file == path and name not in stored)
            if absent:
                raise LucidError(f"{path} lacks tensors that the index places there: {listed(absent)}.")
        return files
    single = directory / "model.safetensors"
    if single.is_file():
        return {name: single for name in open_safetensors(single).keys()}  # noqa: SIM118 (not a dict)
    raise LucidError(_without_safetensors(directory))


def _without_safetensors(directory: Path) -> str:
    """Say what a directory without safetensors is, and what to do with it."""
    if (directory / "lucid.json").is_file():
        return f"{directory} is an exported artifact; a checkpoint is needed, such as the one it came from."
    beside = "and put config.json and the tokenizer beside them."
    if (directory / "zero_to_fp32.py").is_file():
        return (
            f"{directory} is a checkpoint of DeepSpeed, whose shards are pickled. Make safetensors with its script, "
            f"python zero_to_fp32.py . OUTPUT --safe_serialization, {beside}"
        )
    if any(directory.glob("*.distcp")) or any(directory.glob("*/*.distcp")):
        return (
            f"{directory} is a sharded checkpoint of FSDP. Merge it into safetensors, accelerate merge-weights "
            f"DIRECTORY_OF_SHARDS OUTPUT, {beside}"
        )
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")) or any(directory.glob("*.pth")):
        return (
            f"{directory} holds pickled weights only. Pickle can run code, so it is not read; save the checkpoint as "
            "safetensors (transformers: save_pretrained(..., safe_serialization=True))."
        )
    return f"{directory} has neither model.safetensors nor model.safetensors.index.json."


def open_safetensors(path: Path) -> Any:
    """Open a file of safetensors, whose tensors are read when asked for.

    Raises:
        LucidError: Not a readable one.
    """
    import safetensors

    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:  # the last is PyTorch's, which opens it too
        said = in_one_line(error)
        raise LucidError(f"{path} is not a readable safetensors file (cut or corrupted?): {said}") from error
