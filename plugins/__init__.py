"""Our operators, a folder each, and the hosts they plug into: Triton, TensorRT and onnxruntime."""
