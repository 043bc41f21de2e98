"""A check runs the package or tool itself and reports whether it is ok, missing or broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from lucid_deploy.doctor.diagnosis import CHECKS, Check, run_check
from lucid_deploy.errors import LucidError


@pytest.mark.parametrize(
    ("error", "package", "status", "remark"),
    [
        (ImportError("no module"), "no-such-distribution", "missing", "install it"),
        (ImportError("no module"), "click", "broken", "installed but does not import: no module"),
        (LucidError("It is not there. Do this."), None, "missing", "It is not there. Do this."),
        (LucidError("It does not load."), "click", "broken", "It does not load."),
        (OSError("a library is gone"), "click", "broken", "OSError: a library is gone"),
    ],
    ids=str,
)
def test_errors_become_findings(error: Exception, package: str | None, status: str, remark: str) -> None:
    def fail() -> str:
        raise error

    found = run_check(Check("thing", "tests", fail, "install it", package=package))
    assert (found.status, found.remark, bool(found.version)) == (status, remark, package == "click")


def test_packages_are_run_and_not_only_imported() -> None:
    """The solve's result for equal keys is known: each value minus the one before it."""
    found = {check.name: run_check(check) for check in CHECKS if check.name in ("torch", "onnxruntime")}
    assert [finding.status for finding in found.values()] == ["ok", "ok"]
    assert found["torch"].remark.startswith("solves") and "small models correctly" in found["onnxruntime"].remark


def test_a_solve_that_is_wrong_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid_deploy.plugins.precondition.torch_operator.precondition", lambda k, v, eps: v)
    [check] = [each for each in CHECKS if each.name == "torch"]
    found = run_check(check)
    assert (found.status, found.required) == ("broken", True)
    assert "gives [1.0, 3.0, 6.0] instead of [1, 2, 3]" in found.remark


def test_an_onnxruntime_that_computes_wrongly_is_broken(monkeypatch: pytest.MonkeyPatch, built_library: Path) -> None:
    monkeypatch.setattr("lucid_deploy.conformance.runner.relative_error", lambda found, wanted: 1.0)
    for name, remedy in (("onnxruntime", "Install another version"), ("CPU kernels", "Build the library again")):
        [check] = [each for each in CHECKS if each.name == name]
        found = run_check(check)
        assert found.status == "broken"
        assert "computes model_decode incorrectly: " in found.remark and f"{remedy}" in found.remark
