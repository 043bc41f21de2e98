"""Llama, and LUCID as the authors publish it: Llama's names with keys of its own."""

from __future__ import annotations

from lucid_deploy.model.families.family import Family


class _Llama(Family):
    model_type = "llama"
    architectures = ("LlamaForCausalLM", "LLaMAForCausalLM")
    about = "LUCID's published checkpoints are of this family"


FAMILY = _Llama()
