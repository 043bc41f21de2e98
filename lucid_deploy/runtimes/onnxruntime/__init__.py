"""Run an artifact's graphs in onnxruntime."""
