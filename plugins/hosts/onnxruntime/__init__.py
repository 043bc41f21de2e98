"""onnxruntime on the CPU: the library with our operators' kernels, and its build."""
