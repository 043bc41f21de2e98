import pytest
import torch

from lucid_deploy.parity.scenarios import Workload
from lucid_deploy.parity.targets import prepare
from tests.parity.small_models import session, small_model


@pytest.fixture(scope="session")
def model():
    """LUCID attention with RoPE and a short context: prompts of 35 tokens, 8 decode steps."""
    return small_model(max_position_embeddings=48)


@pytest.fixture(scope="session")
def targets(model):
    embeddings = model.model.embed_tokens.weight.numpy()
    return prepare(session(model), session(model, torch.float64), workload=Workload(steps=8), embeddings=embeddings)


@pytest.fixture(scope="session")
def long():
    """A layer and targets of full length, with 20 decode steps: prompts that cross the ends of blocks of 128."""
    model = small_model(num_hidden_layers=1)
    return model, prepare(session(model), session(model, torch.float64), workload=Workload(steps=20))
