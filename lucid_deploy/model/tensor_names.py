"""Names of stored tensors without what training wrappers put before or into them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lucid_deploy.errors import LucidError

# DistributedDataParallel and DeepSpeed; torch.compile; FSDP; activation checkpointing.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_HELD = "model."  # a model kept as an attribute of this name, as training modules of PyTorch Lightning do


def unwrapped(names: Iterable[str], where: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Map names as a model has them to the names that are stored.

    Args:
        names: The stored names.
        where: The checkpoint, for messages.

    Returns:
        Stored name by name, and the parts that were taken off; none for a checkpoint without wrappers.

    Raises:
        LucidError: Two stored names become the same.
    """
    bare = {stored: ".".join(part for part in stored.split(".") if part not in _WRAPPERS) for stored in names}
    parts = {part for stored in bare for part in stored.split(".") if part in _WRAPPERS}
    if any(name.startswith(2 * _HELD) for name in bare.values()):
        bare = {stored: name.removeprefix(_HELD) if _is_held(name) else name for stored, name in bare.items()}
        parts.add(_HELD.removesuffix("."))
    found: dict[str, str] = {}
    for stored, name in bare.items():
        if name in found:
            raise LucidError(f"{where} holds {name} twice, as {found[name]} and {stored}. Remove one of them.")
        found[name] = stored
    return found, tuple(sorted(f"{part}." for part in parts))


def _is_held(name: str) -> bool:
    return name.startswith((2 * _HELD, f"{_HELD}lm_head."))


def other_beginning(missing: Collection[str], unexpected: Collection[str]) -> str | None:
    """Return what stored names begin with in the place of ``model.``; None if that is not what is wrong with them.

    Args:
        missing: Names that a model wants and a checkpoint lacks.
        unexpected: Names that it has and the model does not want.
    """
    wanted = [name.removeprefix(_HELD) for name in missing if name.startswith(_HELD)]
    for name in unexpected:
        beginning = name.removesuffix(wanted[0]) if wanted else name
        if beginning != name and all(beginning + rest in unexpected for rest in wanted):
            return beginning
    return None


def beginning_advice(beginning: str) -> str:
    """Return what is to be done about names of :func:`other_beginning`, as the end of a sentence about them."""
    if not beginning:
        return (
            "without model. in front, as transformers' classes without a head write them. Save the checkpoint from the "
            "class for causal language models."
        )
    return (
        f"that begin with {beginning} where model. is expected, as those of a language model inside of another one do. "
        "Write a checkpoint of this part alone, with model. in its place."
    )
