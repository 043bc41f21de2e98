"""What commands say of a quantized artifact is what its manifest and its files say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantization import LearnedTensor, Method
from lucid_deploy.cli._quantization import method_sentence, quantization_facts, quantization_sentence

Made = Callable[..., tuple[Path, Artifact]]


def test_the_sentence_and_the_facts_agree(quantized: Made) -> None:
    _, artifact = quantized("int8")
    facts, said = quantization_facts(artifact), quantization_sentence(artifact)
    assert facts is not None and (facts["scheme"], facts["block_size"]) == ("int8", 32)
    assert said.startswith(f"Quantized {len(facts['tensors'])} weights to int8 in blocks of 32 ({facts['format']};")
    assert f"The weights are {facts['compression']:.1f} times smaller than in float32." in said
    assert 1 < facts["compression"] < 4, "int8 and its scales, beside a float embedding"


@pytest.mark.parametrize(("count", "shown"), [(0, "nothing"), (2, "w0, w1"), (6, "w0, w1, w2, w3 and 2 more")])
def test_what_is_kept_is_named_up_to_four(count: int, shown: str, quantized: Made) -> None:
    _, artifact = quantized("int8")
    record = artifact.manifest.quantization
    kept = tuple(f"model.w{i}.weight" for i in range(count))
    changed = replace(artifact.manifest, quantization=replace(record, kept=kept))
    assert f"kept in float32: {shown}." in quantization_sentence(Artifact(artifact.directory, changed))


def test_nothing_is_said_where_nothing_is_quantized(quantized: Made) -> None:
    assert quantization_facts(quantized(None)[1]) is None


def test_what_was_learned_is_said_in_a_sentence() -> None:
    assert method_sentence(Method()) == ""
    tensors = {str(part): LearnedTensor(0.1, part * 0.01, 0.1) for part in (2, 4, 9)}
    said = method_sentence(Method("gptq", {}, {"file": "text", "tokens": 512}, tensors))
    assert said == (
        " The numbers of 3 were chosen by gptq over 512 tokens of text; their layers' errors are 0.40 of "
        "round-to-nearest's (median)."
    )
