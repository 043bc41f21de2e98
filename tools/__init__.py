"""Development tools, not shipped: they check and tune kernels, read their machine code, run their PTX on the CPU."""
