"""Models in memory: exported as what they compute, or refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lucid_deploy as ld
from lucid_deploy.errors import LucidError

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


class ThreeHalvesConfig(LlamaConfig):
    model_type = "three_halves"


class ThreeHalvesForCausalLM(LlamaForCausalLM):
    """A class of somebody's own: its embedding is scaled."""

    config_class = ThreeHalvesConfig

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **rest: Any) -> Any:
        if inputs_embeds is None:
            inputs_embeds = 1.5 * self.model.embed_tokens(input_ids)
        return super().forward(inputs_embeds=inputs_embeds, **rest)


def model(**keys: Any) -> Any:
    torch.manual_seed(0)
    return ThreeHalvesForCausalLM(ThreeHalvesConfig(**SIZES, **keys)).eval()


def test_a_class_of_ones_own_is_exported_from_memory(tmp_path: Path) -> None:
    live = model()
    artifact = ld.export(live, tmp_path / "artifact", cache="growing", keep_checkpoint=tmp_path / "kept")
    ld.verify(artifact, quick=True).raise_if_failed()
    ids = [5, 6, 7]
    with ld.open(artifact) as opened:
        found = opened.generate(ids, max_new_tokens=4).ids
    wanted = live.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)[0, 3:]
    assert list(found) == wanted.tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda live: live.train(), "training mode"),
        (lambda live: live.to("meta"), "meta device"),
        (lambda live: live.model, "not a transformers model that generates text"),
        (lambda live: peft.get_peft_model(live, peft.LoraConfig(target_modules=["q_proj"])), "for merge_adapter"),
        (lambda live: object(), "not a transformers model"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(LucidError, match=said):
        ld.export(change(model()), tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
