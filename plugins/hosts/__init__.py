"""Code for the hosts that run our operators, Triton, TensorRT and onnxruntime: launching, registering, building."""
