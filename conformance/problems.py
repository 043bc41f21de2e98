"""Inputs of the operators' cases: correlated or repeated keys, padding, a past, odd widths, all types.

Numbers come from numpy's ``RandomState``, whose streams never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx

from lucid_deploy.conformance.formulas import Array
from lucid_deploy.plugins import table
from lucid_deploy.plugins.table import Operator

NUMPY: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16),
    "float8e4m3fn": onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.FLOAT8E4M3FN),
    "int8": np.dtype(np.int8),
    "int64": np.dtype(np.int64),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(bool),
}
EPSILON = 1e-5
SCALE = 0.5
ATTRIBUTES = {table.EPSILON.name: EPSILON, table.SCALE.name: SCALE}


@dataclass(frozen=True)
class Problem:
    """One case of an operator.

    Attributes:
        operator: The operator, one of :mod:`lucid_deploy.plugins.table`.
        name: The case's name without the operator's.
        text: What is special about the case.
        dtype: The type that stands for ``T``.
        new: How many new tokens there are; for a buffer, its rows; for experts, the rows to multiply.
        past: How many tokens the cache has (delta rule: 0 for a state of zeros; quantized experts: bits of a weight).
        width: Width of a head, ``D``.
        keys: Correlation of any two keys (experts: rows to multiply); 1: three keys, repeated.
        size: Factor of all keys.
        padded: Whether the last batch row begins with padding and the first has a hole: two masked tokens inside it.
        hidden: Rows of a buffer after the cache's tokens; they hold other values, and the mask hides them.
        batch, heads, groups: ``B``, ``H`` and ``G``; for experts, ``heads`` is how many there are, and
            ``groups`` how many of them have rows.
        diagonal: 1: L has the diagonal that training code divides by; 0: a diagonal of ones.
        beta: The largest β of the delta rule; the smallest is half of it.
        decay: The smallest log α of the delta rule; the largest is 0.
        lengths: For each further data set, how many new tokens there are, and how many the cache has.
    """

    operator: Operator
    name: str
    text: str
    dtype: str = "float32"
    new: int = 1
    past: int = 0
    width: int = 8
    keys: float = 0.9
    size: float = 1.0
    padded: bool = False
    hidden: int = 0
    batch: int = 1
    heads: int = 2
    groups: int = 2
    diagonal: float = 0.0
    beta: float = 1.0
    decay: float = 0.0
    lengths: tuple[tuple[int, int], ...] = ()

    @property
    def further(self) -> list[Problem]:
        """Return the same problem with each of the further lengths."""
        return [
            replace(self, name=f"{self.name} {new} {past}", new=new, past=past, lengths=())
            for new, past in self.lengths
        ]

    @property
    def value_width(self) -> int:
        """Return the width of the delta rule's values and of experts' outputs, which is not ``width``."""
        return self.width + 3

    @property
    def attributes(self) -> dict[str, float]:
        """Return the attributes of the operator's node; a diagonal of 0 is the default and left out."""
        found = {each.name: ATTRIBUTES[each.name] for each in self.operator.required}
        return {**found, table.DIAGONAL.name: float(self.diagonal)} if self.diagonal else found


def make_inputs(problem: Problem) -> dict[str, Array]:
    """Return a problem's inputs by name, in the order of the operator's inputs; they are the same every time."""
    name = f"{problem.operator.name} {problem.name}"
    random = np.random.RandomState(sum(place * ord(letter) for place, letter in enumerate(name, 1)) % 2**31)
    if problem.operator is table.SCATTER_ROW:
        return _buffer(problem, random)
    if problem.operator is table.DELTA_RULE:
        return _delta(problem, random)
    if problem.operator in (table.EXPERT_MATMUL, table.QUANTIZED_EXPERT_MATMUL):
        return _experts(problem, random)
    return {item.name: _input(item.name, item.type, values) for item, values in _tensors(problem, random)}


def single(array: Array) -> Array:
    """Return an array's values in float32."""
    return np.asarray(array).astype(np.float32)


def _tensors(problem: Problem, random: np.random.RandomState) -> Iterator[tuple[table.Tensor, Array]]:
    past, new = problem.past, problem.new
    total = past + problem.hidden + new
    shape = (problem.batch, problem.heads, total, problem.width)
    keys, values = _keys(problem, shape, random), random.standard_normal(shape)
    queries = 2 * random.standard_normal((shape[0], problem.heads * problem.groups, new, problem.width))
    before, after = slice(0, total - new), slice(total - new, total)
    arrays = {"Q": queries, "mask": _mask(problem, total)}
    if problem.operator is table.CAUSAL_ATTENTION:
        arrays |= {"K": keys, "Y": values}
    elif problem.operator is table.PRECONDITION:
        arrays |= {"K": keys[:, :, after], "V": values[:, :, after]}
        arrays |= {"K_past": keys[:, :, before], "Y_past": values[:, :, before]}
    else:
        arrays |= {"K_new": keys[:, :, after], "V_new": values[:, :, after]}
        arrays |= {"K": keys[:, :, before], "Y": values[:, :, before]}
    types = {item.name: problem.dtype if item.type == "T" else item.type for item in problem.operator.inputs}
    for name in ("K", "Y"):
        if largest := {"int8": 127, "float8e4m3fn": 448}.get(types.get(name, "")):
            scale = np.abs(arrays[name]).max(-1, keepdims=True) / largest
            shares = arrays[name] / scale
            arrays |= {name: np.rint(shares) if types[name] == "int8" else shares, f"{name}_scale": scale}
    for item in problem.operator.inputs:
        yield replace(item, type=types[item.name]), arrays[item.name]


def _input(name: str, dtype: str, values: Array) -> Array:
    return np.ascontiguousarray(values.astype(NUMPY[dtype]))


def _keys(problem: Problem, shape: tuple[int, ...], random: np.random.RandomState) -> Array:
    """Return keys ``(B, H, T, D)``, any two of which correlate as ``problem.keys`` says."""
    own = random.standard_normal(shape)
    if problem.keys == 1:
        return problem.size * own[:, :, np.arange(shape[2]) % 3]
    common = random.standard_normal((1, shape[1], 1, shape[3]))
    keys = np.sqrt(problem.keys) * common + np.sqrt(1 - problem.keys) * own
    return problem.size * np.asarray(keys)


def _mask(problem: Problem, total: int) -> Array:
    mask = np.ones((problem.batch, total), bool)
    if problem.padded:
        mask[-1, : max(1, total // 3)] = False
        mask[0, total // 2 : total // 2 + 2] = False
    mask[:, problem.past : problem.past + problem.hidden] = False
    return mask


def _buffer(problem: Problem, random: np.random.RandomState) -> dict[str, Array]:
    shape = (problem.batch, problem.heads, problem.new, problem.width)
    cache, row = random.standard_normal(shape), random.standard_normal((*shape[:2], 1, shape[3]))
    index = (np.arange(problem.batch) * (problem.new - 1)) % problem.new
    if problem.dtype == "int8":
        cache, row = (np.rint(40 * x).clip(-127, 127) for x in (cache, row))
    dtype = NUMPY[problem.dtype]
    return {"cache": cache.astype(dtype), "row": row.astype(dtype), "index": index.astype(np.int64)}


def _experts(problem: Problem, random: np.random.RandomState) -> dict[str, Array]:
    rows = _keys(problem, (1, 1, problem.new, problem.width), random)[0, 0]
    chosen = random.permutation(problem.heads)[: problem.groups]  # nobody chooses the others
    expert = chosen[(np.arange(problem.new) * 7 // 2) % problem.groups]
    weight = random.standard_normal((problem.heads, problem.value_width, problem.width))
    dtype = problem.dtype
    arrays = {"X": _input("X", dtype, rows), "expert": _input("expert", "int64", expert)}
    if problem.operator is table.EXPERT_MATMUL:
        return {**arrays, "W": _input("W", dtype, weight / np.sqrt(problem.width))}
    blocks = (problem.heads, problem.value_width, problem.width // 32)
    scales = random.uniform(0.01, 0.02, blocks) * random.choice((-1, 1), blocks)
    packed = random.randint(0, 256, (*blocks, 32 * problem.past // 8))  # past: the bits of a number
    return {**arrays, "W": _input("W", "uint8", packed), "scales": _input("scales", dtype, scales)}


def _delta(problem: Problem, random: np.random.RandomState) -> dict[str, Array]:
    shape = (problem.batch, problem.heads, problem.new)
    key = _keys(problem, (*shape, problem.width), random)
    query = key + 0.5 * random.standard_normal(key.shape)
    token = _mask(problem, problem.new)[:, None]  # (B, 1, N)
    arrays = {name: x / np.linalg.norm(x, axis=-1, keepdims=True) for name, x in (("query", query), ("key", key))}
    arrays["value"] = random.standard_normal((*shape, problem.value_width))
    arrays["log_decay"] = problem.decay * random.random_sample(shape) * token
    arrays["beta"] = problem.beta * (0.5 + 0.5 * random.random_sample(shape)) * token
    state = random.standard_normal((*shape[:2], problem.width, problem.value_width))
    arrays["state"] = state if problem.past else np.zeros_like(state)
    types = {item.name: problem.dtype if item.type == "T" else item.type for item in problem.operator.inputs}
    return {name: _input(name, types[name], array) for name, array in arrays.items()}
