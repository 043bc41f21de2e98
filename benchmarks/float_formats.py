"""Error of the bundled model's logits with weights in fp8 and nvfp4, computed in float32; nothing is learned."""

from __future__ import annotations

import json
from typing import Any

import click
import numpy as np
import torch
from common import logit_errors, recall_texts, write_result

from lucid_deploy.artifact.quantization import PACKED, SCALES, WHOLE_SCALE, Quantization
from lucid_deploy.artifact.quantized_bytes import decode, dequantize
from lucid_deploy.export.quantize.floats import rounded_parts
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.export.quantize.plan import plan_quantization
from lucid_deploy.model.checkpoint import DEMO, Checkpoint, load_model
from lucid_deploy.model.lucid import LucidForCausalLM

SCHEMES = ("fp8", "nvfp4")


def rounded(checkpoint: Checkpoint, scheme: str) -> tuple[Quantization, LucidForCausalLM]:
    """Return the record and the model on the weights that an export would write."""
    record = plan_quantization(checkpoint.stored_shapes(), checkpoint.tied, QuantizeOptions(scheme))
    model = load_model(checkpoint)
    state = model.state_dict()
    for name in record.tensors:
        parts = rounded_parts(checkpoint.tensor(name), name, record)
        if WHOLE_SCALE in parts:
            scales = decode(parts[SCALES], 8) * parts[WHOLE_SCALE].view(np.float32)
        else:
            scales = parts[SCALES].view(np.float32)
        state[name] = torch.from_numpy(dequantize(record, name, parts[PACKED], scales)).float()
    model.load_state_dict(state, assign=True)
    return record, model


def errors(checkpoint: Checkpoint, ids: torch.Tensor) -> dict[str, Any]:
    """Return every scheme's error of logits over ``ids``, int64 ``(B, N)``."""
    with torch.inference_mode():
        exact = load_model(checkpoint)(ids)[0].numpy()
    found: dict[str, Any] = {}
    for scheme in SCHEMES:
        record, model = rounded(checkpoint, scheme)
        with torch.inference_mode():
            logits = model(ids)[0].numpy()
        found[scheme] = {
            "bits_per_weight": record.bits_per_weight("float32"),
            **logit_errors(logits, exact),
        }
    print(json.dumps(found), flush=True)
    return found


@click.command(help=__doc__)
def main() -> None:
    """Measure, print, and write benchmarks/results/float_formats.json."""
    torch.set_num_threads(1)
    _, unseen = recall_texts()
    models = {"bundled": errors(Checkpoint(DEMO), unseen[: 16 * 400].reshape(16, 400))}
    write_result("float_formats", {"models": models})


if __name__ == "__main__":
    main()
