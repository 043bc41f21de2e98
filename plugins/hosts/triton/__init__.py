"""Triton as a host: launching the operators' kernels on PyTorch tensors, and compiling them ahead of time."""
