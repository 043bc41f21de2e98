"""The operators that TensorRT takes from the plugin library, and which of them each stage has."""

from lucid_deploy.plugins.table import DECODE_ATTENTION, IN_TENSORRT, PRECONDITION

# Operator of each stage's LUCID graph; there is one of it per layer.
STAGE_OPERATOR = {"prefill": PRECONDITION.name, "decode": DECODE_ATTENTION.name}
PLUGIN_OPERATORS = tuple(each.name for each in IN_TENSORRT)
