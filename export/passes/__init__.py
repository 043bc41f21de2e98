"""Graph passes: functions that change an ``onnx_ir`` model. Each docstring says what it requires and what results."""
