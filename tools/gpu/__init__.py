"""Check the GPU kernels and tune them on a GPU, and look for spills in their machine code without one."""
