"""Graph passes, one per file. Each says in its docstring what it expects and what it does to an ``onnx_ir`` model."""

from lucid_deploy.export.passes.layer_nodes import layers_of
from lucid_deploy.export.passes.name_axes import name_axes
from lucid_deploy.export.passes.name_values import name_values
from lucid_deploy.export.passes.pair_heads import pair_heads
from lucid_deploy.export.passes.quantize_weights import quantize_weights
from lucid_deploy.export.passes.repeat_layers import NotRepeatable, repeat_layers, repeat_names
from lucid_deploy.export.passes.store_transposed import store_transposed
from lucid_deploy.export.passes.write_rows import write_rows

__all__ = [
    "NotRepeatable",
    "layers_of",
    "name_axes",
    "name_values",
    "pair_heads",
    "quantize_weights",
    "repeat_layers",
    "repeat_names",
    "store_transposed",
    "write_rows",
]
