"""Limits of engines: each wrong one is refused by its name, and profiles hold shapes that occur together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt.limits import Limits, axis_ranges, choose_limits, profile_shapes

Exported = Callable[..., tuple[Path, Artifact]]


def test_what_is_not_given_is_the_models(exported: Exported) -> None:
    _, artifact = exported()
    assert choose_limits(artifact) == Limits(4, 512, 512)
    assert choose_limits(artifact, max_context=64) == Limits(4, 64, 64), "a chunk is no longer than the context"
    assert choose_limits(artifact, 1, 64, 16) == Limits(1, 64, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "--max-batch must be at least 1, not 0"),
        ({"max_context": 1}, "--max-context must be at least 2"),
        ({"max_context": 513}, r"--max-context 513 is more than the model was made for: 512"),
        ({"prefill_chunk": 0}, "--prefill-chunk must be at least 1"),
        ({"max_context": 64, "prefill_chunk": 65}, "--prefill-chunk 65 and --max-context 64 contradict each other"),
        ({"max_batch": 10**8}, r"TensorRT takes 2³¹ − 1 at most\. Lower one"),
    ],
    ids=str,
)
def test_wrong_ones_are_refused_by_name(options: dict[str, Any], message: str, exported: Exported) -> None:
    with pytest.raises(LucidError, match=message):
        choose_limits(exported()[1], **options)


@pytest.mark.parametrize("limits", [Limits(4, 512, 512), Limits(1, 2, 1), Limits(3, 100, 7)], ids=str)
@pytest.mark.parametrize("stage", ["prefill", "decode", "verify"])
def test_sums_are_those_of_their_parts(stage: str, limits: Limits) -> None:
    ranges = axis_ranges(stage, limits)
    assert all(low <= best <= high for low, best, high in ranges.values())
    past, new = ranges["past_sequence"], ranges["sequence"]
    assert past[0] == 0 and past[2] == limits.max_context - 1, "from an empty cache to the last token"
    assert ranges["past_sequence + sequence"] == tuple(p + n for p, n in zip(past, new, strict=True))
    assert ranges["past_sequence + 1"] == tuple(p + 1 for p in past)


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_every_input_has_its_three_shapes(cache: str, exported: Exported) -> None:
    _, artifact = exported(cache=cache)
    for stage, new in (("decode", (1, 1, 1)), ("verify", (1, 8, 16))):
        shapes = profile_shapes(artifact, stage, Limits(2, 64, 16))
        assert set(shapes) == {info.name for info in artifact.manifest.graphs["decode"].inputs}
        assert shapes["input_ids"] == shapes["position_ids"] == ((1, new[0]), (2, new[1]), (2, new[2]))
        tokens = [shape[2] for shape in shapes["past_key_values.1.value"]]
        assert tokens == ([64] * 3 if cache == "static" else [0, 32, 63])
        masks = [shape[1] for shape in shapes["attention_mask"]]
        assert masks == ([64] * 3 if cache == "static" else [0 + new[0], 32 + new[1], 63 + new[2]])
