"""Passes over ``onnx_ir`` models that only TensorRT needs. Docstrings say what a pass requires and what results."""
