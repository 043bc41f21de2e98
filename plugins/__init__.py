"""GPU kernels of the LUCID operators, their ahead-of-time compilation, and the TensorRT plugin made of both."""
