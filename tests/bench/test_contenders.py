"""Contenders of one artifact compute one function, and those that cannot be opened are refused by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.bench.contenders import KINDS, Contender, open_contender
from lucid_deploy.bench.runner import Plan
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.options import RuntimeOptions

Exported = Callable[..., tuple[Path, Artifact]]
IDS = np.array([[5, 5, 5, 9, 5, 5, 3]])


def test_those_of_one_artifact_give_the_same_logits(exported: Exported) -> None:
    directory = str(exported()[1].directory)
    contenders = [Contender(kind, kind, directory) for kind in KINDS]
    assert [each.name for each in contenders if not each.runs_artifact] == ["transformers", "llama.cpp"]
    sessions = [open_contender(each) for each in contenders if each.runs_artifact]
    first, *others = [session.prefill(IDS, session.empty_cache()) for session in sessions]
    for logits in others:
        np.testing.assert_allclose(logits, first, atol=1e-4)
    assert all(session.context_limit is None for session in sessions), "lengths beyond the model's are measured too"


@pytest.mark.parametrize("longest", [512, 513, None])
def test_an_artifact_runs_as_for_anybody_where_no_context_is_beyond_the_models(
    exported: Exported, longest: int | None
) -> None:
    directory = str(exported(cache_dtype="int8")[1].directory)
    options = RuntimeOptions("onnxruntime", kernels="functions")
    session = open_contender(Contender("it", "artifact", directory, options, longest))
    assert (session.allow_extrapolation, session.reads_stored_cache) == (longest != 512, longest == 512)


def test_the_longest_context_is_that_behind_the_decoded_tokens() -> None:
    assert Plan((8, 500), steps=11).longest == 512
    assert Plan((8, 500), stages=("prefill",)).longest == 500


def test_transformers_has_the_shape_and_not_the_weights(exported: Exported) -> None:
    _, artifact = exported()
    session = open_contender(Contender("theirs", "transformers", str(artifact.directory)))
    assert session.prefill(IDS, session.empty_cache()).shape == (1, 1, artifact.config.vocab_size)
    assert session.runtime == "transformers"


def test_an_unknown_kind(exported: Exported) -> None:
    with pytest.raises(
        LucidError, match="contender 'vllm'; known are artifact, torch-dense, torch-blocked, transformers"
    ):
        open_contender(Contender("x", "vllm", str(exported()[1].directory)))


def test_without_transformers_the_extra_is_named(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "lucid_deploy.bench.transformers_session", raising=False)
    with pytest.raises(LucidError, match=r'transformers is needed to .* pip install .*"transformers'):
        open_contender(Contender("x", "transformers", str(exported()[1].directory)))
