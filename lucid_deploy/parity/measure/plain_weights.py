"""Are the weights of an artifact that are not quantized the checkpoint's, every element?

Comparing what an artifact computes does not answer it: the row of an embedding that no token of the verification reads
may hold anything, and in half precision so may a row of the head, whose share of the logits is below their gate.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING

from lucid_deploy.artifact import STAGES, WEIGHTS
from lucid_deploy.artifact.folded_scales import Scales, scaled
from lucid_deploy.errors import CheckFailed

if TYPE_CHECKING:
    import torch

    from lucid_deploy.artifact import Artifact
    from lucid_deploy.artifact.external_data import StoredWeight
    from lucid_deploy.model.checkpoint import Checkpoint


def plain_names(artifact: Artifact, checkpoint: Checkpoint) -> list[str]:
    """Return the names of the checkpoint's weights that the artifact does not hold as numbers of few bits."""
    record = artifact.manifest.quantization
    return [name for name in checkpoint.stored_shapes() if record is None or name not in record.tensors]


def check_plain_weights(
    artifact: Artifact, checkpoint: Checkpoint, folded: Scales | None = None, tick: Callable[[], None] = lambda: None
) -> int:
    """Compare every element with the checkpoint's, rounded to the artifact's type; return how many weights were.

    Prefill and decode must read them from the same place of the weight file.

    Args:
        artifact: What was exported.
        checkpoint: From what.
        folded: Scales that AWQ has put into weights, see :mod:`lucid_deploy.artifact.folded_scales`.
        tick: Called after each weight.

    Raises:
        CheckFailed: A weight is another one, or a graph does not read it.
    """
    places = {stage: {weight.name: weight for weight in artifact.weights(stage)} for stage in STAGES}
    for name in places["prefill"].keys() & places["decode"].keys():
        if places["prefill"][name] != places["decode"][name]:
            raise CheckFailed(f"{artifact.directory}: prefill and decode read {name} from different places.")
    names = plain_names(artifact, checkpoint)
    with artifact.path(WEIGHTS).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as buffer:
        for name in names:
            # Where embedding and head are one weight, graphs may call it by either name.
            read = {
                stage: [at for at in found if checkpoint.stored_name(at) == name] for stage, found in places.items()
            }
            for stage in STAGES:
                if not read[stage]:
                    raise CheckFailed(f"{artifact.directory}: the {stage} graph does not read {name}.")
            wanted = scaled(checkpoint.tensor(name), name, folded or {})
            for at in read["decode"]:
                problem = _difference(buffer, places["decode"][at], wanted, at in artifact.manifest.transposed)
                if problem:
                    raise CheckFailed(
                        f"{artifact.directory}: {at} is not the checkpoint's weight: {problem}. Export it again, or "
                        "name the checkpoint that it came from with --checkpoint."
                    )
            tick()
    return len(names)


def _difference(buffer: mmap.mmap, place: StoredWeight, wanted: torch.Tensor, transposed: bool) -> str | None:
    """Say how a stored weight differs from ``wanted``, rounded to its type; None if it does not."""
    import torch

    types = {1: torch.float32, 10: torch.float16, 16: torch.bfloat16}  # by onnx.TensorProto.DataType
    if place.data_type not in types:
        return f"it is stored as type {place.data_type} of ONNX"
    if tuple(wanted.shape) != (place.shape[::-1] if transposed else place.shape):
        return f"it is {list(place.shape)}{', transposed' if transposed else ''}, not {list(wanted.shape)}"
    kind = types[place.data_type]
    # A copy, so that the file can be closed while PyTorch still holds the memory of what was compared.
    found = torch.frombuffer(buffer, dtype=kind, count=wanted.numel(), offset=place.offset).clone().view(*place.shape)
    wanted = wanted.to(kind)
    if torch.equal(found, wanted.mT if transposed else wanted):
        return None
    other = (found.mT if transposed else found) != wanted
    first = tuple(map(int, other.nonzero()[0]))
    return (
        f"{int(other.sum()):,} of {other.numel():,} elements differ, the first at {list(first)}, which is "
        f"{float((found.mT if transposed else found)[first]):.6g} and not {float(wanted[first]):.6g}"
    )
