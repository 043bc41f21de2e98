"""Matrix product of a few rows and a weight that is not copied; only the library of CPU kernels implements it."""
