"""Take the bodies off the operators that the plugin library computes."""

from __future__ import annotations

import onnx_ir as ir

from lucid_deploy.plugins.table import DOMAIN
from lucid_deploy.runtimes.tensorrt.operators import PLUGIN_OPERATORS


def strip_bodies(model: ir.Model) -> bool:
    """Remove the ONNX functions of the plugin's operators.

    With a body in the file the parser may take that instead of the plugin, and the body's loop cannot be built.
    Requires: nothing.
    Result: no function of ``Precondition`` or ``DecodeAttention`` is left; their nodes are untouched.

    Returns:
        Whether there was one.
    """
    taken = [key for key in model.functions if key[0] == DOMAIN and key[1] in PLUGIN_OPERATORS]
    for key in taken:
        del model.functions[key]
    return bool(taken)
