"""The two forms of a stage's graph: what TensorRT builds, and the same with bodies for runtimes without the plugin."""

from __future__ import annotations

from dataclasses import dataclass

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt.prepare import prepare_graph

FORMS = ("explicit", "standard")  # of attention: products and a softmax, or the operator Attention


@dataclass(frozen=True)
class StageGraphs:
    """The graphs of a stage, serialised; their weights lie in ``weights.bin`` beside them.

    Attributes:
        engine: For TensorRT: plugin nodes without bodies, no loop.
        functions: The same nodes with their bodies, for onnxruntime; TensorRT takes the plugin in this one too.
        plugin_nodes: How many nodes of each of the plugin's operators there are.
    """

    engine: bytes
    functions: bytes
    plugin_nodes: dict[str, int]


def attention_form(artifact: Artifact) -> str:
    """Return the form that suits a type: TensorRT has fused kernels for ``Attention`` in the half types only."""
    return "explicit" if artifact.manifest.dtype == "float32" else "standard"


def stage_graphs(artifact: Artifact, stage: str, form: str) -> StageGraphs:
    """Make both graphs of a stage.

    Args:
        artifact: An artifact with a growing cache.
        stage: ``prefill`` or ``decode``.
        form: One of :data:`FORMS`, of the engine's graph; the other one is explicit always, since onnxruntime refuses
            the attribute that lets TensorRT take ``Attention`` apart.

    Raises:
        LucidError: As :func:`~lucid_deploy.runtimes.tensorrt.prepare.prepare_graph`, or attention of another form than
            the passes know.
    """
    import onnx
    import onnx_ir as ir

    from lucid_deploy.runtimes.tensorrt import passes

    prepared = prepare_graph(artifact, stage, artifact.config.max_position_embeddings)
    functions = ir.serde.deserialize_model(artifact.graph(stage))
    passes.standard_attention(functions)
    try:
        passes.explicit_attention(functions)
    except ValueError as error:
        raise LucidError(f"{artifact.graph_path(stage)} cannot be packaged for TensorRT: {error}.") from error
    passes.name_plugins(functions)
    with_bodies = ir.serde.serialize_model(functions).SerializeToString()
    if form == "explicit":
        engine = functions
        passes.strip_bodies(engine)
    else:
        engine = ir.serde.deserialize_model(onnx.load_from_string(prepared.model))
        passes.decomposable_attention(engine)
        passes.name_plugins(engine)
    return StageGraphs(ir.serde.serialize_model(engine).SerializeToString(), with_bodies, prepared.plugin_nodes)
