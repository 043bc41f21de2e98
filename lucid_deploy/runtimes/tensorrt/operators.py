"""The stages that engines are built for, the operators they take from the plugin library, and what is in which."""

from lucid_deploy.artifact import VERIFY
from lucid_deploy.plugins.table import DECODE_ATTENTION, DELTA_RULE, IN_TENSORRT, PRECONDITION

# Operators of each stage's graph; a layer that uses one has one node of it.
STAGE_OPERATORS = {
    "prefill": (PRECONDITION.name, DELTA_RULE.name),
    "decode": (DECODE_ATTENTION.name, DELTA_RULE.name),
    VERIFY: (DECODE_ATTENTION.name,),
}
PLUGIN_OPERATORS = tuple(each.name for each in IN_TENSORRT)
