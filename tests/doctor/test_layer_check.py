"""Doctor's layer: passes where onnxruntime is right, by functions and by the library, and finds seeded faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from lucid_deploy.doctor.diagnosis import CHECKS, run_check
from lucid_deploy.doctor.layer_check import ALLOWED, check_layer

Found = dict[str, np.ndarray[Any, np.dtype[Any]]]
TILED = [0, 2, 1, 3]  # query head h with key/value head h mod 2, as onnxruntime 1.23.0 pairs them


class WrongSession:
    """A session whose results are spoilt."""

    spoil: Callable[[Found, Found], Found]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._session = onnxruntime.capi.onnxruntime_inference_collection.InferenceSession(*arguments, **options)
        self.get_outputs = self._session.get_outputs

    def run(self, names: list[str], feed: Found) -> list[Any]:
        right = dict(zip(names, self._session.run(names, feed), strict=True))
        spoilt = type(self).spoil(right, feed)
        return [spoilt[name] for name in names]


def tiled(of: Callable[[str], bool]) -> Callable[[Found, Found], Found]:
    """Return a fault of those outputs: query heads get each other's key/value heads."""

    def spoil(right: Found, feed: Found) -> Found:
        return {name: array[:, TILED] if array.shape[1] == 4 and of(name) else array for name, array in right.items()}

    return spoil


FAULTS = {
    "heads paired in another order": (tiled(lambda name: True), "O of tokens 0 to 69"),
    "the same in the standard operator alone": (tiled(lambda name: "standard" in name), "O of the standard operator"),
    "no solve": (lambda right, feed: {**right, "Y": feed["v"]}, "Y of tokens 0 to 69"),
    "no solve in decode": (
        lambda right, feed: {**right, "Y": feed["v"] if feed["v"].shape[2] == 1 else right["Y"]},
        "Y of token 79",
    ),
    "no past": (
        lambda right, feed: {**right, "Y": right["Y"] + 1e-3 * (feed["k_past"].shape[2] == 70)},
        "Y of tokens 70 to 78",
    ),
    "not a number": (lambda right, feed: {**right, "O": right["O"] * np.float32("nan")}, "is off by nan"),
}


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a fault into every session; return what is said about it."""
    spoil, said = FAULTS[request.param]
    monkeypatch.setattr(WrongSession, "spoil", staticmethod(spoil), raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", WrongSession)
    return said


def test_it_passes(cpu_library: Path) -> None:
    for library in (None, cpu_library):
        assert 0 < check_layer(library) < ALLOWED / 10


def test_it_finds(fault: str) -> None:
    with pytest.raises(RuntimeError, match=r"computes a layer wrongly: .* trust no answer") as found:
        check_layer()
    assert fault in str(found.value)


def test_doctor_says_so(monkeypatch: pytest.MonkeyPatch, built_library: Path) -> None:
    remedies = {"onnxruntime": "Install another version", "CPU kernels": "Build the library again"}
    checks = [check for check in CHECKS if check.name in remedies]
    for found in map(run_check, checks):
        assert found.status == "ok" and "computes a layer rightly (relative error" in found.remark
    monkeypatch.setattr(WrongSession, "spoil", staticmethod(tiled(lambda name: True)), raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", WrongSession)
    assert len(checks) == 2
    for found in map(run_check, checks):
        assert found.status == "broken" and remedies[found.name] in found.remark
