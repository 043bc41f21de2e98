"""Products of a few rows by a weight, which is read as it is stored; only the library of CPU kernels computes them."""
