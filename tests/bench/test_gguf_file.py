"""The file for llama.cpp has the shape that transformers' Llama has, by gguf's own table of names."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gguf", reason='needs gguf: pip install -e ".[bench]"')
pytest.importorskip("transformers", reason='needs transformers: pip install -e ".[dev]"')

import gguf
import transformers

from lucid_deploy.bench.gguf_file import TYPES, write_gguf
from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import parse_config
from tests.conftest import TINY

EVEN = {**TINY, "hidden_size": 64, "intermediate_size": 96, "head_dim": 32}


@pytest.mark.parametrize("tied", [False, True])
def test_names_and_shapes(tied: bool, tmp_path: Path) -> None:
    config = parse_config({**TINY, "tie_word_embeddings": tied}, "test")
    write_gguf(config, "float32", tmp_path / "shape.gguf")
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "shape.gguf").tensors}
    shape = transformers.LlamaConfig(**config.llama_sizes(), tie_word_embeddings=tied)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    wanted = {
        names.get_name(name, (".weight",)): tuple(value.shape)
        for name, value in transformers.LlamaForCausalLM(shape).named_parameters()
    }
    assert {name: tuple(tensor.shape[::-1]) for name, tensor in found.items()} == wanted
    values = found["blk.0.ffn_up.weight"].data
    assert abs(float(values.std()) / 0.02 - 1) < 5 / (2 * values.size) ** 0.5  # five times its standard error
    assert (found["output_norm.weight"].data == 1).all()


def test_sizes(tmp_path: Path) -> None:
    config = parse_config(TINY, "test")
    write_gguf(config, "float32", tmp_path / "shape.gguf")
    fields = gguf.GGUFReader(tmp_path / "shape.gguf").fields
    found = {name: fields[f"llama.{name}"].contents() for name in (
        "embedding_length", "block_count", "feed_forward_length", "vocab_size", "attention.head_count",
        "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
    )}  # fmt: skip
    assert list(found.values()) == [
        config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.vocab_size,
        config.num_attention_heads, config.num_key_value_heads, *[config.head_dim] * 3,
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
def test_types(dtype: str, tmp_path: Path) -> None:
    """Matrices have the type, norms float32; sizes are gguf's."""
    config = parse_config(EVEN, "test")
    write_gguf(config, dtype, tmp_path / "shape.gguf")
    for tensor in gguf.GGUFReader(tmp_path / "shape.gguf").tensors:
        is_matrix = len(tensor.shape) == 2
        assert tensor.tensor_type == (TYPES[dtype] if is_matrix else gguf.GGMLQuantizationType.F32)
        block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        assert tensor.n_bytes == tensor.n_elements // block * size


def test_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    config = parse_config({**EVEN, "hidden_size": 72}, "test")
    with pytest.raises(LucidError, match=r"no Q4_0 form of token_embd\.weight: its rows of 72 are no whole blocks"):
        write_gguf(config, "int4", tmp_path / "shape.gguf")


def test_a_vocabulary_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(LucidError, match="vocabulary of more than 7 tokens"):
        write_gguf(parse_config({**TINY, "vocab_size": 7}, "test"), "float32", tmp_path / "shape.gguf")
