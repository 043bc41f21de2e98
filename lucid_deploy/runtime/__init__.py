"""Running models: one session interface, and a runtime behind it for PyTorch, onnxruntime and TensorRT."""
