"""Graph passes, one per file. Each changes an ``onnx_ir`` model in place and says in its docstring what it expects."""

from lucid_deploy.export.passes.name_axes import name_axes
from lucid_deploy.export.passes.pair_heads import pair_heads
from lucid_deploy.export.passes.quantize_weights import quantize_weights
from lucid_deploy.export.passes.store_transposed import store_transposed
from lucid_deploy.export.passes.use_tensor_scatter import use_tensor_scatter

__all__ = ["name_axes", "pair_heads", "quantize_weights", "store_transposed", "use_tensor_scatter"]
