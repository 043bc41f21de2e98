"""Before a float16 export: what would overflow is refused, by layer and tensor, and would really have been infinite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.range_scan import CACHED, LIMIT, MARGIN, RangeScan, scan
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.runtime import open_session


def scaled(checkpoint: Path, **factors: float) -> Path:
    """Multiply weights of a checkpoint; dots of their names are written as double underscores."""
    tensors = load_file(checkpoint / "model.safetensors")
    for name, factor in factors.items():
        tensors[f"model.layers.{name.replace('__', '.')}.weight"] *= factor
    save_file(tensors, checkpoint / "model.safetensors")
    return checkpoint


CASES: list[tuple[dict[str, float], str]] = [
    ({"1__mlp__up_proj": 3e3, "1__mlp__gate_proj": 3e3}, "layer 1, gate·up product"),
]


@pytest.mark.parametrize(("factors", "where"), CASES, ids=[where for _, where in CASES])
def test_overflow_is_refused_and_real(
    make_checkpoint: Any, tmp_path: Path, factors: dict[str, float], where: str
) -> None:
    checkpoint = make_checkpoint()
    tensors = load_file(checkpoint / "model.safetensors")
    for name, factor in factors.items():
        tensors[f"model.layers.{name.replace('__', '.')}.weight"] *= factor
    for name, value in tensors.items():
        assert value.abs().max() < LIMIT, name  # it is no weight that overflows
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(LucidError, match=rf"{where} reaches .* Export with --dtype bfloat16 or float32"):
        export(checkpoint, tmp_path / "artifact", ExportOptions("float16"))
    assert not (tmp_path / "artifact").exists()
    skipped = export(checkpoint, tmp_path / "artifact", ExportOptions("float16", range_scan=False))
    assert skipped.manifest.ranges == {"skipped": True}
    session = open_session(skipped)
    cache = session.empty_cache(1)
    logits = session.prefill(np.random.default_rng(0).integers(0, 97, (1, 332)), cache)
    rows = [array for layer in session.layer_arrays(cache) for array in layer]
    assert not all(np.isfinite(array).all() for array in (logits, *rows))
    whole = open_session(export(checkpoint, tmp_path / "whole"))
    assert np.isfinite(whole.prefill(np.random.default_rng(0).integers(0, 97, (1, 332)), whole.empty_cache(1))).all()


def test_the_scan_measures_what_the_model_computes(make_checkpoint: Any) -> None:
    """Against the model run as a whole: key, y and logits; and tensors within a layer by hand."""
    from lucid_deploy.export.range_scan import sample_prompts
    from lucid_deploy.model.checkpoint import load_model

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


def test_a_float16_cache_is_scanned_for_what_it_holds(make_checkpoint: Any, tmp_path: Path) -> None:
    checkpoint = scaled(make_checkpoint(), **{"1__mlp__up_proj": 3e3, "1__mlp__gate_proj": 3e3})
    artifact = export(checkpoint, tmp_path / "fits", ExportOptions(cache_dtype="float16"))
    assert artifact.manifest.ranges is not None and not artifact.manifest.ranges["warnings"]
    beyond = scaled(make_checkpoint("keys"), **{"0__self_attn__k_proj": 1e5})
    with pytest.raises(LucidError, match=r"layer 0, key reaches .* --cache-dtype auto or int8"):
        export(beyond, tmp_path / "beyond", ExportOptions(cache_dtype="float16"))
    assert CACHED == ("key", "y")
    assert export(beyond, tmp_path / "small", ExportOptions(cache_dtype="int8")).manifest.ranges is None


def test_calibration_text_and_its_faults(tmp_path: Path, make_checkpoint: Any) -> None:
    demo, lines = Checkpoint("demo"), tmp_path / "lines.txt"
    lines.write_text("fox has red lamp. fox has\n\nowl has blue cup. owl has\n", encoding="utf-8")
    found = scan(demo, lines)
    assert found.prompts == scan(demo).prompts + 2 and found.to_dict()["calibration"] == str(lines)
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, message in (("empty", "no lines with text"), ("binary", "no UTF-8"), ("missing", "cannot be read")):
        with pytest.raises(LucidError, match=message):
            scan(demo, tmp_path / name)
    with pytest.raises(LucidError, match=r"no tokenizer\.json"):
        scan(Checkpoint(make_checkpoint()), lines)
    for options in (ExportOptions(calibration=lines), ExportOptions("float16", range_scan=False, calibration=lines)):
        with pytest.raises(LucidError, match="range scan"):
            export("demo", tmp_path / "artifact", options)


def test_export_and_inspect_show_it(tmp_path: Path) -> None:
    target, facts = str(tmp_path / "artifact"), tmp_path / "facts.json"
    done = CliRunner().invoke(
        main, ["export", "demo", "-o", target, "--dtype", "float16", "--verbose", "--json", str(facts)]
    )
    assert done.exit_code == 0, done.output
    assert "gate·up product" in done.output and "float16 ends at 65504" in done.output
    ranges = json.loads(facts.read_text())["ranges"]
    assert ranges["skipped"] is False and ranges["peaks"]["layer 2"]["y"] > 0
    shown = CliRunner().invoke(main, ["inspect", target])
    assert shown.exit_code == 0 and "gate·up product" in shown.output and "cache in float16" in shown.output
