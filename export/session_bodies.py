"""Write down the bodies of ``DecodeAttention`` that no artifact has and that sessions read without a compiler.

Run ``python -m lucid_deploy.export.session_bodies`` after a change to their sources,
:mod:`lucid_deploy.plugins.decode_attention.onnx_body_several` and ``onnx_body_int8`` beside it.
"""

from __future__ import annotations

import os
import sys

import onnx

from lucid_deploy.export.functions import function_proto
from lucid_deploy.plugins.hosts.onnxruntime.build import PLUGINS
from lucid_deploy.plugins.table import DECODE_ATTENTION_INT8, DIAGONALS, TRAINING

FOLDER = PLUGINS / "decode_attention"


def texts() -> dict[str, str]:
    """Return the files and what is to be in them, in ONNX's textual form."""
    bodies = {}
    for kind in DIAGONALS:
        training = kind == TRAINING
        bodies[f"int8_{kind}"] = function_proto(DECODE_ATTENTION_INT8.name, training_diagonal=training)
    return {f"{name}.onnxtxt": onnx.printer.to_text(body) for name, body in bodies.items()}


def main() -> None:
    """Write the files, in a process whose order of names is always the same: the compiler's depends on it."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name], {**os.environ, "PYTHONHASHSEED": "0"})
    for name, text in texts().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
