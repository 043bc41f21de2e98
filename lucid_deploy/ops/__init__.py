"""The LUCID operators in PyTorch: readable references, fast versions, and custom operators that tracing keeps whole.

``B`` batch, ``H`` key/value heads, ``G`` query heads per key/value head, ``N`` new tokens, ``P`` past tokens, ``D``
head width. Masks are boolean, True where there is a token and False where there is padding.
"""

from lucid_deploy.ops.attention import causal_attention
from lucid_deploy.ops.decode import decode_attention
from lucid_deploy.ops.precondition import precondition
from lucid_deploy.ops.scatter import scatter_row

__all__ = ["causal_attention", "decode_attention", "precondition", "scatter_row"]
