"""onnxruntime's CPU as a host: the library of our operators' kernels, and building it."""
