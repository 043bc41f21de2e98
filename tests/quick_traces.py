"""Traces that take half the time: what is the same for each of them is done once.

- PyTorch's exporter parses the sources of its 500 translations for each graph. Here one table serves all of them.
- Its pass that inserts type promotions computes every node again to know its type. Here it reads the type that the
  trace has noted.
- onnxscript's optimizer tries each rule at each node, and each failure is a report. Here a rule is tried at nodes of
  the operator that it begins with.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def install() -> None:
    """Change PyTorch's exporter in this process, once: importing it takes two seconds, so before the first trace."""
    from onnxscript.rewriter._rewrite_rule import RewriteRule
    from torch.onnx._internal.exporter._registration import ONNXRegistry
    from torch.onnx._internal.fx.passes import type_promotion

    parsed = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(**options: Any) -> ONNXRegistry:
        table, own = parsed(**options), ONNXRegistry()
        own._opset_version = table._opset_version
        own.functions = {name: list(functions) for name, functions in table.functions.items()}
        return own

    interpreter = type_promotion._TypePromotionInterpreter
    compute = interpreter.run_node

    def run_node(self: Any, node: Any) -> Any:
        if node.op != "call_function" or "val" not in node.meta:
            return compute(self, node)
        if rule := type_promotion.get_type_promotion_rule(node, self.type_promotion_table):
            with self._set_current_node(node):
                self._maybe_promote_node(node, rule)
        return node.meta["val"]

    attempt = RewriteRule.try_rewrite

    def try_rewrite(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        pattern = self._target_pattern
        if pattern.has_single_output_node and not pattern.output_node.op.matches(node.op_type):
            return None
        return attempt(self, model, graph, node, **options)

    RewriteRule.try_rewrite = try_rewrite  # type: ignore[method-assign]
    ONNXRegistry.from_torchlib = staticmethod(from_torchlib)  # type: ignore[method-assign,assignment]
    interpreter.run_node = run_node  # type: ignore[method-assign]
