"""Graph passes: functions that change an ``onnx_ir`` model. Each docstring says what it requires and what results."""

from lucid_deploy.export.passes.naming import layers_of, name_axes, name_values
from lucid_deploy.export.passes.optimize import optimize
from lucid_deploy.export.passes.pair_heads import pair_heads
from lucid_deploy.export.passes.quantize_weights import quantize_weights
from lucid_deploy.export.passes.repeat_layers import NotRepeatable, repeat_layers, repeat_names
from lucid_deploy.export.passes.static_cache import static_cache
from lucid_deploy.export.passes.store_transposed import store_transposed
from lucid_deploy.export.passes.write_rows import write_rows

__all__ = [
    "NotRepeatable",
    "layers_of",
    "name_axes",
    "name_values",
    "optimize",
    "pair_heads",
    "quantize_weights",
    "repeat_layers",
    "repeat_names",
    "static_cache",
    "store_transposed",
    "write_rows",
]
