"""Small random models whose keys are correlated, so that the triangular solve matters."""

import copy
from dataclasses import replace

import numpy as np
import torch

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.parity.record import record_together
from lucid_deploy.parity.scenarios import ONE_SHOT, SCHEDULES
from lucid_deploy.runtimes.torch.layers import TorchLayers
from lucid_deploy.runtimes.torch.session import TorchSession

VOCAB = 61
LAYERS = 3


def small_config(**changes) -> LucidConfig:
    fields = dict(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=20,
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
        rope_theta=10000.0,
    )
    return LucidConfig(**{**fields, **changes})


def small_model(
    seed: int = 0, correlation: float = 0.95, implementation: str = "blocked", **changes
) -> LucidForCausalLM:
    """Float32 weights. ``correlation``: share of a key's energy that all tokens have in common, roughly."""
    torch.manual_seed(seed)
    model = LucidForCausalLM(small_config(**changes), implementation).eval().requires_grad_(False)
    common = torch.randn(model.config.hidden_size)
    embedding = model.model.embed_tokens.weight
    embedding.mul_((1 - correlation) ** 0.5).add_(common * correlation**0.5)
    for name, parameter in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")):
            parameter.mul_(2.0)  # torch's initial weights are small: attention would hardly change the residual
    return model


def in_dtype(model: LucidForCausalLM, dtype: torch.dtype) -> LucidForCausalLM:
    return copy.deepcopy(model).to(dtype)


def session(model: LucidForCausalLM, dtype: torch.dtype = torch.float32) -> TorchSession:
    return TorchSession(in_dtype(model, dtype))


def layers(model: LucidForCausalLM, dtype: torch.dtype = torch.float32) -> TorchLayers:
    return TorchLayers(in_dtype(model, dtype))


def record(session, scenario, schedule=ONE_SHOT):
    return record_together(session, [scenario], schedule)[scenario.name]


def assert_same(found, wanted, tolerance=1e-11):
    assert found.tensors.keys() == wanted.tensors.keys()
    for tensor, rows in wanted.tensors.items():
        assert found.tensors[tensor].start == rows.start
        np.testing.assert_allclose(
            found.tensors[tensor].values, rows.values, rtol=0, atol=tolerance, err_msg=str(tensor)
        )


def fed(targets, *names):
    """Targets of some schedules, one-shot always among them: each takes time."""
    some = tuple(schedule for schedule in SCHEDULES if schedule.one_shot or schedule.name in names)
    return replace(targets, workload=replace(targets.workload, schedules=some))
