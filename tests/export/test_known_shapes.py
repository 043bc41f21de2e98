"""Values that are described without PyTorch's own ways: graphs and errors are the same."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lucid_deploy.export import capture as capturing
from lucid_deploy.export import exporter_shortcuts
from lucid_deploy.export.known_shapes import joined, known_shapes, same
from lucid_deploy.export.rewriting import optimize
from tests.export.other_pytorch import hide

pytestmark = pytest.mark.slow
Compute = Callable[..., Tensor]


@contextmanager
def _none() -> Iterator[None]:
    yield


class Module(torch.nn.Module):
    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.compute(x, x[:, :1, :, 3:], w)


def _captured(compute: Compute, dtype: torch.dtype = torch.float32) -> list[tuple[str, ...]]:
    """Capture a function of x ``(B, 2, N, 6)``, its part y ``(B, 1, N, 3)`` and w ``(4, 6)``; B and N are symbols."""
    arguments = torch.empty(3, 2, 5, 6, device="meta", dtype=dtype), torch.empty(4, 6, device="meta")
    axes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}, None
    model = capturing.capture(Module(compute).eval(), arguments, axes, ["x", "w"], ["z"])
    optimize(model)
    return _nodes(model)


def _nodes(model: ir.Model) -> list[tuple[str, ...]]:
    """Return what each node computes, of which nodes' values, and the type and axes of its own.

    PyTorch's own ways also leave nodes that nobody reads (is N 1?), by which others are numbered.
    """
    names: dict[ir.Value | None, str] = {value: str(value.name) for value in model.graph.inputs}
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        names[value] = f"{value.const_value.numpy().tolist()}"
    found = []
    for node in model.graph:
        attributes = sorted(f"{each}" for each in node.attributes.values())
        (made,) = node.outputs
        inputs = [names[value] if value is not None else "" for value in node.inputs]
        found.append((node.op_type, *attributes, *inputs, f"{made.dtype} {made.shape}"))
        names[made] = f"{found[-1]}"
    assert [str(value.name) for value in model.graph.outputs] == ["z"]
    return sorted(found)


PLAIN: dict[str, Compute] = {
    "the same shape": lambda x, y, w: x * x + x - x * w[0],
    "broadcast on the left": lambda x, y, w: y * x[..., :3] - y,
    "broadcast on the right": lambda x, y, w: x[..., 3:] * y + x[..., :3],
    "fewer axes": lambda x, y, w: x + x[0, 0],
    "not contiguous": lambda x, y, w: (x.transpose(1, 2) * x.transpose(1, 2) - x.transpose(1, 2)).flatten(2) * 1,
    "joined": lambda x, y, w: torch.cat([x, x * x, x[:, :, :1]], dim=2) + 1,
    "joined on the last axis": lambda x, y, w: torch.cat([y, y - y], dim=-1) * x,
    "a layer": lambda x, y, w: F.linear(x, w) * 2,
    "a layer with bias": lambda x, y, w: F.linear(x, w, w[:, 0]) + F.linear(x.transpose(1, 2), w).transpose(1, 2),
    "a norm": lambda x, y, w: F.rms_norm(x.transpose(1, 2), (6,), w[0], 1e-5) * x.transpose(1, 2),
    "a norm without weights": lambda x, y, w: F.rms_norm(x, (6,), None, 1e-5) + x,
}
OTHERS: dict[str, Compute] = {  # left to PyTorch
    "two types": lambda x, y, w: x * y[..., :1].double() + x,
    "numbers": lambda x, y, w: 2 * x - x * 3 + 0.5,
    "a factor": lambda x, y, w: torch.add(x, x, alpha=2),
    "no axis": lambda x, y, w: x * y.sum(),
    "sums of sizes": lambda x, y, w: torch.cat([x, x], 2) * torch.cat([x, x], 2)[:, :, : 2 * x.shape[2]],
    "joined types": lambda x, y, w: torch.cat([x, x.double()], dim=0),
}


@functools.cache
def _counted(name: str) -> tuple[list[tuple[str, ...]], Counter[str]]:
    """Return the nodes of a capture, and how often PyTorch described a value by its own ways."""
    from torch._subclasses import fake_impls

    asked: Counter[str] = Counter()

    def counting(kind: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            asked[kind] += 1
            return own(*given, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for operator in (torch.ops.aten.linear.default, torch.ops.aten.rms_norm.default):
            patch.setattr(operator, "_op_dk", counting(str(operator), operator._op_dk))
        patch.setattr(fake_impls, "infer_size", counting("size", fake_impls.infer_size))
        return _captured({**PLAIN, **OTHERS}[name]), asked


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_graphs_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = _counted(name)
    monkeypatch.setattr(exporter_shortcuts, "known_shapes", _none)
    assert found == _captured({**PLAIN, **OTHERS}[name])


@pytest.mark.parametrize("compute", [PLAIN["a norm without weights"], PLAIN["the same shape"]])
def test_values_have_their_operands_type(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _captured(compute, torch.float16)
    monkeypatch.setattr(exporter_shortcuts, "known_shapes", _none)
    assert found == _captured(compute, torch.float16)


WRONG: dict[str, Compute] = {
    "a product": lambda x, y, w: x * y,
    "a joined axis": lambda x, y, w: torch.cat([x, y], dim=2),
    "an axis that is not there": lambda x, y, w: torch.cat([x, x], dim=4),
    "a layer": lambda x, y, w: F.linear(y, w),
    "a bias": lambda x, y, w: F.linear(x, w, w[0]),
    "a norm": lambda x, y, w: F.rms_norm(x, (5,), None, 1e-5),
    "a norm's weights": lambda x, y, w: F.rms_norm(x, (6,), w[:, 0], 1e-5),
    "a norm of whole numbers": lambda x, y, w: F.rms_norm(x.int(), (6,), None, 1e-5),
}


@pytest.mark.parametrize("compute", WRONG.values(), ids=WRONG)
def test_errors_are_pytorchs(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> str:
        with pytest.raises(Exception) as raised:
            _captured(compute)
        cause = raised.value.__cause__ or raised.value
        return f"{type(cause)}: {str(cause).splitlines()[0]}"

    found = said()
    monkeypatch.setattr(exporter_shortcuts, "known_shapes", _none)
    assert found == said()


def test_shapes_are_read_off_where_that_is_plain() -> None:
    assert joined((2, 1, 5), (3, 5)) == [2, 3, 5]
    assert joined((3, 1), (2, 1, 4)) == [2, 3, 4]
    assert joined((), (2,)) == [2]
    assert joined((2, 3), (2, 4)) is None
    assert same(3, 3) and not same(3, 4)


@pytest.mark.parametrize("name", PLAIN)
def test_it_is_taken(name: str) -> None:
    """With the version of PyTorch that is tested here; where its internals have changed, this fails and says so."""
    numbers = {"a layer", "joined", "not contiguous"}  # a product with a number is PyTorch's
    assert set(_counted(name)[1]) <= ({"size"} if name in numbers else set())


def test_other_threads_go_pytorchs_way() -> None:
    from torch._subclasses import fake_tensor

    own, found = fake_tensor.get_fast_op_impls(), []
    with known_shapes():
        assert fake_tensor.get_fast_op_impls() is not own
        thread = threading.Thread(target=lambda: found.append(fake_tensor.get_fast_op_impls() is own))
        thread.start()
        thread.join()
    assert found == [True]


COMPOSITE = (torch.ops.aten.linear.default, torch.ops.aten.rms_norm.default)


def _described() -> None:
    """Have values of both composite operators described, as a capture does."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch._subclasses.fake_tensor import FakeTensorMode

    with enable_python_dispatcher(), FakeTensorMode():
        F.linear(torch.empty(2, 3), torch.empty(4, 3))
        F.rms_norm(torch.empty(2, 3), (3,))


def test_other_threads_composite_operators_are_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    decomposed: list[tuple[int, str]] = []

    def noted(operator: Any, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            decomposed.append((threading.get_ident(), str(operator)))
            return own(*given, **options)

        return call

    for operator in COMPOSITE:
        monkeypatch.setattr(operator, "_op_dk", noted(operator, operator._op_dk))
    with known_shapes():
        _described()
        assert decomposed == []
        thread = threading.Thread(target=_described)
        thread.start()
        thread.join()
        assert decomposed == [(thread.ident, str(operator)) for operator in COMPOSITE]


def test_what_others_call_meanwhile_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch remembers which code an operator's call went to; a call just before the end must not be remembered."""

    class CalledAtItsEnd(dict[Any, Any]):
        def clear(self) -> None:
            _described()
            super().clear()

    remembered: list[Any] = []
    for operator in COMPOSITE:
        monkeypatch.setattr(operator, "py_kernels", CalledAtItsEnd(operator.py_kernels))
    with known_shapes():
        kernels = [kernel for operator in COMPOSITE for kernel in operator.py_kernels.values()]
    for operator in COMPOSITE:
        remembered += operator._dispatch_cache.values()
    assert kernels and not set(kernels) & set(remembered)


def test_nothing_stays_changed() -> None:
    from torch._subclasses import fake_tensor
    from torch.fx.experimental import proxy_tensor

    def state() -> tuple[Any, ...]:
        kernels = [dict(op.py_kernels) for op in (torch.ops.aten.linear.default, torch.ops.aten.rms_norm.default)]
        return fake_tensor.get_fast_op_impls, proxy_tensor._extract_tensor_metadata, *kernels

    before = state()
    with pytest.raises(KeyboardInterrupt), known_shapes():
        assert all(now != old for now, old in zip(state(), before, strict=True))
        raise KeyboardInterrupt
    assert state() == before


INTERNALS = [
    ("torch._subclasses.fake_tensor", "get_fast_op_impls"),
    ("torch._subclasses.fake_tensor", "FakeTensorMode"),
    ("torch._decomp", "decomposition_table"),
    ("torch.fx.experimental.proxy_tensor", "_extract_tensor_metadata"),
    ("torch.utils._python_dispatch", "_get_current_dispatch_mode"),
]


@pytest.mark.parametrize(("module", "name"), INTERNALS)
def test_another_version_of_pytorch_goes_its_own_way(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = _counted("a layer")
    hide(monkeypatch, module, name)
    assert _captured(PLAIN["a layer"]) == expected
