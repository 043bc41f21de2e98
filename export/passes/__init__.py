"""Graph passes: functions that modify an ``onnx_ir`` model or build a new one; each states what it requires."""
