"""Run PyTorch's operators and a whole model with the kernels: in an interpreter's process, or on a GPU."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention_operator
from lucid_deploy.plugins.hosts.triton import launch
from lucid_deploy.plugins.hosts.triton.torch_kernels import use_kernels
from lucid_deploy.plugins.precondition.torch_operator import precondition_operator
from lucid_deploy.plugins.shared.plan import Plan
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.plugins.problems import keys

PROMPT, CHUNK, STEPS, DRAFTED = 37, 20, 3, 6


def run_tokens(session: TorchSession) -> dict[str, np.ndarray]:
    """Run a padded batch in two chunks, token by token, and a few at once; return all logits and the cache."""
    generator = np.random.default_rng(5)
    ids = generator.integers(0, session.config.vocab_size, (2, PROMPT + STEPS + DRAFTED))
    ids[1, 9:15] = ids[1, 3:9]  # repeated tokens: equal keys but for their positions
    mask = np.ones((2, PROMPT), bool)
    mask[0, :5] = False
    cache = session.empty_cache(2)
    parts = (slice(0, CHUNK), slice(CHUNK, PROMPT))
    logits = [session.prefill_all(ids[:, part], cache, mask[:, part]) for part in parts]
    logits += [session.decode(ids[:, i : i + 1], cache) for i in range(PROMPT, PROMPT + STEPS)]
    drafted = np.ones((2, DRAFTED), bool)
    drafted[1, -2:] = False
    logits.append(session.decode_several(ids[:, -DRAFTED:], cache, drafted))
    token = np.concatenate([mask, np.ones((2, STEPS), bool), drafted], axis=1)
    found = {"logits": np.concatenate(logits, axis=1)[token]}
    for layer, (k, y) in enumerate(session.layer_arrays(cache)):
        found |= {f"k{layer}": k.transpose(0, 2, 1, 3)[token], f"y{layer}": y.transpose(0, 2, 1, 3)[token]}
    return found


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - exact) / np.linalg.norm(exact))


def run_model(checkpoint: Path, dtype: str, device: str = "cpu") -> dict[str, Any]:
    """Return a model's errors with the kernels and with PyTorch's operators, and the number of launches per kernel."""
    if device == "cpu":
        use_kernels("cpu")
    kind = getattr(torch, dtype)
    model = load_model(checkpoint, kind, device)
    exact_model = load_model(checkpoint, torch.float64, implementation="reference")
    exact_model.load_state_dict({name: x.double() for name, x in model.state_dict().items()})  # the rounded weights
    launched: Counter[str] = Counter()
    execute = launch.execute

    def counted(plan: Plan, *arguments: Any) -> None:
        launched.update(step.kernel for step in plan.steps)
        execute(plan, *arguments)

    launch.execute = counted
    try:
        exact = run_tokens(TorchSession(exact_model))
        assert not launched, "float64 is for PyTorch's versions"
        found = run_tokens(TorchSession(model))
        counts = dict(launched)
        with ExitStack() as disabled:
            for operator in (precondition_operator, decode_attention_operator):
                disabled.enter_context(operator.set_kernel_enabled(device, enabled=False))
            plain = run_tokens(TorchSession(model))
    finally:
        launch.execute = execute
    assert dict(launched) == counts, "disabled kernels were launched"
    errors = {name: (relative(found[name], exact[name]), relative(plain[name], exact[name])) for name in exact}
    return {"launched": counts, "errors": errors}


def check_operators(dtype: str) -> bool:
    """Run PyTorch's opcheck on the operators with the kernels registered: schema, aliases, fake tensors."""
    use_kernels("cpu")
    kind = getattr(torch, dtype)
    k, y = keys(0.9, 2, 2, 12, 36).to(kind), torch.randn(2, 2, 12, 36).to(kind)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, :3] = False
    cache, new, one = slice(0, 5), slice(5, 12), slice(11, 12)
    tensors = (k[:, :, new], y[:, :, new], k[:, :, cache], y[:, :, cache], mask)
    torch.library.opcheck(precondition_operator, (*tensors, 1e-5, "blocked"))
    q = torch.randn(2, 4, 1, 36).to(kind)
    tensors = (q, k[:, :, one], y[:, :, one], k[:, :, :11], y[:, :, :11], mask)
    torch.library.opcheck(decode_attention_operator, (*tensors, 1e-5, "fused"))
    q = torch.randn(2, 4, 7, 36).to(kind)
    tensors = (q, k[:, :, new], y[:, :, new], k[:, :, cache], y[:, :, cache], mask)
    torch.library.opcheck(decode_attention_operator, (*tensors, 1e-5, "fused"))
    return True
