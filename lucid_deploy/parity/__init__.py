"""Prove that an artifact, or any session, computes what PyTorch computes.

The path of ``verify``: :mod:`.verification` opens session and references, :mod:`.targets` derives expected results and
gates, :mod:`.compare` runs the session, :mod:`.causes` explains a failure, :mod:`.results` holds everything that was
found, :mod:`.verdict` judges it, and :mod:`.terminal`, :mod:`.page` and the JSON show it.
"""

from lucid_deploy.parity.options import VerifyOptions
from lucid_deploy.parity.verification import verify_artifact

__all__ = ["VerifyOptions", "verify_artifact"]
