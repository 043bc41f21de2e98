"""Export of checkpoints: tracing, ONNX functions, graph passes, the shared weight file, the artifact.

The package has the name of the API function ``lucid_deploy.export(...)``, so calling the package calls that function.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

from lucid_deploy.export.exporter import ExportOptions, export

__all__ = ["ExportOptions", "export"]


class _CallableModule(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return importlib.import_module("lucid_deploy.api").export(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule  # Python's documented way to customize a module
