"""Run one attention layer in this machine's onnxruntime, and compare it with the dense formulas in float64.

A runtime that loads a graph may still compute it wrongly, without an error: onnxruntime 1.23.0 pairs grouped heads in
another order. So the layer has grouped heads, padding, keys that resemble each other, and a cache: two chunks of
prefill and one decoded token. The decoded token's attention is computed by the standard operator too, which decodes in
models of standard attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.ort import import_onnxruntime
from lucid_deploy.plugins.table import CAUSAL_ATTENTION, DECODE_ATTENTION, DOMAIN, PRECONDITION, VERSION

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

Array = np.ndarray[Any, np.dtype[Any]]
ALLOWED = 1e-4  # relative L2 error of a tensor in float32: rounding alone gives 1e-6, heads that are paired wrongly 1
_BATCH, _KV_HEADS, _HEADS, _WIDTH, _EPS = 2, 2, 4, 16, 1e-5
_CHUNKS = (70, 9, 1)  # new tokens of each run: more than two blocks of the solve, some behind a past, one decoded
_INPUTS = ("q", "k", "v", "k_past", "y_past", "mask")
# Operator, inputs, outputs. Attention over keys and Y is LUCID's attention.
_ALL_ROWS = (("Concat", ("k_past", "k"), ("keys",)), ("Concat", ("y_past", "Y"), ("values",)))
_PREFILL = (
    (PRECONDITION.name, _INPUTS[1:], ("Y",)),
    *_ALL_ROWS,
    (CAUSAL_ATTENTION.name, ("q", "keys", "values", "mask"), ("O",)),
)
_DECODE = (
    (DECODE_ATTENTION.name, _INPUTS, ("O", "Y")),
    *_ALL_ROWS,
    ("Unsqueeze", ("mask", "axes"), ("seen",)),
    ("Attention", ("q", "keys", "values", "seen"), ("O of the standard operator",)),
)


@dataclass(frozen=True)
class _Tokens:
    """All tokens of the check: queries, keys, values ``(B, heads, T, D)``, and which are no padding, ``(B, T)``."""

    q: Array
    k: Array
    v: Array
    mask: Array


def check_layer(library: Path | None = None) -> float:
    """Run the layer."""
    tokens = _tokens()
    exact_y, exact_o = _exact(tokens)
    y, start, worst = tokens.v[:, :, :0], 0, 0.0
    for count in _CHUNKS:
        end = start + count
        found = _run(tokens, y, start, end, library)
        for name, array in found.items():
            wanted = (exact_y if name == "Y" else exact_o)[:, :, start:end]
            error = float(np.linalg.norm(array - wanted) / np.linalg.norm(wanted))
            if not error <= ALLOWED:  # NaN is wrong too
                raise RuntimeError(_wrong(name, start, end, error, library))
            worst = max(worst, error)
        y, start = np.concatenate([y, found["Y"]], axis=2), end
    return worst


def _wrong(name: str, start: int, end: int, error: float, library: Path | None) -> str:
    where = f"token {start}" if end == start + 1 else f"tokens {start} to {end - 1}"
    remedy = "Install another version of onnxruntime" if library is None else "Build the library again"
    return (
        f"computes a layer wrongly: {name} of {where} is off by {error:.2g} of its size. {remedy}, and trust no answer."
    )


def _tokens() -> _Tokens:
    rng, count = np.random.default_rng(0), sum(_CHUNKS)
    q, k, v = (rng.standard_normal((_BATCH, heads, count, _WIDTH)) for heads in (_HEADS, _KV_HEADS, _KV_HEADS))
    k = 0.3 * k + rng.standard_normal((_BATCH, _KV_HEADS, 1, _WIDTH))  # keys resemble each other, as trained ones do
    k[:, :, 40:50] = k[:, :, 20:30]  # a text that repeats itself
    mask = np.ones((_BATCH, count), bool)
    mask[1, :3] = False
    return _Tokens(q.astype(np.float32), k.astype(np.float32), v.astype(np.float32), mask)


def _exact(tokens: _Tokens) -> tuple[Array, Array]:
    """Return Y and O of all tokens by the dense formulas in float64."""
    import torch

    from lucid_deploy.plugins.causal_attention.reference import causal_attention_reference
    from lucid_deploy.plugins.precondition.reference import precondition_reference

    q, k, v = (torch.from_numpy(array).double() for array in (tokens.q, tokens.k, tokens.v))
    mask = torch.from_numpy(tokens.mask)
    y = precondition_reference(k, v, k[:, :, :0], v[:, :, :0], mask, _EPS)
    return y.numpy(), causal_attention_reference(q, k, y, mask).numpy()


def _run(tokens: _Tokens, y_past: Array, start: int, end: int, library: Path | None) -> dict[str, Array]:
    """Run the tokens from start to end behind those before them; return the outputs by name."""
    new = slice(start, end)
    arrays = (tokens.q[:, :, new], tokens.k[:, :, new], tokens.v[:, :, new], tokens.k[:, :, :start], y_past)
    feed = dict(zip(_INPUTS, (*map(np.ascontiguousarray, arrays), tokens.mask[:, :end]), strict=True))
    session = _session(_model(_DECODE if end - start == 1 else _PREFILL, feed), library)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def _model(nodes: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...], feed: dict[str, Array]) -> onnx.ModelProto:
    import onnx

    from lucid_deploy.export.functions import FUNCTIONS, function_proto
    from lucid_deploy.export.operators import OPSET

    make = onnx.helper
    attributes: dict[str, dict[str, Any]] = {"Concat": {"axis": 2}}
    attributes |= {each.name: {"epsilon": _EPS} for each in (PRECONDITION, DECODE_ATTENTION)}
    made = [
        make.make_node(name, inputs, outputs, domain=DOMAIN if name in FUNCTIONS else "", **attributes.get(name, {}))
        for name, inputs, outputs in nodes
    ]
    types = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(bool): onnx.TensorProto.BOOL}
    inputs = [make.make_tensor_value_info(name, types[array.dtype], array.shape) for name, array in feed.items()]
    shown = [name for node in made for name in node.output if name not in ("keys", "values", "seen")]
    outputs = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * 4) for name in shown]
    axes = onnx.numpy_helper.from_array(np.array([1, 2]), "axes")
    return make.make_model(
        make.make_graph(made, "layer", inputs, outputs, [axes]),
        functions=[function_proto(name) for name, _, _ in nodes if name in FUNCTIONS],
        opset_imports=[make.make_opsetid("", OPSET), make.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )


def _session(model: onnx.ModelProto, library: Path | None) -> ort.InferenceSession:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails there raises in the same words
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
