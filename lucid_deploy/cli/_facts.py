"""Lines about an artifact's quantization that both ``export`` and ``inspect`` print."""

from __future__ import annotations

from lucid_deploy.artifact.quantization import STORED, Method, Quantization, short_name
from lucid_deploy.cli._console import show


def show_quantization(record: Quantization, dtype: str, compression: float) -> None:
    """Print what is quantized and how. All weights would be ``compression`` × larger in ``dtype``, that of the rest."""
    sharing = record.sharing
    how = f"in {sharing}" if sharing.startswith("blocks") else f"with {sharing}"
    kept = [short_name(name) for name in record.kept]
    shown = ", ".join(kept[:4]) + (f" and {len(kept) - 4} more" if len(kept) > 4 else "")
    others = [name for name in record.tensors if record.bits_of(name) != record.bits]
    which = short_name(others[0]) if len(others) == 1 else f"{len(others)} of them"
    other = f", {which} to {record.bits_of(others[0])} bits," if others else ""
    show(
        f"Quantized {len(record.tensors)} weights to {record.scheme}{other} {how} ({record.format}) by {record.tool}; "
        f"kept in {dtype}: {shown or 'nothing'}. The weights are {compression:.1f} times smaller than in {dtype}."
        f"{method_sentence(record.method)}"
    )


def method_sentence(method: Method) -> str:
    """Return sentences on stored values, calibration and equalization, each after a space; empty if none applies."""
    if method.name == STORED:
        return f" The numbers are those of the checkpoint, which {method.settings['layout']} has quantized."
    equalized = " Columns were equalized before." if "equalization" in method.settings else ""
    if not method.tensors:
        return equalized
    text, unseen = method.calibration, method.settings.get("experts_without_text", 0)
    without = (
        f" {unseen} of {method.settings['experts']} matrices of experts got none of these tokens and are rounded "
        "without calibration."
        if unseen
        else ""
    )
    return (
        f" The scales of {len(method.tensors)} weights were chosen by {method.name} over {text['tokens']} tokens of "
        f"{text['file']}.{without}{equalized}"
    )
