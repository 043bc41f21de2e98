"""examples/convert/convert.py: what is exported computes what was trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

import lucid_deploy as ld
from tests.byte_level_checkpoints import write_tokenizer

sys.path.append(str(Path(__file__).parents[2] / "examples" / "convert"))
import convert


@pytest.mark.compat  # trains
def test_the_export_computes_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, output, text = tmp_path / "base", tmp_path / "converted", tmp_path / "text.txt"
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}
    config = LlamaConfig(**shape, **heads, max_position_embeddings=128, initializer_range=0.2)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(base)
    write_tokenizer(base, 300)
    text.write_text("the cat sat on the mat and the dog sat on the log, so the rat sat on the hat. " * 20)
    monkeypatch.setattr(convert, "TOKENS", 64)
    monkeypatch.setattr(convert, "HELD_OUT", ("wsgiref",))
    arguments = [str(base), str(output), "--layers", "2", "--rank", "4", "--text", str(text)]
    first = CliRunner().invoke(convert.main, [*arguments, "--steps", "10"], catch_exceptions=False)
    more = CliRunner().invoke(convert.main, [*arguments, "--steps", "20"], catch_exceptions=False)
    assert "10: divergence" in first.output and "20: divergence" in more.output and "\n10: div" not in more.output
    result = json.loads((output / "result.json").read_text())
    assert all(found["kl"] < result["untrained"][name]["kl"] for name, found in result["trained"].items())

    artifact = ld.export(output / "checkpoint", output / "artifact", merge_adapter=output / "adapter")
    trained = PeftModel.from_pretrained(convert.load(base, torch.float32), output / "adapter")
    ids = torch.randint(0, 300, (1, 40)).repeat(1, 2)  # repeated tokens: a wrong solve would show
    with torch.no_grad():
        wanted = convert.log_probabilities(trained, ids, set(result["layers"]))[:, -1]
        other = convert.log_probabilities(trained, ids, set())[:, -1]
    with artifact.open() as opened:
        logits = torch.from_numpy(np.asarray(opened.session.prefill(ids.numpy(), opened.session.empty_cache(1))))
    told = logits.log_softmax(-1)
    assert (told - wanted).abs().max() < 1e-4 < 1e-2 < (other - wanted).abs().max()
