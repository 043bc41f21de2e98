"""Prove that an artifact, or any session, computes what PyTorch computes.

``measure`` compares, ``causes`` explains, ``show`` reports, and ``verification`` does all of it to an artifact. Each of
them imports only from those before it. The first three know no runtime: sessions in, numbers out.
"""

from lucid_deploy.parity.causes.explain import explain
from lucid_deploy.parity.causes.explanation import Explanation
from lucid_deploy.parity.measure.derive_targets import prepare
from lucid_deploy.parity.measure.targets import Targets, explained_scenarios
from lucid_deploy.parity.options import VerifyOptions
from lucid_deploy.parity.sessions import check, verify
from lucid_deploy.parity.show.report import Report
from lucid_deploy.parity.verification import Verification, verify_artifact

__all__ = [
    "Explanation",
    "Report",
    "Targets",
    "Verification",
    "VerifyOptions",
    "check",
    "explain",
    "explained_scenarios",
    "prepare",
    "verify",
    "verify_artifact",
]
