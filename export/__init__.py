"""Export of LUCID checkpoints: tracing, ONNX functions, graph passes, the shared weight file, the artifact."""

from lucid_deploy.export.exporter import ExportOptions, export

__all__ = ["ExportOptions", "export"]
