"""lucid-deploy: take models with LUCID attention from PyTorch to production."""

from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.version import __version__

__all__ = ["CheckFailed", "LucidError", "__version__"]
