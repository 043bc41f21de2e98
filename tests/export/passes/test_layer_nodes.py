"""Nodes without the tracer's note belong to a layer if their neighbours do."""

from __future__ import annotations

import onnx_ir as ir

from lucid_deploy.export.passes import layers_of
from lucid_deploy.export.passes.layer_nodes import SCOPES

NOTES = {
    "head": "['', 'model', 'mul']",
    "0": "['', 'model', 'model.model.layers.0', 'linear']",
    "1": "['', 'model', 'model.model.layers.1']",
    "12": "['', 'model', 'model.model.layers.12.self_attn']",
}


def nodes(*notes: str | None) -> list[ir.Node]:
    return [ir.Node("", "Relu", [], metadata_props={} if note is None else {SCOPES: NOTES[note]}) for note in notes]


def test_layers() -> None:
    given = nodes(None, "head", None, "0", None, None, "0", None, "1", "12", None, "head", None)
    assert list(layers_of(given).items()) == list(
        zip(given, [None, None, None, 0, 0, 0, 0, None, 1, 12, None, None, None], strict=True)
    )
