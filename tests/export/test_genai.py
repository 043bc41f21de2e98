"""onnxruntime-genai runs an exported artifact as it is: tokenizer, generator, streaming, batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.export.genai import is_supported
from lucid_deploy.generation.generate import Generation
from lucid_deploy.runtimes import open_session
from tests.byte_level_checkpoints import TEXT

og: Any = pytest.importorskip("onnxruntime_genai")

WithTokenizer = Callable[..., tuple[Path, Artifact]]
NEW = 24


def ours(artifact: Artifact, ids: list[int], new: int = NEW) -> list[int]:
    return list(Generation(open_session(artifact), ids, new))


def generator(model: Any, rows: Any, new: int) -> Any:
    ids = np.array(rows, dtype=np.int32)
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=ids.shape[1] + new, batch_size=len(ids))
    running = og.Generator(model, parameters)
    running.append_tokens(ids)
    return running


def test_tokenizer_generator_and_stream_give_our_tokens(with_byte_level_tokenizer: WithTokenizer) -> None:
    _, artifact = with_byte_level_tokenizer()
    model = og.Model(str(artifact.directory))
    tokenizer, text = og.Tokenizer(model), TextTokenizer(artifact.directory)
    for prompt in TEXT:
        encoded = [int(i) for i in tokenizer.encode(prompt)]
        assert encoded == text.encode(prompt)[-len(encoded) :]  # genai leaves it to its caller to put <s> first
        ids = text.encode(prompt)
        stream = tokenizer.create_stream()
        assert "".join(stream.decode(token) for token in encoded) == prompt
        running, tokens = generator(model, [ids], NEW), []
        while not running.is_done():
            running.generate_next_token()
            tokens.append(int(running.get_next_tokens()[0]))
        assert tokens == ours(artifact, ids)


def test_a_hybrid_hands_on_its_states(hybrid: Callable[..., Artifact]) -> None:
    artifact = hybrid()
    rows = [np.random.default_rng(seed).integers(3, 61, 17).tolist() for seed in range(2)]
    model, session = og.Model(str(artifact.directory)), open_session(artifact)
    for given in (rows, rows[:1]):
        running = generator(model, given, NEW)
        while not running.is_done():
            running.generate_next_token()
        for row, ids in enumerate(given):
            wanted = list(Generation(session, ids, NEW, stop_at_eos=False))
            found = [int(token) for token in running.get_sequence(row)][len(ids) :]
            end = wanted.index(0) if 0 in wanted else NEW  # genai takes 0 for the end where a model names none
            assert found[:end] == wanted[:end] and end > 8
    with pytest.raises(RuntimeError, match="Recurrent states cannot be partially rewound"):
        running.rewind_to(5)


def test_a_batch_gives_each_row_its_own_answer(with_byte_level_tokenizer: WithTokenizer) -> None:
    """Rows have equal lengths, since genai 0.18 masks padding as if it were tokens, with any model."""
    _, artifact = with_byte_level_tokenizer()
    text = TextTokenizer(artifact.directory)
    rows = [text.encode(prompt)[:20] for prompt in TEXT]
    running = generator(og.Model(str(artifact.directory)), rows, 8)
    while not running.is_done():
        running.generate_next_token()
    for index, row in enumerate(rows):
        assert [int(token) for token in running.get_sequence(index)][20:] == ours(artifact, row, 8)


def test_static_caches_and_caches_of_another_type_get_no_genai_config(exported: Any) -> None:
    manifest = exported()[1].manifest
    assert is_supported(manifest) and "genai_config.json" in manifest.files
    assert not is_supported(replace(manifest, cache_dtype="float16"))
    assert not exported(cache="static")[1].path("genai_config.json").exists()
