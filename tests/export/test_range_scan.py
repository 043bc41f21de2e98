"""Before a float16 export: what would overflow is refused, by layer and tensor, and would really have been infinite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.range_scan import CACHED, LIMIT, MARGIN, RangeScan, sample_prompts, scan
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.torch.session import TorchSession


def scaled(checkpoint: Path, **factors: float) -> Path:
    """Multiply weights of a checkpoint; dots of their names are written as double underscores."""
    tensors = load_file(checkpoint / "model.safetensors")
    for name, factor in factors.items():
        tensors[f"model.layers.{name.replace('__', '.')}.weight"] *= factor
    assert all(value.abs().max() < LIMIT for value in tensors.values())  # it is no weight that overflows
    save_file(tensors, checkpoint / "model.safetensors")
    return checkpoint


PRODUCT = {"1__mlp__up_proj": 3e3, "1__mlp__gate_proj": 3e3}
CASES: list[tuple[dict[str, float], str]] = [
    (PRODUCT, "layer 1, gate·up product"),
    ({"0__self_attn__k_proj": 2e4}, "layer 0, key"),
    ({"1__self_attn__v_proj": 2e4}, "layer 1, value"),
    ({"0__mlp__down_proj": 5e5}, "layer 0, down_proj output"),
]


@pytest.mark.parametrize(("factors", "where"), CASES, ids=[where.split(", ")[1].split("·")[0] for _, where in CASES])
def test_overflow_is_refused_and_real(
    make_checkpoint: Any, tmp_path: Path, factors: dict[str, float], where: str
) -> None:
    checkpoint = scaled(make_checkpoint(), **factors)
    with pytest.raises(LucidError, match=rf"{where} reaches .* Export with --dtype bfloat16 or float32"):
        export(checkpoint, tmp_path / "artifact", ExportOptions("float16"))
    assert not (tmp_path / "artifact").exists()
    assert finite(TorchSession(load_model(Checkpoint(checkpoint), torch.float32)))
    assert not finite(TorchSession(load_model(Checkpoint(checkpoint), torch.float16)))


def test_a_residual_stream_that_grows_beyond_is_refused(make_checkpoint: Any, tmp_path: Path) -> None:
    """What is added and what it is added to both fit; their sum does not."""
    checkpoint = make_checkpoint()
    tensors = load_file(checkpoint / "model.safetensors")
    for name, where, tensor in (
        ("model.embed_tokens.weight", "embedding", "residual stream"),
        ("model.layers.0.mlp.down_proj.weight", "layer 0", "down_proj output"),
    ):
        tensors[name] *= 0.9 * LIMIT / scan(Checkpoint(checkpoint)).peaks[where][tensor]
        save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(LucidError, match=r"layer 0, residual stream reaches"):
        export(checkpoint, tmp_path / "artifact", ExportOptions("float16"))
    assert not finite(TorchSession(load_model(Checkpoint(checkpoint), torch.float16)))


def test_a_skipped_scan_is_recorded_and_the_artifact_overflows(make_checkpoint: Any, tmp_path: Path) -> None:
    checkpoint = scaled(make_checkpoint(), **PRODUCT)
    skipped = export(checkpoint, tmp_path / "artifact", ExportOptions("float16", range_scan=False))
    assert skipped.manifest.ranges == {"skipped": True}
    assert not finite(open_session(skipped))


def finite(session: Session[Any]) -> bool:
    """Whether logits, K and Y of random tokens are."""
    cache = session.empty_cache(1)
    logits = session.prefill(np.random.default_rng(0).integers(0, 97, (1, 332)), cache)
    rows = [array for layer in session.layer_arrays(cache) for array in layer]
    return all(bool(np.isfinite(array).all()) for array in (logits, *rows))


def test_the_scan_measures_what_the_model_computes(make_checkpoint: Any) -> None:
    """Against the model run as a whole: key, y and logits; and tensors within a layer by hand."""
    checkpoint = Checkpoint(make_checkpoint())
    found, model = scan(checkpoint), load_model(checkpoint)
    prompts = sample_prompts(checkpoint, None)
    assert found.tokens == sum(ids.size for ids in prompts) and found.prompts == sum(len(ids) for ids in prompts)
    peaks = {"logits": 0.0, "y": 0.0, "product": 0.0}
    seen: list[float] = []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda _, args: seen.append(float(args[0].abs().max()))
    )
    with torch.inference_mode():
        for ids in prompts:
            logits, layers = model(torch.from_numpy(ids))
            peaks["logits"] = max(peaks["logits"], float(logits.abs().max()))
            peaks["y"] = max(peaks["y"], float(layers[1][1].abs().max()))
    assert found.peaks["head"]["logits"] == pytest.approx(peaks["logits"], rel=1e-5)
    assert found.peaks["layer 1"]["y"] == pytest.approx(peaks["y"], rel=1e-5)
    assert found.peaks["layer 1"]["gate·up product"] == pytest.approx(max(seen), rel=1e-5)
    assert list(found.peaks) == ["embedding", "layer 0", "layer 1", "head"]


def test_near_overflow_is_a_warning_that_is_recorded() -> None:
    found = RangeScan(1, 2, None, {"layer 0": {"key": LIMIT / MARGIN * 1.01, "value": 1.0}, "head": {"logits": 3.0}})
    found.check(Path("checkpoint"), "")
    assert len(found.warnings()) == 1 and found.warnings()[0].startswith("layer 0, key: 1.654e+04 is within a factor")
    assert found.to_dict()["warnings"] == found.warnings()
    for wrong in (LIMIT * 1.01, float("inf"), float("nan")):
        with pytest.raises(LucidError, match=r"layer 0, key reaches"):
            RangeScan(1, 2, None, {"layer 0": {"key": wrong}}).check(Path("checkpoint"), "")


def test_a_float16_cache_is_scanned_for_what_it_holds(make_checkpoint: Any, tmp_path: Path, exported: Any) -> None:
    found = scan(Checkpoint(scaled(make_checkpoint(), **PRODUCT)), None, CACHED)
    found.check(Path("checkpoint"), "")
    assert not found.warnings()
    beyond = scaled(make_checkpoint("keys"), **{"0__self_attn__k_proj": 2e4})
    with pytest.raises(LucidError, match=r"layer 0, key reaches .* --cache-dtype auto or int8"):
        export(beyond, tmp_path / "beyond", ExportOptions(cache_dtype="float16"))
    assert CACHED == ("key", "y")
    ranges = exported(cache_dtype="float16")[1].manifest.ranges
    assert ranges is not None and ranges["skipped"] is False
    assert exported(cache_dtype="int8")[1].manifest.ranges is None  # int8 has a scale of its own for each row
