"""An emulator that runs the PTX of the GPU kernels on the CPU and checks memory, barriers and releases."""
