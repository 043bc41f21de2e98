"""The table of our operators: domain, version, names, inputs, outputs, attributes and dtypes.

It is the only source of these names for ONNX schemas and nodes, PyTorch custom operators, graph passes, engines and,
through ``hosts/operators_header.py``, C++; only the functions in ``onnx_body.py`` repeat their operators' names. The
module imports no other module of this project, so that importing it is cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

DOMAIN = "ai.lucid"  # domain of the ONNX operators and namespace of the TensorRT plugins
VERSION = 1  # version of both
FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Tensor:
    """An input or output of an operator.

    Attributes:
        shape: The names of its axes in brackets, such as ``[batch, heads, sequence]``.
        text: Description of its contents.
        type: Its dtype; ``T`` stands for one of the operator's dtypes, the same for every ``T`` of a node. Operators of
            LIBRARY_ONLY with offsets also accept float16 scales and offsets with float32 X.
    """

    name: str
    shape: str
    text: str
    type: str = "T"


@dataclass(frozen=True)
class Attribute:
    """A float attribute of an operator.

    Attributes:
        default: Its value in nodes that do not set it; None: the attribute is required.
    """

    name: str
    text: str
    default: float | None = None


@dataclass(frozen=True)
class Operator:
    """One of our operators.

    Attributes:
        name: Name of the ONNX operator and of the TensorRT plugin.
        text: Description of what it computes.
        types: The dtypes that ``T`` may be.
        torch_name: Name of the PyTorch custom operator; empty if there is none.
    """

    name: str
    text: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    types: tuple[str, ...] = FLOATS
    attributes: tuple[Attribute, ...] = ()
    torch_name: str = ""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(each.name for each in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(each.name for each in self.outputs)

    @property
    def required(self) -> tuple[Attribute, ...]:
        """Attributes without a default, which every node of the operator must set."""
        return tuple(each for each in self.attributes if each.default is None)

    def place(self, name: str) -> int:
        """Return the index of an input; ValueError if no input has that name."""
        return self.input_names.index(name)


EPSILON = Attribute("epsilon", "added to the mean square of a key before the root")
DIAGONAL = Attribute(
    "diagonal", "0: L_ii is 1; 1: L_ii is exp(√d(m/(m + epsilon) − 1)), m the mean square of key i", 0.0
)
UNIT, TRAINING = "unit", "training"  # names of the two diagonals in files and options
DIAGONALS = (UNIT, TRAINING)
SCALE = Attribute("scale", "factor of the outputs, usually 1/√key_width")

_NEW = "[batch, kv_heads, sequence, head_dim]"
_CACHE = "[batch, kv_heads, past_sequence, head_dim]"
_SCALE = "[batch, kv_heads, past_sequence, 1]"

PRECONDITION = Operator(
    name="Precondition",
    text="Solve L Y = V for new tokens, given the cache of those before; L = tril(exp(K̂K̂ᵀ/√d − √d)).",
    inputs=(
        Tensor("K", _NEW, "raw keys of the new tokens"),
        Tensor("V", _NEW, "their values"),
        Tensor("K_past", _CACHE, "raw keys of the cache, past_sequence ≥ 0"),
        Tensor("Y_past", _CACHE, "preconditioned values of the cache"),
        Tensor("mask", "[batch, past_sequence + sequence]", "false at padding", "bool"),
    ),
    outputs=(Tensor("Y", _NEW, "preconditioned values of the new tokens"),),
    attributes=(EPSILON, DIAGONAL),
    torch_name="lucid::precondition",
)
CAUSAL_ATTENTION = Operator(
    name="CausalAttention",
    text="Causal softmax attention of the last tokens over all tokens.",
    inputs=(
        Tensor("Q", "[batch, heads, sequence, head_dim]", "queries of the new tokens"),
        Tensor("K", "[batch, kv_heads, total_sequence, head_dim]", "raw keys of all tokens"),
        Tensor("Y", "[batch, kv_heads, total_sequence, head_dim]", "their (preconditioned) values"),
        Tensor("mask", "[batch, total_sequence]", "false at padding; a token always sees itself", "bool"),
    ),
    outputs=(Tensor("O", "[batch, heads, sequence, head_dim]", "the heads' outputs"),),
    torch_name="lucid::causal_attention",
)
_QUERY = (
    Tensor("Q", "[batch, heads, sequence, head_dim]", "queries of the new tokens: one, or several to verify drafts"),
    Tensor("K_new", _NEW, "their raw keys"),
    Tensor("V_new", _NEW, "their values"),
)
_MASK = Tensor(
    "mask", "[batch, past_sequence + sequence]", "false at padding; the last columns are the new tokens", "bool"
)
_ATTENDED = (
    Tensor("O", "[batch, heads, sequence, head_dim]", "the heads' outputs"),
    Tensor("Y_new", _NEW, "preconditioned values of the new tokens"),
)
DECODE_ATTENTION = Operator(
    name="DecodeAttention",
    text="Softmax attention of a few new tokens, and their own preconditioned values, in one pass over the cache.",
    inputs=(
        *_QUERY,
        Tensor("K", _CACHE, "raw keys of the cache"),
        Tensor("Y", _CACHE, "preconditioned values of the cache"),
        _MASK,
    ),
    outputs=_ATTENDED,
    attributes=(EPSILON, DIAGONAL),
    torch_name="lucid::decode_attention",
)
_KEYS = "[batch, heads, sequence, key_width]"
_VALUES = "[batch, heads, sequence, value_width]"
_GATES = "[batch, heads, sequence]"
_STATE = "[batch, heads, key_width, value_width]"
DELTA_RULE = Operator(
    name="DeltaRule",
    text="S_t = α_t S_{t−1} + β_t k_t (v_t − α_t S_{t−1}ᵀ k_t)ᵀ and o_t = scale · S_tᵀ q_t, for all new tokens.",
    inputs=(
        Tensor("query", _KEYS, "queries of the new tokens"),
        Tensor("key", _KEYS, "their keys, of unit length"),
        Tensor("value", _VALUES, "their values"),
        Tensor("log_decay", _GATES, "log α, at most 0; 0 for the plain rule and at padding", "float32"),
        Tensor("beta", _GATES, "β, 0 to 2; 0 at padding"),
        Tensor("state", _STATE, "S before the first token", "float32"),
    ),
    outputs=(
        Tensor("output", _VALUES, "the heads' outputs"),
        Tensor("new_state", _STATE, "S after the last token", "float32"),
    ),
    attributes=(SCALE,),
    torch_name="lucid::delta_rule",
)
EXPERT_MATMUL = Operator(
    name="ExpertMatMul",
    text="O_i = W_e X_i for each row i and its expert e: the products of a mixture of experts.",
    inputs=(
        Tensor("X", "[rows, depth]", "one row per pair of a token and one of its experts"),
        Tensor("expert", "[rows]", "the expert of each row", "int64"),
        Tensor("W", "[experts, columns, depth]", "the experts' matrices"),
    ),
    outputs=(Tensor("O", "[rows, columns]", "the products"),),
    torch_name="lucid::expert_matmul",
)
QUANTIZED_EXPERT_MATMUL = Operator(
    name="QuantizedExpertMatMul",
    text="ExpertMatMul with 4- or 8-bit block-quantized matrices: elements are (W − half of the range) · block scale.",
    inputs=(
        *EXPERT_MATMUL.inputs[:2],
        Tensor("W", "[experts, columns, blocks, bytes]", "the matrices; with 4 bits the low half comes first", "uint8"),
        Tensor("scales", "[experts, columns, blocks]", "one per block of a multiple of 32 numbers"),
    ),
    outputs=EXPERT_MATMUL.outputs,
    types=("float32", "float16"),
)
# Never in an artifact: onnxruntime sessions with our CPU kernels replace two expert products and their sum by it.
QUANTIZED_EXPERT_MATMUL_OFFSETS = Operator(
    name="QuantizedExpertMatMulOffsets",
    text="QuantizedExpertMatMul with an offset per block.",
    inputs=(
        *QUANTIZED_EXPERT_MATMUL.inputs,
        Tensor("offsets", "[experts, columns, blocks]", "one per block, added to scales · (W − half of the range)"),
    ),
    outputs=EXPERT_MATMUL.outputs,
    types=("float32", "float16"),
)
# This and the next two are never in an artifact: when loading a graph or building an engine, runtimes replace
# DecodeAttention by them to read the cache in the dtype in which it is stored.
DECODE_ATTENTION_FLOAT16 = Operator(
    name="DecodeAttentionFloat16",
    text="DecodeAttention over a cache stored in float16.",
    inputs=(
        *_QUERY,
        Tensor("K", _CACHE, "raw keys of the cache", "float16"),
        Tensor("Y", _CACHE, "preconditioned values of the cache", "float16"),
        _MASK,
    ),
    outputs=_ATTENDED,
    types=("float32",),
    attributes=(EPSILON, DIAGONAL),
)


def _scaled_cache(dtype: str) -> tuple[Tensor, ...]:
    """Return the inputs for a cache stored in ``dtype``: K and Y, each row divided by a scale, and the scales."""
    return (
        Tensor("K", _CACHE, "raw keys of the cache, divided by their scales", dtype),
        Tensor("Y", _CACHE, "preconditioned values of the cache, divided by their scales", dtype),
        Tensor("K_scale", _SCALE, "one scale per row of K", "float32"),
        Tensor("Y_scale", _SCALE, "one scale per row of Y", "float32"),
    )


DECODE_ATTENTION_INT8 = Operator(
    name="DecodeAttentionInt8",
    text="DecodeAttention over a cache stored in int8 with one scale per row.",
    inputs=(*_QUERY, *_scaled_cache("int8"), _MASK),
    outputs=_ATTENDED,
    types=("float32", "float16"),
    attributes=(EPSILON, DIAGONAL),
)
DECODE_ATTENTION_FLOAT8 = Operator(
    name="DecodeAttentionFloat8",
    text="DecodeAttention over a cache stored in E4M3 with one scale per row.",
    inputs=(*_QUERY, *_scaled_cache("float8e4m3fn"), _MASK),
    outputs=_ATTENDED,
    types=("float16", "bfloat16"),
    attributes=(EPSILON, DIAGONAL),
)
# Never in an artifact: a graph pass replaces it by TensorScatter or, below opset 24, by ScatterElements.
SCATTER_ROW = Operator(
    name="ScatterRow",
    text="Write one or more new rows per batch row into a cache buffer.",
    inputs=(
        Tensor("cache", "[batch, kv_heads, max_context, head_dim]", "the buffer"),
        Tensor("row", "[batch, kv_heads, rows, head_dim]", "the new rows"),
        Tensor("index", "[batch]", "position of the first new row", "int64"),
    ),
    outputs=(Tensor("present", "[batch, kv_heads, max_context, head_dim]", "the buffer afterwards"),),
    types=(*FLOATS, "int8"),
    torch_name="lucid::scatter_row",
)
_GROWN = "[batch, kv_heads, past_sequence + sequence, head_dim]"
# Never in an artifact: onnxruntime sessions with our CPU kernels replace DecodeAttention and two Concat nodes by it.
DECODE_ATTENTION_GROWING = Operator(
    name="DecodeAttentionGrowing",
    text="DecodeAttention that also returns the cache with the new rows appended.",
    inputs=DECODE_ATTENTION.inputs,
    outputs=(
        _ATTENDED[0],
        Tensor("K_present", _GROWN, "raw keys of the cache and of the new tokens"),
        Tensor("Y_present", _GROWN, "their preconditioned values"),
    ),
    types=("float32", "float16"),
    attributes=(EPSILON, DIAGONAL),
)


def _standard(name: str, solving: Operator) -> Operator:
    """Return the operator for standard attention over the same cache: its Y contains V, and there is no Y_new."""
    text = f"Standard attention of one new token over the cache that {solving.name} reads."
    types = tuple(each for each in solving.types if each != "bfloat16")
    return replace(solving, name=name, text=text, outputs=_ATTENDED[:1], types=types, torch_name="", attributes=())


# Never in an artifact: the same sessions replace ONNX's Attention by these in graphs that decode one token.
CACHED_ATTENTION = _standard("CachedAttention", DECODE_ATTENTION)
CACHED_ATTENTION_FLOAT16 = _standard("CachedAttentionFloat16", DECODE_ATTENTION_FLOAT16)
CACHED_ATTENTION_INT8 = _standard("CachedAttentionInt8", DECODE_ATTENTION_INT8)
_X = Tensor("X", "[…, rows, depth]", "any rows")
# Never in an artifact: the same sessions replace MatMul, Gemm and MatMulNBits by the next seven, in any model.
WEIGHT_MATMUL = Operator(
    name="WeightMatMul",
    text="X · W for a few rows of X; W is read once, and no copy of it is made.",
    inputs=(_X, Tensor("W", "[depth, columns]", "a weight")),
    outputs=(Tensor("O", "[…, rows, columns]", "the product"),),
    types=("float32", "float16"),
)
WEIGHT_MATMUL_FLOAT16 = Operator(
    name="WeightMatMulFloat16",
    text="WeightMatMul with a weight stored in float16.",
    inputs=(_X, Tensor("W", "[depth, columns]", "a weight", "float16")),
    outputs=WEIGHT_MATMUL.outputs,
    types=("float32",),
)
_TRANSPOSED = "[columns, depth]"
WEIGHT_MATMUL_TRANSPOSED = Operator(
    name="WeightMatMulTransposed",
    text="WeightMatMul with a transposed weight, X · Wᵀ, for an output head that is tied to the embedding.",
    inputs=(_X, Tensor("W", _TRANSPOSED, "a weight")),
    outputs=WEIGHT_MATMUL.outputs,
    types=WEIGHT_MATMUL.types,
)
WEIGHT_MATMUL_TRANSPOSED_FLOAT16 = Operator(
    name="WeightMatMulTransposedFloat16",
    text="WeightMatMulTransposed with a weight stored in float16.",
    inputs=(_X, Tensor("W", _TRANSPOSED, "a weight", "float16")),
    outputs=WEIGHT_MATMUL.outputs,
    types=WEIGHT_MATMUL_FLOAT16.types,
)
_BLOCKS = (
    _X,
    Tensor("W", "[columns, blocks, bytes]", "a weight quantized in blocks to 4 or 8 bits", "uint8"),
    Tensor("scales", "[columns, blocks]", "one per block"),
)
QUANTIZED_MATMUL = Operator(
    name="QuantizedMatMul",
    text="MatMulNBits at accuracy level 4: X is rounded to int8 in blocks; a constant W is packed once.",
    inputs=_BLOCKS,
    outputs=WEIGHT_MATMUL.outputs,
    types=("float32", "float16"),
)
QUANTIZED_MATMUL_ZERO_POINTS = Operator(
    name="QuantizedMatMulZeroPoints",
    text="QuantizedMatMul with a zero point per block.",
    inputs=(*_BLOCKS, Tensor("zero_points", "[columns, bytes]", "one per block, 4 or 8 bits like W", "uint8")),
    outputs=WEIGHT_MATMUL.outputs,
    types=QUANTIZED_MATMUL.types,
)
QUANTIZED_MATMUL_OFFSETS = Operator(
    name="QuantizedMatMulOffsets",
    text="QuantizedMatMul with an offset per block, which is multiplied by the sum of X's unrounded block.",
    inputs=(*_BLOCKS, Tensor("offsets", "[blocks, columns]", "one per block, added to scales · (W − half the range)")),
    outputs=WEIGHT_MATMUL.outputs,
    types=QUANTIZED_MATMUL.types,
)
# Never in an artifact: in decode graphs, onnxruntime sessions with our CPU kernels replace two Gather, two MatMul and
# an Add by it.
ADAPTER_MATMUL = Operator(
    name="AdapterMatMul",
    text="Y + X · A · B with A and B of each batch row's LoRA adapter.",
    inputs=(
        Tensor("Y", "[batch, sequence, columns]", "the layer's output without an adapter"),
        Tensor("X", "[batch, sequence, depth]", "the layer's input"),
        Tensor("A", "[adapters, depth, rank]", "A of all adapters; the first is zeros"),
        Tensor("B", "[adapters, rank, columns]", "B of all adapters; the first is zeros"),
        Tensor("adapter_ids", "[batch]", "each row's adapter; 0 for none", "int64"),
    ),
    outputs=(Tensor("O", "[batch, sequence, columns]", "the sum"),),
    types=("float32", "float16"),
)

OPERATORS = (  # operators with conformance cases
    PRECONDITION,
    CAUSAL_ATTENTION,
    DECODE_ATTENTION,
    DECODE_ATTENTION_FLOAT16,
    DECODE_ATTENTION_INT8,
    DECODE_ATTENTION_FLOAT8,
    DELTA_RULE,
    EXPERT_MATMUL,
    QUANTIZED_EXPERT_MATMUL,
    SCATTER_ROW,
)
LIBRARY_ONLY = (  # internal to onnxruntime sessions with our CPU kernels
    DECODE_ATTENTION_GROWING,
    CACHED_ATTENTION,
    CACHED_ATTENTION_FLOAT16,
    CACHED_ATTENTION_INT8,
    WEIGHT_MATMUL,
    WEIGHT_MATMUL_FLOAT16,
    WEIGHT_MATMUL_TRANSPOSED,
    WEIGHT_MATMUL_TRANSPOSED_FLOAT16,
    QUANTIZED_MATMUL,
    QUANTIZED_MATMUL_ZERO_POINTS,
    QUANTIZED_MATMUL_OFFSETS,
    QUANTIZED_EXPERT_MATMUL_OFFSETS,
    ADAPTER_MATMUL,
)
IN_TENSORRT = (PRECONDITION, DECODE_ATTENTION, DECODE_ATTENTION_FLOAT8, DELTA_RULE)  # in the TensorRT plugin library
IN_ONNXRUNTIME = (  # in the library of CPU kernels
    PRECONDITION,
    CAUSAL_ATTENTION,
    DECODE_ATTENTION,
    DECODE_ATTENTION_FLOAT16,
    DECODE_ATTENTION_INT8,
    DELTA_RULE,
    EXPERT_MATMUL,
    QUANTIZED_EXPERT_MATMUL,
    *LIBRARY_ONLY,
)
