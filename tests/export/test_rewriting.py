"""Rules are tried on nodes of their own operators only: graphs are the same to the byte, nothing stays changed."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import pytest
from onnxscript.rewriter import RewriteRule

from lucid_deploy.export import rewriting

# Rules for one operator, for two in a row, for either order of operands, with a condition that fails, and for two
# slices that together are a Split.
GRAPH = """
<ir_version: 10, opset_import: ["" : 23, "other" : 1]>
g (float[2, 3, 4] x, float[1] w)
=> (float[N] y, float[2, 3, 4] z, float[2, 3, 4] t, float[2, 3, 4] u, float[2, 3, 4] v)
<int64[1] start = {0}, int64[1] half = {2}, int64[1] whole = {4}, int64[1] last = {2}, int64[1] flat = {-1},
 int64[3] back = {2, 3, 4}, float zero = {0.0}, float one = {1.0}> {
  a = Transpose <perm = [0, 2, 1]> (x)
  b = Transpose <perm = [0, 2, 1]> (a)
  c = Cast <to = 1> (b)
  d = Reshape (c, back)
  y = Reshape (d, flat)
  e = Relu (x)
  f = Relu (e)
  z = Add (zero, f)
  g = Mul (x, one)
  h = other.Relu (g)
  t = Relu (h)
  i = Transpose <perm = [2, 1, 0]> (x)
  j = Transpose <perm = [2, 1, 0]> (i)
  k = Min (j, one)
  u = Max (k, zero)
  right = Slice (x, half, whole, last)
  left = Slice (x, start, half, last)
  v = Concat <axis = 2> (right, left)
}
"""


def _model() -> ir.Model:
    return ir.serde.deserialize_model(onnx.parser.parse_model(GRAPH))


def _bytes(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def test_graphs_are_the_same() -> None:
    found, expected = _model(), _model()
    rewriting.optimize(found)
    onnxscript.optimizer.optimize_ir(expected)
    assert _bytes(found) == _bytes(expected)
    kinds = [node.op_type for node in found.graph]
    assert kinds.count("Relu") < 4 and "Split" in kinds and "Slice" not in kinds  # rules were applied


def test_few_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version of onnxscript that is tested here; where its internals have changed, this fails and says so."""
    tried: list[tuple[str, str]] = []
    attempt = RewriteRule.try_rewrite

    def counted(rule: Any, model: Any, graph: Any, node: ir.Node, **options: Any) -> Any:
        tried.append((str(rule), node.op_type))
        return attempt(rule, model, graph, node, **options)

    monkeypatch.setattr(RewriteRule, "try_rewrite", counted)
    rewriting.optimize(_model())
    few = len(tried)
    assert {kind for rule, kind in tried if rule == "SlicesSplit"} == {"Slice"}  # a rule about two nodes
    onnxscript.optimizer.optimize_ir(_model())
    assert 0 < few < (len(tried) - few) / 5


def test_nothing_stays_changed_and_other_threads_go_their_own_way() -> None:
    attempt = RewriteRule.try_rewrite
    tried: list[bool] = []

    class Rule:
        """Stands in for a rule about additions."""

        _target_pattern = SimpleNamespace(output_nodes=[SimpleNamespace(op_identifier=lambda: ("", "Add", ""))])
        remove_nodes = True

        def match(self, *_: Any, **__: Any) -> None:
            tried.append(True)

    node = SimpleNamespace(domain="", op_type="Relu")
    with rewriting.rules_for_the_operator_alone():
        assert RewriteRule.try_rewrite is not attempt
        RewriteRule.try_rewrite(Rule(), None, None, node)
        assert tried == []
        other = threading.Thread(target=RewriteRule.try_rewrite, args=(Rule(), None, None, node))
        other.start()
        other.join()
    assert tried == [True]
    assert RewriteRule.try_rewrite is attempt
