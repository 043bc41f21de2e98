"""Verify that an artifact, or any session, computes what PyTorch computes.

Steps of ``verify``: :mod:`.verification` opens the session and the references, :mod:`.targets` derives expected results
and gates, :mod:`.compare` runs the session, :mod:`.causes` explains a failure, :mod:`.results` stores all results,
:mod:`.verdict` judges them, and :mod:`.terminal`, :mod:`.page` and the JSON show them.
"""

from lucid_deploy.parity.options import VerifyOptions
from lucid_deploy.parity.verification import verify_artifact

__all__ = ["VerifyOptions", "verify_artifact"]
