"""Notes on a checkpoint's settings of ``generate``, compared with what transformers does with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from lucid_deploy.export.companions import copy_companions


def write(directory: Path, **settings: Any) -> Path:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, **settings}))
    return directory


def make_model(vocabulary: int) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, eos_token_id=None, **sizes)).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(20)


def generated(model: Any, directory: Path, **settings: Any) -> list[int]:
    """Return what transformers generates with the settings in a file."""
    torch.manual_seed(0)
    config = GenerationConfig.from_pretrained(str(write(directory, **settings)))
    config.max_new_tokens, config.eos_token_id, config.pad_token_id = 12, None, 0
    row: list[int] = model.generate(torch.tensor([[3, 4, 3, 4]]), generation_config=config)[0].tolist()
    return row


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"repetition_penalty": 9.5}, "sets repetition_penalty 9.5: transformers"),
        ({"no_repeat_ngram_size": 2}, "sets no_repeat_ngram_size 2: transformers"),
        ({"suppress_tokens": list(range(2, 12))}, "sets suppress_tokens: transformers"),
        (
            {"do_sample": True, "temperature": 9.0, "top_p": 1.0, "top_k": None},
            "sets do_sample true, temperature 9.0: transformers",
        ),
        ({"do_sample": True}, "sets do_sample true: transformers"),
        ({"do_sample": True, "top_k": 7}, "sets do_sample true, top_k 7: transformers"),
        ({"do_sample": False, "repetition_penalty": 1.0, "num_beams": 1, "max_length": 20, "use_cache": True}, None),
    ],
)
def test_settings_are_named_that_change_what_transformers_generates(
    settings: dict[str, Any], said: str | None, model: Any, tmp_path: Path
) -> None:
    plain = generated(model, tmp_path)
    assert (generated(model, tmp_path, **settings) != plain) == (said is not None)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "artifact").mkdir()
    notes = copy_companions(write(tmp_path, **settings), tmp_path / "artifact")
    assert notes == () if said is None else said in notes[0]
