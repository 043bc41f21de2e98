"""Names of the operators that TensorRT takes from the plugin library, and what the library's kernels accept."""

DOMAIN = "ai.lucid"
# Operator of each stage's LUCID graph; there is one of it per layer.
STAGE_OPERATOR = {"prefill": "Precondition", "decode": "DecodeAttention"}
PLUGIN_OPERATORS = tuple(STAGE_OPERATOR.values())
