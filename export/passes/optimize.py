"""Simplify a traced graph like ``onnxscript.optimizer``, in half the time."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules

# onnxscript's optimizer tries over 40 rules at every node. Only these change graphs of language models.
_RULES = (
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.collapse_slice_rule,
    rules.materialize_reshape_shape_rule,
    rules.max_min_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
)


def optimize(model: ir.Model) -> None:
    """Inline functions, fold constants, apply the rewrite rules above and merge duplicate nodes, in place.

    Result: the model computes the same outputs from the same inputs; constants are initializers.
    """
    common.InlinePass()(model)
    for _ in range(2):
        fold_constants_ir(model, onnx_shape_inference=True)
        rewrite(model, _RULES)
    for apply in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        apply(model)
