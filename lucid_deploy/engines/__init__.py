"""TensorRT engines of an artifact: graph passes, profiles, building, and the manifest beside the engines."""

from lucid_deploy.engines.build import BuildOptions, BuildReport, build_engines
from lucid_deploy.engines.limits import Limits
from lucid_deploy.engines.manifest import EngineManifest, open_engines

__all__ = ["BuildOptions", "BuildReport", "EngineManifest", "Limits", "build_engines", "open_engines"]
