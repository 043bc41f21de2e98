"""Build, register and launch our operators in the hosts that run them: Triton, TensorRT and onnxruntime."""
