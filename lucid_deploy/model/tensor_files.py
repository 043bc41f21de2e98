"""Find the tensors of a checkpoint in a single safetensors file or in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError, in_one_line
from lucid_deploy.json_fields import clipped
from lucid_deploy.model.variants import listed

SINGLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"

_LONGEST_NAME = 255  # the limit of file names on Linux and macOS, in bytes


def find_tensor_files(directory: Path) -> dict[str, Path]:
    """Return the file of every tensor, by tensor name; LucidError if files are missing, damaged or ambiguous."""
    index, single = directory / INDEX, directory / SINGLE
    if index.is_file():
        return _sharded(index, single)
    if single.is_file():
        return {name: single for name in open_safetensors(single).keys()}  # noqa: SIM118 (not a dict)
    raise LucidError(_without_safetensors(directory))


def refuse_adapter(directory: Path) -> None:
    """Raise a LucidError if a directory holds an adapter, which transformers would add to the weights."""
    if (directory / ADAPTER).is_file():
        raise LucidError(
            f"{directory} has an adapter, such as LoRA ({ADAPTER}). Export the model that it was trained on, with this "
            f"folder as --merge-adapter. If these weights are merged already, export a folder without {ADAPTER}."
        )


def _sharded(index: Path, single: Path) -> dict[str, Path]:
    directory = index.parent
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name: directory / file for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LucidError(f"{index} is not an index of safetensors: {error!r}") from error
    # Compare names without resolving links: download caches store checkpoints as links.
    outside = sorted({file for file in weight_map.values() if Path(file).name != file})
    if outside:
        raise LucidError(f"{index} names shards that do not lie beside it, which are not read: {listed(outside)}.")
    long = sorted({file for file in weight_map.values() if len(file.encode(errors="surrogatepass")) > _LONGEST_NAME})
    if long:
        raise LucidError(f"{index} has a file name of more than {_LONGEST_NAME} bytes: {clipped(long[0])}.")
    if single.is_file() and single not in files.values():
        raise LucidError(
            f"{directory} has {SINGLE}, but {INDEX} lists other shards. transformers reads the former, other programs "
            "the latter, and they may be different models. Remove one of them."
        )
    missing = sorted({path.name for path in files.values() if not path.is_file()})
    if missing:
        raise LucidError(f"{directory}: shards named by the index are missing: {listed(missing)}.")
    stored = {path: set(open_safetensors(path).keys()) for path in sorted(set(files.values()))}
    for path, names in stored.items():
        absent = sorted(name for name, file in files.items() if file == path and name not in names)
        if absent:
            raise LucidError(f"{path} lacks tensors that the index places there: {listed(absent)}.")
    for path, names in stored.items():
        for name in names - files.keys():
            files[name] = path  # a tensor missing from the index; transformers reads all tensors of the shards
        twice = sorted(name for name in names if files[name] != path)
        if twice:
            raise LucidError(
                f"{path} and {files[twice[0]].name} beside it both hold {listed(twice)}. transformers uses the last "
                "one, other programs the one in the index, and they may differ. Save the shards again."
            )
    return files


def _without_safetensors(directory: Path) -> str:
    """Return the error message, with a remedy, for a directory with neither ``SINGLE`` nor ``INDEX``."""
    if (directory / "lucid.json").is_file():
        return f"{directory} is an exported artifact; a checkpoint is needed, such as the one it came from."
    if any(
        file for kind in ("*.bin", "*.pt", "*.pth", "zero_to_fp32.py", "**/*.distcp") for file in directory.glob(kind)
    ):
        return (
            f"{directory} holds pickled weights or a trainer's shards. Pickle can run code, so it is not read; save "
            "the checkpoint as safetensors (transformers: save_pretrained)."
        )
    shards = sorted(path.name for path in directory.glob("model-*-of-*.safetensors"))
    if shards:
        return f"{directory} has shards, {listed(shards)}, but not {INDEX}, which lists their tensors. Copy it there."
    return f"{directory} has neither {SINGLE} nor {INDEX}."


def open_safetensors(path: Path) -> Any:
    """Open a safetensors file for reading single tensors; LucidError if it cannot be read."""
    import safetensors

    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:  # RuntimeError: PyTorch opens it too
        if isinstance(error, OSError) and error.errno is not None:  # a file system error, not invalid content
            raise LucidError(f"{path} cannot be read: {error.strerror}.") from error
        said = in_one_line(error)
        raise LucidError(f"{path} is not a readable safetensors file (cut or corrupted?): {said}") from error
