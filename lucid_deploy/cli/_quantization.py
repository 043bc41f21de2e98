"""How commands speak about a quantized artifact."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact.quantization import AUTO, STORED

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.artifact.quantization import Method


def quantization_facts(artifact: Artifact) -> dict[str, Any] | None:
    """Return the manifest's record and how much smaller the weights are, as plain data; None if there is none."""
    from lucid_deploy.runtimes.inspection import compression

    record = artifact.manifest.quantization
    if record is None:
        return None
    return {**record.to_dict(), "block_size": record.block_size, "compression": compression(artifact)}


def quantization_sentence(artifact: Artifact) -> str:
    """Describe the quantization of an artifact that has one, in a line."""
    from lucid_deploy.runtimes.inspection import compression

    record = artifact.manifest.quantization
    assert record is not None
    sharing = record.sharing
    how = f"in {sharing}" if sharing.startswith("blocks") else f"with {sharing}"
    where = f"{record.format}; on the CPU " if record.activations == "int8" else f"{record.format}; "
    learned = method_sentence(record.method)
    kept = [name.removeprefix("model.").removesuffix(".weight") for name in record.kept]
    shown = ", ".join(kept[:4]) + (f" and {len(kept) - 4} more" if len(kept) > 4 else "")
    return (
        f"Quantized {len(record.tensors)} weights to {record.scheme} {how} ({where}{record.inputs}); kept in "
        f"{artifact.manifest.dtype}: {shown or 'nothing'}. The weights "
        f"are {compression(artifact):.1f} times smaller than in {artifact.manifest.dtype}.{learned}"
    )


def method_sentence(method: Method) -> str:
    """Say how numbers were chosen, after a space; nothing if all are the nearest."""
    if method.name == STORED:
        return f" The numbers are those of the checkpoint, which {method.settings['layout']} has quantized."
    if not method.tensors:
        return ""
    ratios = [found.output_error / found.nearest_error for found in method.tensors.values() if found.nearest_error]
    wide = [kind for kind, bits in method.settings.get("bits", {}).items() if bits == 8]
    mixed = f", with 8 bits for {', '.join(wide) or 'none'}" if method.name == AUTO else ""
    share = f"; their layers' errors are {median(ratios):.2f} of round-to-nearest's (median)" if ratios else ""
    text = method.calibration
    return (
        f" The numbers of {len(method.tensors)} were chosen by {method.name} over {text['tokens']} tokens of "
        f"{text['file']}{mixed}{share}."
    )
