"""Expected results of a batch row: those of its text run alone in float64, within the gates that ``verify`` uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.parity.gate import Gate, derive_gates, widest
from lucid_deploy.parity.metrics import position_errors
from lucid_deploy.parity.record import TensorId, Trace
from lucid_deploy.parity.scenarios import Scenario
from lucid_deploy.runtimes.cache_rows import row_layers
from lucid_deploy.runtimes.session import Cache, Session
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.parity.small_models import record

CASES = [("growing", "onnxruntime"), ("static", "onnxruntime"), ("growing", "torch")]
NAMES = ["-".join(case) for case in CASES]
rng = np.random.default_rng(3)
TEXTS = [rng.integers(0, 97, length) for length in (84, 47, 11, 64)]
TEXTS[0][20:60] = 11  # one token repeated
TEXTS[1][:40] = np.resize([5, 6, 7], 40)  # a pattern
FORCED = 8  # the last tokens of each text, which are decoded one by one


@dataclass
class Lone:
    """The float64 runs of TEXTS, and the gates."""

    traces: list[Trace]
    gates: dict[TensorId, Gate]

    def check(self, text: int, session: Session[Any], cache: Cache[Any], row: int, logits: list[np.ndarray]) -> None:
        """Compare a row of a cache, and the logits from the prompt's end on, with the run of the text alone."""
        got: dict[TensorId, np.ndarray] = {}
        for layer, pair in enumerate(row_layers(session, cache, [row])[0].layers):
            for kind, array in enumerate(pair):  # (KV, T, D)
                is_v = kind == 1 and not session.layers[layer].solves
                got[TensorId(layer, kind, "V" if is_v else "")] = array.transpose(1, 0, 2).reshape(
                    1, array.shape[1], -1
                )
        got[TensorId(len(got) // 2, 2)] = np.array(logits)[None]
        for tensor, values in got.items():
            exact = self.traces[text].tensors[tensor].values
            assert values.shape == exact.shape
            errors = position_errors(values, exact, tensor.accumulated)
            assert (errors <= self.gates[tensor].limit).all(), (text, str(tensor), errors.max())


def run_alone(checkpoint: Path) -> Lone:
    """Run TEXTS in float64, and in float32 for the gates."""
    reference = TorchSession(load_model(checkpoint, torch.float64, implementation="reference"))
    baseline = TorchSession(load_model(checkpoint, torch.float32))
    scenarios = [Scenario("row", ids[:-FORCED], ids[-FORCED:]) for ids in TEXTS]
    traces = [record(reference, scenario) for scenario in scenarios]
    gates = [
        derive_gates(trace, record(baseline, scenario), "float32")
        for trace, scenario in zip(traces, scenarios, strict=True)
    ]
    return Lone(traces, widest(gates))
