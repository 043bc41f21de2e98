"""A LUCID model whose solve can be any of :mod:`lucid_deploy.bench.solvers`, with everything else as it is."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lucid_deploy.bench.solvers import entries, solve
from lucid_deploy.model.attention.lucid import LucidAttention
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import LayerKind, layer_kind, register_layer_kind
from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.model.mixer import Mixer, Step
from lucid_deploy.plugins.causal_attention import causal_attention

LUCID, SOLVER = "lucid", "lucid_solver"


class SolverAttention(LucidAttention):
    """LUCID attention that solves a whole prompt in one of the ways to be compared.

    Attributes:
        way: Name of a solver, and the type that it rounds to.
    """

    way = ("dense", "float32")

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, k_past: Tensor, v_past: Tensor, step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Solve prompts; questions after them and single tokens go LUCID's usual way."""
        if k_past.shape[2] or k.shape[2] == 1:
            return super().attend(q, k, v, keys, k_past, v_past, step)
        x = entries(k, self.config.rms_norm_eps)  # (B, KV, N, N)
        if step.mask is not None:
            x = x * (step.mask[:, None, :, None] & step.mask[:, None, None, :])
        y = solve(*self.way, x, v)
        return causal_attention(q, keys, y, step.mask), y, y


class SolverKind(LayerKind):
    """LUCID's layers with :class:`SolverAttention`."""

    name = SOLVER

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        """See :meth:`LayerKind.describe`."""
        return replace(layer_kind(LUCID).describe(config, index, cache_dtype), kind=self.name)

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        """See :meth:`LayerKind.mixer`."""
        return SolverAttention(config, implementation)


def with_solvers(model: LucidForCausalLM) -> LucidForCausalLM:
    """Return the model with LUCID layers whose solve :func:`use` chooses; its weights are shared."""
    register_layer_kind(SolverKind())
    kinds = tuple(SOLVER if kind == LUCID else kind for kind in model.config.kinds)
    other = LucidForCausalLM(replace(model.config, layer_kinds=kinds))
    other.load_state_dict(model.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def use(model: LucidForCausalLM, solver: str, dtype: str) -> None:
    """Let the layers of :func:`with_solvers` solve in another way from now on."""
    for module in model.modules():
        if isinstance(module, SolverAttention):
            module.way = (solver, dtype)
