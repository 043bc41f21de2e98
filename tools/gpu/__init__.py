"""Read, compare, choose, tune and check the GPU kernels: issue and memory models, machine code, GPU checks."""
