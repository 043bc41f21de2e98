"""llama.cpp is timed at what was asked, and refuses what would be another measurement."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf", reason='needs gguf: pip install -e ".[bench]"')
pytest.importorskip("xllamacpp", reason='needs llama.cpp: pip install -e ".[bench]"')

import gguf
import transformers
import xllamacpp

from lucid_deploy.artifact import Artifact
from lucid_deploy.bench.contenders import Contender
from lucid_deploy.bench.llama_cpp import TYPES, LlamaCppWorker, write_gguf
from lucid_deploy.bench.worker import make_worker
from lucid_deploy.errors import LucidError
from lucid_deploy.model.config_parsing import parse_config
from tests.conftest import TINY

Exported = Callable[..., tuple[Path, Artifact]]
EVEN = {**TINY, "hidden_size": 64, "intermediate_size": 96, "head_dim": 32}


@pytest.fixture(scope="module")
def worker(exported: Exported) -> LlamaCppWorker:
    found = make_worker(Contender("llama.cpp", "llama.cpp", str(exported()[1].directory)))
    assert isinstance(found, LlamaCppWorker)
    return found


def test_prompts_and_tokens_are_timed(worker: LlamaCppWorker) -> None:
    """In a context that grows with what is asked, and again behind one that is known."""
    for length in (8, 300):
        assert worker.prefill(1, length, None)["seconds"] > 0
    for context in (8, 300, 300, 20):
        assert worker.decode(1, context, 3)["seconds"] > 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "answered without times: .*no slot"),
        ({"prompt_n": 39}, "computed 39 of 40 tokens"),
        ({"predicted_n": 3, "cache_n": 40}, "did not go on behind 40 tokens"),
        ({"predicted_n": 4, "cache_n": 2}, "did not go on behind 40 tokens"),
    ],
)
def test_another_measurement_is_none(
    answer: dict[str, Any], message: str, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Server:
        def __init__(self, params: Any) -> None: ...

        def handle_completions(self, asked: dict[str, Any]) -> dict[str, Any]:
            return {"timings": answer} if answer else {"error": "no slot"}

    monkeypatch.setattr(xllamacpp, "Server", Server)
    worker = LlamaCppWorker(exported()[1])
    with pytest.raises(LucidError, match=message):
        worker.prefill(1, 40, None) if "predicted_n" not in answer else worker.decode(1, 40, 3)


def test_what_it_does_not_measure(exported: Exported) -> None:
    artifact = exported()[1]
    layers = (*artifact.manifest.layers[1:], replace(artifact.manifest.layers[0], kind="window"))
    with pytest.raises(LucidError, match="this one has layers of the kind window"):
        LlamaCppWorker(Artifact(artifact.directory, replace(artifact.manifest, layers=layers)))


def test_without_the_package(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.delitem(sys.modules, "lucid_deploy.bench.llama_cpp")
    with pytest.raises(LucidError, match=r"The package xllamacpp is needed to measure llama\.cpp beside an artifact"):
        make_worker(Contender("llama.cpp", "llama.cpp", str(exported()[1].directory)))


def test_types_that_it_does_not_have_are_refused(exported: Exported, quantized: Exported) -> None:
    artifact = exported()[1]
    rounded = Artifact(artifact.directory, replace(artifact.manifest, cache_dtype="fp8"))
    with pytest.raises(LucidError, match=r"llama\.cpp has no cache in fp8, the type of .*\. Leave it out"):
        LlamaCppWorker(rounded)
    with pytest.raises(LucidError, match=r"llama\.cpp has no weights in fp8, as .* has\. Leave it out"):
        LlamaCppWorker(quantized("fp8")[1])
    _, artifact = quantized("int4")
    record = artifact.manifest.quantization
    name = next(name for name in record.tensors if "layers" in name)
    tensors = {**record.tensors, name: replace(record.tensors[name], bits=8)}
    mixed = replace(artifact.manifest, quantization=replace(record, tensors=tensors))
    with pytest.raises(LucidError, match=r"all layers the same bits, and those of .* have 4 and 8\."):
        LlamaCppWorker(Artifact(artifact.directory, mixed))


@pytest.mark.parametrize("tied", [False, True])
def test_names_and_shapes_of_the_file(tied: bool, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("dtype", TYPES)
def test_types_of_the_file(dtype: str, tmp_path: Path) -> None:
    """Matrices of layers have the type, embedding and head 8 bits where that is asked for, norms float32."""
    config = parse_config(EVEN, "test")
    write_gguf(config, dtype, tmp_path / "shape.gguf", "int8" if dtype == "int4" else "")
    for tensor in gguf.GGUFReader(tmp_path / "shape.gguf").tensors:
        is_matrix, is_head = len(tensor.shape) == 2, not tensor.name.startswith("blk")
        kind = TYPES["int8" if is_head and dtype == "int4" else dtype]
        assert tensor.tensor_type == (kind if is_matrix else gguf.GGMLQuantizationType.F32)
        block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        assert tensor.n_bytes == tensor.n_elements // block * size


def test_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    config = parse_config({**EVEN, "hidden_size": 72}, "test")
    with pytest.raises(LucidError, match=r"no Q4_0 form of token_embd\.weight: its rows of 72 are no whole blocks"):
        write_gguf(config, "int4", tmp_path / "shape.gguf")


def test_a_vocabulary_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(LucidError, match="vocabulary of more than 7 tokens"):
        write_gguf(parse_config({**TINY, "vocab_size": 7}, "test"), "float32", tmp_path / "shape.gguf")
