"""Our operators, one folder each, and the hosts that run them: Triton, TensorRT and onnxruntime."""
