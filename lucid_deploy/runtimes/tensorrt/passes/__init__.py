"""Passes over ``onnx_ir`` models that TensorRT alone needs. Each docstring says what it requires and what results."""
