"""A machine that runs the PTX of the GPU kernels on the CPU, checking memory, barriers and releases."""
