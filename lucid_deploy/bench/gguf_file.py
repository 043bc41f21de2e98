"""A GGUF file of a configuration's shape with standard attention and random weights, for timing llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quant_shape_to_byte_shape, quantize
from numpy.typing import NDArray

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig

TYPES = {
    "float32": GGMLQuantizationType.F32,
    "float16": GGMLQuantizationType.F16,
    "bfloat16": GGMLQuantizationType.BF16,
    "int8": GGMLQuantizationType.Q8_0,
    "int4": GGMLQuantizationType.Q4_0,
}
_DEVIATION = 0.02  # of random weights, as transformers initializes them
FIRST_WORD = 4  # the ids below are special, or a byte


def write_gguf(config: LucidConfig, dtype: str, path: Path) -> None:
    """Write the file.

    Args:
        config: Whose sizes it has.
        dtype: Type of its matrices, a key of :data:`TYPES`: int8 and int4 are llama.cpp's Q8_0 and Q4_0, blocks of 32
            with a scale in float16. Norms are float32.
        path: Where to write it.

    Raises:
        LucidError: Rows that cannot be cut into the type's blocks, or a vocabulary of fewer than eight tokens.
    """
    if config.vocab_size < 2 * FIRST_WORD:
        raise LucidError(f"llama.cpp needs a vocabulary of more than {config.vocab_size} tokens to be measured.")
    writer = GGUFWriter(path, "llama")
    _describe(config, writer)
    generator = np.random.default_rng(0)
    for name, shape in _shapes(config):
        chosen = TYPES[dtype] if len(shape) == 2 else GGMLQuantizationType.F32
        try:
            quant_shape_to_byte_shape(shape, chosen)
        except ValueError as error:
            raise LucidError(
                f"llama.cpp has no {chosen.name} form of {name}: its rows of {shape[-1]} are no whole blocks of 32. "
                "Measure it beside a float32 or float16 artifact."
            ) from error
        writer.add_tensor(name, _values(generator, shape, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _values(
    generator: np.random.Generator, shape: tuple[int, ...], chosen: GGMLQuantizationType
) -> NDArray[np.generic]:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    values = generator.standard_normal(shape, dtype=np.float32) * np.float32(_DEVIATION)
    found: NDArray[np.generic] = quantize(values, chosen)
    return found


def _describe(config: LucidConfig, writer: GGUFWriter) -> None:
    """Write sizes, and a vocabulary whose words mean nothing."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    words = config.vocab_size - FIRST_WORD
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "<0x0A>", *(f"w{number}" for number in range(words))])
    writer.add_token_scores([0.0] * config.vocab_size)
    special = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    writer.add_token_types([*special, *[TokenType.NORMAL] * words])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _shapes(config: LucidConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield llama.cpp's names with shapes ``(out, in)``."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    yield "token_embd.weight", (config.vocab_size, width)
    yield "output_norm.weight", (width,)
    if not config.tie_word_embeddings:
        yield "output.weight", (config.vocab_size, width)
    for layer in range(config.num_hidden_layers):
        for name, shape in {
            "attn_norm": (width,),
            "attn_q": (queries, width),
            "attn_k": (keys, width),
            "attn_v": (keys, width),
            "attn_output": (width, queries),
            "ffn_norm": (width,),
            "ffn_gate": (inner, width),
            "ffn_up": (inner, width),
            "ffn_down": (width, inner),
        }.items():
            yield f"blk.{layer}.{name}.weight", shape
