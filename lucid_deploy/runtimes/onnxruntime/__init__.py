"""The exported graphs in onnxruntime."""
