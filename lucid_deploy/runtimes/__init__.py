"""Running models: one session interface, and a runtime behind it for PyTorch and onnxruntime."""

from lucid_deploy.runtimes.open import open_session
from lucid_deploy.runtimes.session import Cache, Session

__all__ = ["Cache", "Session", "open_session"]
