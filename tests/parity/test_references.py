"""The models that a session is held against."""

import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.parity.references import ReferenceModels, find_checkpoint
from lucid_deploy.runtimes.torch.session import TorchSession

CONTEXT = 48


def test_the_recorded_source_is_the_default(exported):
    checkpoint, artifact = exported(max_position_embeddings=CONTEXT)
    assert find_checkpoint(artifact, None).directory == checkpoint
    with pytest.raises(LucidError, match="no checkpoint"):
        find_checkpoint(artifact, str(checkpoint / "nothing"))


@pytest.fixture
def models(exported):
    checkpoint, _ = exported(max_position_embeddings=CONTEXT)
    source, seen = Checkpoint(checkpoint), []
    candidate = TorchSession(load_model(source).store_cache_as("int8"))
    return ReferenceModels(candidate, source, progress=lambda *step: seen.append(step)), seen


def test_each_model_has_its_precision_and_its_cache(models):
    models, _ = models
    kinds = [(s.dtype, s.cache_dtype) for s in (models.baseline(), models.reference(), models.rounded())]
    assert kinds == [("float32", "int8"), ("float64", "float64"), ("float64", "int8")]
    assert not models.quantized


def test_a_quantized_artifact_is_held_against_its_own_weights(quantized):
    checkpoint, artifact = quantized("int8", changes={"max_position_embeddings": CONTEXT})
    source = Checkpoint(checkpoint)
    models = ReferenceModels(TorchSession(load_model(source)), source, artifact)
    assert models.quantized
    ids = torch.arange(7)[None]
    own, first = (model.model(ids)[0] for model in (models.reference(), models.original()))
    assert own.dtype == first.dtype == torch.float64
    exact = load_model(source, torch.float64)(ids)[0]
    torch.testing.assert_close(first, exact, rtol=1e-10, atol=1e-10)
    assert (own - exact).abs().max() > 1e-4  # what quantization cost
