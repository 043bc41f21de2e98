"""Load an artifact's own weights into the PyTorch model."""

from __future__ import annotations

import mmap

import torch

from lucid_deploy.artifact import WEIGHTS, Artifact
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.lucid import LucidForCausalLM


def load_artifact_model(artifact: Artifact, device: str = "cpu", implementation: str = "blocked") -> LucidForCausalLM:
    """Build the PyTorch model on the weights of an artifact, in the artifact's type.

    Args:
        artifact: The opened artifact.
        device: Where the parameters go. On the CPU they are mapped from the file, not copied, where the layout allows.
        implementation: ``blocked`` or ``reference``, as for :class:`~lucid_deploy.model.lucid.LucidForCausalLM`.

    Raises:
        CheckFailed: The graph lacks a weight of the model, or has it in another shape.
    """
    import onnx

    dtype = getattr(torch, artifact.manifest.dtype)
    with torch.device("meta"):
        model = LucidForCausalLM(artifact.config, implementation)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    graph = onnx.load(str(artifact.graph_path("decode")), load_external_data=False).graph
    with artifact.path(WEIGHTS).open("rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    state = {}
    for tensor in graph.initializer:
        if tensor.name not in wanted:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        count = int(place["length"]) // dtype.itemsize
        data = torch.frombuffer(buffer, dtype=dtype, count=count, offset=int(place["offset"])).view(*tensor.dims)
        # Linear layers are stored [in, out]; a square one is told apart by its place in the graph, not by its shape.
        if tensor.name.endswith("_proj.weight") or (
            tensor.name == "lm_head.weight" and not artifact.config.tie_word_embeddings
        ):
            data = data.mT
        if tuple(data.shape) != wanted[tensor.name]:
            raise CheckFailed(
                f"{artifact.directory}: weight {tensor.name} is {tuple(data.shape)}, not {wanted[tensor.name]}."
            )
        state[tensor.name] = data.to(device)
    if artifact.config.tie_word_embeddings:
        tied = state.get("model.embed_tokens.weight", state.get("lm_head.weight"))
        if tied is not None:
            state["model.embed_tokens.weight"] = state["lm_head.weight"] = tied
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise CheckFailed(f"{artifact.directory}: the decode graph lacks the weights {', '.join(missing)}.")
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model.eval().requires_grad_(False)
