"""What ``export`` prints about a checkpoint: defaults and assumptions that ``config.json`` does not state."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lucid_deploy.cli import main

MakeCheckpoint = Callable[..., Path]
BETA = "use_beta is true, and the checkpoint has no tensors of beta"
# The keys that the authors' configuration file has beyond Llama's.
THEIRS: dict[str, Any] = {
    "attention_type": "oglucid",
    "use_forget_gate": False,
    "use_token_grad_clip": False,
    "key_scaling_exp": 0,
    "which_rmsnorm": "exp_k_norm",
    "use_beta": True,
}


def printed(*arguments: Any) -> str:
    result = CliRunner().invoke(main, [str(item) for item in arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """An artifact of the authors' configuration with a key that nobody knows, and what its export printed."""
    from tests.conftest import write_checkpoint

    root = tmp_path_factory.mktemp("official")
    checkpoint = write_checkpoint(root / "checkpoint", num_hidden_layers=1, **THEIRS)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "zeta_gain": 3}))
    words = ("export", checkpoint, "-o", root / "artifact", "--assume-unused", "zeta_gain", "--cache", "growing")
    return root, printed(*words).splitlines()


def test_export_says_attention_positions_and_layers(official: tuple[Path, list[str]]) -> None:
    said = official[1]
    assert "verify.onnx " in said[0] and said[0].endswith(
        "; 1 LUCID layer, rotary positions (base 10000), float32, growing cache"
    )
    assert said[1].startswith(BETA)
    assert said[2:] == ["Assumed unused: zeta_gain, which is 3."]


def test_verify_ignores_the_same_unknown_key(official: tuple[Path, list[str]]) -> None:
    assert "PASSED" in printed("verify", official[0] / "artifact", "--quick", "--steps", 2)


def test_standard_attention_by_default_is_printed(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(num_hidden_layers=1)
    config = json.loads((checkpoint / "config.json").read_text())
    for key in ("attention_type", "which_rmsnorm", "use_rope"):
        del config[key]
    (checkpoint / "config.json").write_text(json.dumps(config))
    (said,) = printed("export", checkpoint, "-o", tmp_path / "artifact", "--cache", "growing").splitlines()
    assert "; 1 layer of standard attention, rotary positions (base 10000), float32, growing" in said
