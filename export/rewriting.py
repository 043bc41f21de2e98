"""Optimize a graph with onnxscript's rules, without trying each rule on each node."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    import onnx_ir as ir


def optimize(model: ir.Model) -> None:
    """Fold constants and apply onnxscript's default rules, in place."""
    import onnxscript.optimizer

    with rules_for_the_operator_alone():
        onnxscript.optimizer.optimize_ir(model)


@contextmanager
def rules_for_the_operator_alone() -> Iterator[None]:
    """Try a rule on the nodes of its pattern's last operator only, which is what it would look at first.

    A tenth of an export is spent on finding so, 35,000 times, behind a dozen calls. A rule about two nodes lists the
    whole graph before it looks, for every node. Where onnxscript has other internals, it goes its own way.
    """
    from onnxscript.rewriter import RewriteRule

    thread, attempt = threading.get_ident(), RewriteRule.try_rewrite

    def try_rewrite(rule: Any, model: Any, graph: Any, node: ir.Node, **options: Any) -> Any:
        if threading.get_ident() == thread and not options.get("tracer") and _is_for_another(rule, node):
            return None
        return attempt(rule, model, graph, node, **options)

    with mock.patch.object(RewriteRule, "try_rewrite", try_rewrite):
        yield


def _is_for_another(rule: Any, node: ir.Node) -> bool:
    """Say whether a rule's pattern, or the first of its ends, is an operator of another name."""
    ends = getattr(getattr(rule, "_target_pattern", None), "output_nodes", None)
    if not ends:
        return False
    identifier = ends[0].op_identifier()  # None where the pattern takes several
    return identifier is not None and identifier[:2] != (node.domain, node.op_type)
