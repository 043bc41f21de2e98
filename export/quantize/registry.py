"""The methods of quantization, by the names that ``--method`` takes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lucid_deploy.errors import LucidError
from lucid_deploy.plug import entry_points, plugged

if TYPE_CHECKING:
    from lucid_deploy.export.quantize.method import QuantizationMethod

GROUP = "lucid_deploy.quantization"  # entry points of installed packages: NAME = "package.module:OBJECT"
# Modules of this package, each with an object METHOD. They are imported when a method is used: some need torch.
BUILT_IN = {
    "rtn": "nearest",
    "k_quant": "k_quant",
    "hqq": "hqq",
    "awq": "awq",
    "gptq": "gptq",
    "auto": "automatic",
}


def method_names() -> tuple[str, ...]:
    """Return the names that ``--method`` takes."""
    return tuple(dict.fromkeys((*BUILT_IN, *sorted(entry_points(GROUP)))))


def find_method(name: str) -> QuantizationMethod:
    """Return a method by its name."""
    from lucid_deploy.export.quantize.method import QuantizationMethod

    if name in BUILT_IN:
        built_in: QuantizationMethod = importlib.import_module(f"lucid_deploy.export.quantize.{BUILT_IN[name]}").METHOD
        return built_in
    found = plugged(GROUP, name, QuantizationMethod, "quantization method")
    if found is None:
        raise LucidError(f"--method must be one of {', '.join(method_names())}, not {name!r}.")
    return found
