"""A hybrid with a tokenizer of words, exported once per run: a gated delta layer, then a LUCID layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.export import ExportOptions, export
from tests.model.families.flash_model import MODELS, Flash
from tests.once_per_run import made_once, run_folder

VOCABULARY = 61  # words w0 to w60
MODEL = {
    **MODELS["decay, shared keys, attention"],
    "num_hidden_layers": 2,
    "head_dim": 16,
    "expand_v": 1.0,
    "attn": {"layers": [1], "num_heads": 3, "num_kv_heads": 1, "rope_theta": 500.0},  # of width 16, as GPU kernels need
    "attention_type": "lucid",
}


def model() -> Flash:
    return Flash(MODEL, solved=tuple(MODEL["attn"]["layers"]))


def write_hybrid(folder: Path) -> Path:
    """Write the checkpoint; return its directory."""
    model().save(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Return a function that gives the hybrid's artifact, or one form: ``hybrid("static")``. Change no files."""
    root = run_folder(tmp_path_factory, "hybrid")

    def make(folder: Path) -> None:
        export(write_hybrid(folder / "checkpoint"), folder / "artifact", ExportOptions())

    def get(cache: str | None = None) -> Artifact:
        artifact = open_artifact(made_once(root, "artifact", make) / "artifact")
        return artifact if cache is None else artifact.form(cache)

    return get
