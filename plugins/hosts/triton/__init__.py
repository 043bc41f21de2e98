"""Triton: launch the operators' kernels on PyTorch tensors, and compile them ahead of time."""
