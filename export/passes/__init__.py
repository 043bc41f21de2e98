"""Graph passes: functions that change an ``onnx_ir`` model or make another. Each says what it requires."""
