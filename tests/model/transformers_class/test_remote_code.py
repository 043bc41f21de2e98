"""Classes whose code lies beside the weights: run only if the user says so, then exported as any other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.hub import _check_settings

KIND = "two_gates"
CONFIGURATION = """
from transformers import LlamaConfig

print("configuration was run")

class TwoGatesConfig(LlamaConfig):
    model_type = "two_gates"
    def __init__(self, gate=0.5, **rest):
        self.gate = gate
        super().__init__(**rest)
"""
MODEL = """
import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP
from .configuration_two_gates import TwoGatesConfig

class TwoGatesMLP(LlamaMLP):
    def forward(self, x):
        return super().forward(x) + self.config.gate * torch.tanh(x)

class TwoGatesForCausalLM(LlamaForCausalLM):
    config_class = TwoGatesConfig
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = TwoGatesMLP(config)
        self.post_init()
"""
CONFIG = {
    "model_type": KIND,
    "architectures": ["TwoGatesForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_two_gates.TwoGatesConfig",
        "AutoModelForCausalLM": "modeling_two_gates.TwoGatesForCausalLM",
    },
    "gate": 0.25,
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep what transformers copies in a folder of the test, and forget what a test registered."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    for mapping in (CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "configuration_two_gates.py").write_text(CONFIGURATION)
    (path / "modeling_two_gates.py").write_text(MODEL)
    (path / "config.json").write_text(json.dumps(CONFIG))
    shapes = llama_shapes()
    draw = torch.Generator().manual_seed(0)
    tensors = {name: 0.2 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def llama_shapes() -> dict[str, tuple[int, ...]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    keys = {
        key: value for key, value in CONFIG.items() if key not in ("model_type", "architectures", "auto_map", "gate")
    }
    model = LlamaForCausalLM(LlamaConfig(**keys))
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def change(checkpoint: Path, **keys: Any) -> None:
    (checkpoint / "config.json").write_text(json.dumps({**CONFIG, **keys}))


def test_code_is_not_run_unless_the_user_says_so(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LucidError, match=r"configuration_two_gates\.py, modeling_two_gates\.py.*--trust-remote-code"):
        Checkpoint(checkpoint)
    with pytest.raises(LucidError, match="--trust-remote-code"):
        _check_settings(checkpoint, ())  # of one on the Hub, before its weights are downloaded
    assert capsys.readouterr().out == "" and KIND not in CONFIG_MAPPING


@pytest.mark.parametrize("attention", ["llama", "lucid"])
def test_the_model_is_what_the_code_computes(checkpoint: Path, attention: str) -> None:
    change(checkpoint, attention_type=attention)
    model = load_model(Checkpoint(checkpoint, trust_remote_code=True), torch.float64)
    ids = torch.arange(3, 23)[None]
    found = model(ids)[0]
    if attention == "llama":
        theirs = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[KIND]].from_pretrained(checkpoint, dtype=torch.float64)
        torch.testing.assert_close(found, theirs(ids).logits, rtol=1e-6, atol=1e-7)
    change(checkpoint, attention_type=attention, gate=0.0)
    other = load_model(Checkpoint(checkpoint), torch.float64)(ids)[0]
    assert not torch.allclose(found, other), "the gate of the code is computed"


def test_export_and_verify_take_the_option(checkpoint: Path, tmp_path: Path, preloaded: Path) -> None:
    artifact = str(tmp_path / "artifact")
    shown = CliRunner().invoke(
        main, ["export", str(checkpoint), "-o", artifact, "--cache", "growing", "--trust-remote-code"]
    )
    assert shown.exit_code == 0, shown.output
    again = subprocess.run(  # another process, which has not seen the code
        [preloaded / "lucid-deploy", "verify", artifact, "--quick"], capture_output=True, text=True
    )
    assert again.returncode == 2 and "--trust-remote-code" in again.stderr
    verified = CliRunner().invoke(main, ["verify", artifact, "--quick", "--trust-remote-code"])
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"auto_map": {}}, "names no code of its own"),
        ({"auto_map": {**CONFIG["auto_map"], "AutoConfig": "org/other--m.C"}}, "another repository"),  # type: ignore[dict-item]
        ({"auto_map": {**CONFIG["auto_map"], "AutoConfig": "nothing.C"}}, "cannot be loaded"),  # type: ignore[dict-item]
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "has a class of its own for qwen3"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "needs no code of its own"),
    ],
)
def test_what_is_not_run_is_refused(checkpoint: Path, keys: dict[str, Any], said: str) -> None:
    change(checkpoint, **keys)
    with pytest.raises(LucidError, match=said):
        Checkpoint(checkpoint, trust_remote_code=True)


def test_code_with_a_fault_is_one_line(checkpoint: Path) -> None:
    (checkpoint / "modeling_two_gates.py").write_text("raise SystemError('no\\nluck')")
    with pytest.raises(LucidError, match="cannot be loaded: SystemError: no luck"):
        Checkpoint(checkpoint, trust_remote_code=True)
