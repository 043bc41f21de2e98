"""Check and tune the kernels on a GPU; without a GPU, look for register spills in their machine code."""
