"""Triton kernels of the two LUCID operators: one source for the interpreter, PyTorch on a GPU and the TensorRT plugin.

Importing this package imports no Triton; the entry points do.
"""

from lucid_deploy.plugins.kernels.launch import decode_attention, precondition
from lucid_deploy.plugins.kernels.plan import Plan, Step, plan_decode_attention, plan_precondition

__all__ = ["Plan", "Step", "decode_attention", "plan_decode_attention", "plan_precondition", "precondition"]
