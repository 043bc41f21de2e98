"""Small checkpoints, and artifacts exported from them once per test run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.model.lucid import LucidForCausalLM
from tests.once_per_run import made_once, run_folder

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before a plugin imports onnxruntime
pytest_plugins = [
    "tests.byte_level_checkpoints",
    "tests.compiled_once",
    "tests.cpu_library",
    "tests.demo_artifacts",
    "tests.garbage",
    "tests.given_tasks",
    "tests.hybrid_artifact",
    "tests.nothing_skipped",
    "tests.one_core",
    "tests.own_folders",
    "tests.preloaded",
    "tests.remembered_traces",
    "tests.slow_tests",
    "tests.stand_in_plugin",
]


TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 36,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "attention_type": "lucid",
    "which_rmsnorm": "exp_k_norm",
    "use_rope": True,
    "eos_token_id": 1,
}

# One LUCID layer and one of each kind whose decode has Attention in the main graph, with grouped heads.
MIXED: dict[str, Any] = {
    "num_hidden_layers": 3,
    "layer_types": ["full_attention", "full_attention", "sliding_attention"],
    "lucid_layers": [0],
    "sliding_window": 9,
}

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine() -> Iterator[None]:
    """Commands print no remarks on load or progress, which would depend on other work of the machine.

    Tests of these remarks set a load or an interval of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lucid_deploy.cli._console.INTERVAL", float("inf"))
        patch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)
        yield


def write_checkpoint(directory: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a random checkpoint whose keys are correlated, as trained ones are: else any wrong solve passes."""
    raw = {**TINY, **changes}
    config = parse_config(raw, "test configuration")
    torch.manual_seed(seed)
    model = LucidForCausalLM(config)
    with torch.no_grad():
        common = torch.randn(config.hidden_size)
        model.model.embed_tokens.weight.mul_(0.5).add_(common)  # tokens share a direction …
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.mul_(3)  # … that the keys see
            layer.self_attn.v_proj.weight.mul_(3)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread_in_fixtures() -> None:
    """PyTorch uses one thread: these models are too small for two, which would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_torch_thread(_one_torch_thread_in_fixtures: None) -> Iterator[None]:
    """Each test starts with one PyTorch thread, whatever the test before it has set."""
    yield
    torch.set_num_threads(1)


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Return a function that writes a tiny checkpoint: ``make_checkpoint(name="checkpoint", **config_changes)``."""

    def make(name: str = "checkpoint", seed: int = 0, **changes: Any) -> Path:
        return write_checkpoint(tmp_path / name, seed, **changes)

    return make


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Artifact]]:
    """Return a function giving (checkpoint, artifact) for a configuration, exported once. Do not change the files."""
    root = run_folder(tmp_path_factory, "exported")

    def get(
        dtype: str = "float32",
        logits: str = "last",
        cache: str | None = "growing",
        cache_dtype: str = "auto",
        inline: bool = False,
        opset: int | None = None,
        **changes: Any,
    ) -> tuple[Path, Artifact]:
        key = json.dumps([dtype, logits, cache, cache_dtype, inline, opset, changes], sort_keys=True)
        stored = {"cache": cache, "cache_dtype": cache_dtype}
        options = ExportOptions(dtype, logits, **stored, inline=inline, opset=opset)

        def make(folder: Path) -> None:
            export(write_checkpoint(folder / "checkpoint", **changes), folder / "artifact", options)

        folder = made_once(root, key, make)
        return folder / "checkpoint", open_artifact(folder / "artifact")

    return get


@pytest.fixture(scope="session")
def quantized(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[Path, Artifact]]:
    """Return a function giving (checkpoint, artifact) of one layer, exported once. Do not change the files.

    ``scheme`` None quantizes nothing; ``source`` is a checkpoint instead of the tiny one.
    """
    from lucid_deploy.export.quantize.options import QuantizeOptions

    root = run_folder(tmp_path_factory, "quantized")

    def get(
        scheme: str | None,
        form: str = "auto",
        dtype: str = "float32",
        cache: str = "growing",
        source: str | None = None,
        changes: Any = None,
        cache_dtype: str = "auto",
        **more: Any,
    ) -> tuple[Path, Artifact]:
        model = json.dumps([source, changes], sort_keys=True)

        def write(folder: Path) -> None:
            write_checkpoint(folder / "checkpoint", **{"num_hidden_layers": 1, **(changes or {})})

        checkpoint = Path(source) if source else made_once(root, model, write) / "checkpoint"
        quantize = None if scheme is None else QuantizeOptions(scheme, form, **{"method": "rtn", **more})

        def make(folder: Path) -> None:
            stored = {"cache": cache, "cache_dtype": cache_dtype}
            export(source or checkpoint, folder / "artifact", ExportOptions(dtype, quantize=quantize, **stored))

        key = json.dumps([scheme, form, dtype, cache, cache_dtype, model, more], sort_keys=True)
        return checkpoint, open_artifact(made_once(root, key, make) / "artifact")

    return get


@pytest.fixture
def artifact_copy(exported: Callable[..., tuple[Path, Artifact]], tmp_path: Path) -> Path:
    """Return a copy of the tiny artifact that a test may damage."""
    import shutil

    _, artifact = exported()
    return Path(shutil.copytree(artifact.directory, tmp_path / "artifact"))


@pytest.fixture
def with_tokenizer(artifact_copy: Path) -> Path:
    """Return a copy of the tiny artifact with a tokenizer whose words are w0 to w96."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(artifact_copy / "tokenizer.json"))
    return artifact_copy
