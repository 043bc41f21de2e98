"""Bodies of the ``ai.lucid`` operators in standard ONNX operators, so that every runtime can run an exported file."""

from lucid_deploy.plugins.causal_attention.onnx_body import CausalAttention
from lucid_deploy.plugins.decode_attention.onnx_body import DecodeAttention
from lucid_deploy.plugins.precondition.onnx_body import Precondition

FUNCTIONS = {body.name: body for body in (Precondition, CausalAttention, DecodeAttention)}
